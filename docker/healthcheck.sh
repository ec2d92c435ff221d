#!/bin/sh
# Health of the container's main process, whichever part of the deployment it is. Runs and shells are healthy while
# they are there: Dagster's run monitoring checks runs.
set -eu

case $(tr '\0' ' ' </proc/1/cmdline) in
  *dagster-webserver* | *"dagster dev"*)
    exec python -c 'import urllib.request; urllib.request.urlopen("http://127.0.0.1:3000/server_info", timeout=10)'
    ;;
  *"dagster code-server"*)
    exec dagster api grpc-health-check --host 127.0.0.1 --port 4000
    ;;
  *dagster-daemon*)
    exec dagster-daemon liveness-check
    ;;
esac
