#!/bin/sh
# Make the secrets of the deployment, each in a file of deploy/secrets. Existing ones are kept.
set -eu
cd "$(dirname "$0")"
mkdir -p secrets
chmod 700 secrets  # containers read the files as another user, so those are readable; the folder is not
for name in postgres_password s3_secret_key token password; do
    [ -s "secrets/$name" ] || od -An -N24 -tx1 /dev/urandom | tr -d ' \n' > "secrets/$name"
    chmod 644 "secrets/$name"
done
echo "secrets: user captioning, password in $PWD/secrets/password"
