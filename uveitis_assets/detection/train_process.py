"""Former place of ``detection.training.train_process``, for command lines of torchrun that name it."""

from uveitis_assets.detection.training.train_process import main

if __name__ == "__main__":
    main()
