#!/bin/sh
# Health of one service of the deployment, which is asked itself: healthcheck.sh web|code-server|daemon|engine-proxy
# [SECONDS that a daemon may be silent]. Without a name, what the container was started as decides. Runs and shells are
# healthy while they are there: Dagster's run monitoring checks runs.
set -eu

service=${1:-}
[ $# -eq 0 ] || shift
if [ -z "$service" ]; then
  # With --init, process 1 is the engine's init, and names entrypoint.sh; else it is the service.
  case $(tr '\0' ' ' </proc/1/cmdline) in
    *dagster-webserver* | *"dagster dev"* | *"entrypoint.sh web "* | *"entrypoint.sh dev "*) service=web ;;
    *"dagster code-server"* | *"entrypoint.sh code-server "*) service=code-server ;;
    *dagster-daemon* | *"entrypoint.sh daemon "*) service=daemon ;;
    *) exit 0 ;;
  esac
fi
# The daemon's through the entrypoint, which reads the database's password.
if [ "$service" = daemon ]; then
  exec entrypoint.sh python -m uveitis_assets.deployment.service_health daemon "$@"
fi
exec python -m uveitis_assets.deployment.service_health "$service"
