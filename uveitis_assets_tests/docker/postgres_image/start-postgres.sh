#!/bin/sh
# Make the database on the first start, then serve it; any uid may run this.
set -eu

# Postgres refuses a user without a name.
printf 'postgres:x:%s:%s::/tmp:/bin/sh\n' "$(id -u)" "$(id -g)" >/tmp/passwd
printf 'postgres:x:%s:\n' "$(id -g)" >/tmp/group
LD_PRELOAD=libnss_wrapper.so NSS_WRAPPER_PASSWD=/tmp/passwd NSS_WRAPPER_GROUP=/tmp/group
export LD_PRELOAD NSS_WRAPPER_PASSWD NSS_WRAPPER_GROUP

if [ ! -s "$PGDATA/PG_VERSION" ]; then
  initdb --pgdata "$PGDATA" --username "$POSTGRES_USER" --pwfile "$POSTGRES_PASSWORD_FILE" \
    --auth-local trust --auth-host scram-sha-256 --encoding UTF8
  echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
  pg_ctl --pgdata "$PGDATA" --options "-c listen_addresses= -k /tmp" --wait start
  createdb --host /tmp --username "$POSTGRES_USER" "$POSTGRES_DB"
  pg_ctl --pgdata "$PGDATA" --mode fast --wait stop
fi
exec postgres -D "$PGDATA" -c listen_addresses='*' -k /tmp
