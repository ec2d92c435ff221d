"""Around a Docker deployment: queue and follow runs, check the host, database and engine proxy.

Nothing here computes on images or runs an asset in this process; ``dagster asset materialize`` does that.
"""
