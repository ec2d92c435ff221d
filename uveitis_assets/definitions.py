"""The code location: every lane under defs/, and what holds for all of them."""

import functools
import warnings

import dagster as dg

from uveitis_assets.orchestration.antlr_runtime import read_both_grammar_formats
from uveitis_assets.orchestration.defs_files import PACKAGE, check_defs_files
from uveitis_assets.orchestration.run_liveness import dead_runs, in_process_executor

# Dagster's command line parses --select after it has loaded this module.
read_both_grammar_formats()

# Single-run backfills and partitioned checks are beta in the pinned Dagster: known, and tested against it.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)


# One `dagster asset materialize` asks for the definitions six times, half a second each.
@dg.definitions
@functools.cache
def defs() -> dg.Definitions:
    """Load the lanes; steps of a run share one process, so that a chain of small steps starts Python once."""
    check_defs_files(PACKAGE / "defs")
    lanes = dg.load_from_defs_folder(path_within_project=PACKAGE)
    return dg.Definitions.merge(lanes, dg.Definitions(executor=in_process_executor, sensors=[dead_runs]))
