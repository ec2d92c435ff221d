"""The one error of a launch that trying again cannot mend."""


class LaunchRefusedError(Exception):
    """The run cannot be launched as it is asked for; its message says what to change. It is not retried."""
