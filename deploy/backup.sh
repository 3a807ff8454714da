#!/usr/bin/env bash
# Dump the database, prove that the dump can be restored and that its ledger reconciles, then keep it.
#
#   DATABASE_URL=postgresql://... deploy/backup.sh /var/backups/zenzefi [days to keep]
#
# Needs pg_dump, pg_restore and psql of the server's version, manage.py's Python on PATH, and a role that may create
# databases. Exits non-zero, and keeps nothing, unless every step succeeded: cron's mail or the exit status of the
# container is the alarm.
set -euo pipefail

target=${1:?the directory for backups}
days=${2:-14}
source_url=${DATABASE_URL:?names the database to back up}
root=$(cd "$(dirname "$0")/.." && pwd)

umask 077
mkdir -p "$target"
stamp=$(date -u +%Y%m%dT%H%M%SZ)
draft=$target/.zenzefi-$stamp.dump.part
scratch=zenzefi_restore_check_$$
# The same server, another database: only the path of the URL changes.
scratch_url=$(python3 - "$source_url" "$scratch" <<'PY'
import sys
from urllib.parse import urlsplit, urlunsplit
print(urlunsplit(urlsplit(sys.argv[1])._replace(path="/" + sys.argv[2])))
PY
)

finish() {
    psql --quiet --dbname="$source_url" --command="DROP DATABASE IF EXISTS $scratch WITH (FORCE)" >/dev/null || true
    rm -f "$draft"
}
trap finish EXIT

pg_dump --format=custom --no-owner --file="$draft" --dbname="$source_url"

psql --quiet --set=ON_ERROR_STOP=1 --dbname="$source_url" --command="CREATE DATABASE $scratch TEMPLATE template0"
pg_restore --exit-on-error --no-owner --dbname="$scratch_url" "$draft"
(cd "$root" && DATABASE_URL=$scratch_url python3 manage.py reconcile)

mv "$draft" "$target/zenzefi-$stamp.dump"
find "$target" -maxdepth 1 -name 'zenzefi-*.dump' -mtime "+$days" -delete
echo "$target/zenzefi-$stamp.dump"
