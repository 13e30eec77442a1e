#!/bin/sh
# Put secrets into the environment of one command. NAME_FILE=/run/secrets/x sets NAME to the content of that file.
# The addresses of the databases contain the password, so they are made here too.
set -eu
for name in $(env | sed -n 's/^\([A-Z][A-Z0-9_]*\)_FILE=\/run\/secrets\/.*/\1/p'); do
    eval "file=\$${name}_FILE"
    [ -r "$file" ] || { echo "$file: not found; run deploy/secrets.sh, then start again" >&2; exit 78; }
    value=$(cat "$file")
    export "$name=$value"
    unset "${name}_FILE"
done
if [ -n "${POSTGRES_PASSWORD:-}" ]; then
    at="captioning:$POSTGRES_PASSWORD@${POSTGRES_HOST:-postgres}"
    export MLFLOW_BACKEND_STORE_URI="postgresql+psycopg2://$at/mlflow"
    export PREFECT_SERVER_DATABASE_CONNECTION_URL="postgresql+asyncpg://$at/prefect"
    unset POSTGRES_PASSWORD
fi
if [ -d /workspace/.work ]; then
    mkdir -p /workspace/.work/home/tmp
    export HOME=/workspace/.work/home TMPDIR=/workspace/.work/home/tmp
else
    export HOME=/tmp
fi
exec "$@"
