"""How long tests wait before they call something hung: one factor for all of them, for slow machines.

Waiting ends as soon as what is waited for is there, so that a large factor costs time only where a test fails.
"""

import os

FACTOR = float(os.environ.get("UVEITIS_TEST_PATIENCE", "10"))


def patience(seconds: float) -> float:
    """Seconds to wait for what takes at most about so many on an idle machine of two cores."""
    return seconds * FACTOR
