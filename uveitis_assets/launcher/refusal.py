"""The error of a launch that would fail again in the same way."""


class LaunchRefusedError(Exception):
    """The run cannot be launched as it is asked for; its message says what to change. It is not retried."""
