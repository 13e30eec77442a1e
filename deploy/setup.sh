#!/bin/sh
# Make the buckets and the workspace, or bring a workspace up to date with the code of a new image. Runs before all
# services; a second run changes nothing.
#
# The workspace is a git repository. Its branch `image` holds each image's code, so that an upgrade is a merge and keeps
# your params.
set -eu
python3 - <<'PYTHON'
import os

import boto3

store = boto3.client("s3")
there = {bucket["Name"] for bucket in store.list_buckets()["Buckets"]}
for name in os.environ["BUCKETS"].split():
    if name not in there:
        store.create_bucket(Bucket=name)
        print(f"setup: created the bucket {name}")
PYTHON

cd /workspace
if [ ! -d .git ]; then
    [ -z "$(ls -A)" ] || { echo "setup: /workspace has files, but is no git repository; empty the volume" >&2; exit 78; }
    git init --quiet --initial-branch main
fi
mkdir -p .work
# An index of its own, because files in the workspace may be yours.
export GIT_INDEX_FILE=/tmp/index
git -C "$SOURCE" --git-dir=/workspace/.git --work-tree="$SOURCE" add --all --force .
tree=$(git write-tree)
unset GIT_INDEX_FILE
image=$(git rev-parse --quiet --verify refs/heads/image || true)
if [ -z "$image" ]; then
    image=$(git commit-tree "$tree" -m "Image")
    git reset --quiet --hard "$image"
    dvc remote add --quiet --default store s3://dvc
    git commit --quiet --all --message "Push data to the deployment's store"
    # Last, so that a setup that was cut off is repeated.
    git update-ref refs/heads/image "$image"
    echo "setup: made the workspace"
elif [ "$tree" != "$(git rev-parse "$image^{tree}")" ]; then
    image=$(git commit-tree "$tree" -p "$image" -m "Image")
    if ! git merge --quiet --no-edit --message "Upgrade" "$image"; then
        git merge --abort 2>/dev/null || true
        echo "setup: the code of this image conflicts with changes in the workspace; merge the commit $image in /workspace" \
            "(docker compose run --rm --no-deps setup sh), then start again" >&2
        exit 78
    fi
    git update-ref refs/heads/image "$image"
    echo "setup: merged the code of this image into the workspace"
fi
dvc pull --quiet --remote sample data/raw/sample.dvc models/git-demo.dvc
