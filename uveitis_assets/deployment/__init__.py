"""The Docker deployment seen from the shell: queue runs on it, follow them, and check the host it runs on.

Nothing here computes on images or runs an asset in this process; ``dagster asset materialize`` does that.
"""
