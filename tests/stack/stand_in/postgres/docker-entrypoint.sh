#!/usr/bin/env bash
# What the entrypoint of postgres promises of POSTGRES_USER, POSTGRES_DB, POSTGRES_PASSWORD and PGDATA; nothing else is understood.
set -euo pipefail
[ "$*" = postgres ] || { echo "this stand-in starts postgres without arguments, not: $*" >&2 && exit 2; }

if [ ! -s "$PGDATA/PG_VERSION" ]; then
  user=${POSTGRES_USER:-postgres}
  database=${POSTGRES_DB:-$user}
  [ -n "${POSTGRES_PASSWORD:-}" ] || { echo "no database is made without POSTGRES_PASSWORD" >&2 && exit 1; }
  chmod 0700 "$PGDATA"
  initdb --username="$user" --pwfile=<(printf "%s\n" "$POSTGRES_PASSWORD")
  echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
  if [ "$database" != postgres ]; then
    pg_ctl --wait --options="-c listen_addresses=''" start # only on the socket: nobody outside meets what is half made
    createdb --username="$user" "$database"
    pg_ctl --wait --mode=fast stop
  fi
fi
exec postgres -c "listen_addresses=*"
