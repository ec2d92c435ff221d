"""The one entry: every lane under defs/, and the rules that hold for all of them."""

from pathlib import Path

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    """Load the lanes; steps of a run share one process, so that a chain of small steps starts Python once."""
    lanes = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
    return dg.Definitions.merge(lanes, dg.Definitions(executor=dg.in_process_executor))
