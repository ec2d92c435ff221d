"""Watching a deployment from outside its daemon: alerts and metrics."""
