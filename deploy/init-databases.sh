#!/bin/sh
# PostgreSQL's image runs this once, when its volume is empty.
set -eu
for name in mlflow prefect; do
    psql --quiet --username "$POSTGRES_USER" --dbname postgres --command "CREATE DATABASE $name"
done
