"""What torchrun runs in the tests of several processes: the toy regression, or a process that fails."""

import sys
from pathlib import Path

from uveitis_assets.training.distributed import n_processes, process_rank
from uveitis_assets.training.processes import training_process
from uveitis_assets_tests.training.toy_regression import ToyRegression, train_toy

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with training_process(folder, "cpu") as process:
        if "fail" in sys.argv and process_rank() == 1:
            raise ValueError("point 7 is upside down")
        task = ToyRegression(dropout=0.0, batch_size=4 // n_processes())
        process.tell_outcome(train_toy(task, folder, process.listener).values)
