"""Backups in a bucket of a real S3 server (SeaweedFS)."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.errors import ConfigError, DataError, TemporaryError
from pipeline.deployment import backup, repository
from pipeline.deployment.files import Files
from pipeline.models.weights import weights_hash
from pipeline.runtime.bucket import Bucket
from pipeline.tracking import downloads, registry, runs
from tests.conftest import ROOT, environment
from tests.deploy.test_backup import CAPTIONS, OBJECT, deployment, emptied, git  # noqa: F401 - a fixture
from tests.deploy.test_services import services
from tests.tracking.test_downloads import MODEL

pytestmark = [pytest.mark.services, pytest.mark.timeout(600), pytest.mark.usefixtures("deployment")]
BUCKET = "backups"


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    """The variables of a running S3 server that has the bucket."""
    boto3 = pytest.importorskip("boto3")
    folder = Path(tempfile.mkdtemp(prefix="services-"))
    folder.chmod(0o755)
    try:
        with services(folder, "--stores") as (_, everything):
            variables = {name: value for name, value in everything.items() if name.startswith("AWS_")}
            options = {"aws_access_key_id": "AWS_ACCESS_KEY_ID", "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY"}
            keys = {option: variables[name] for option, name in options.items()}
            boto3.client(
                "s3", endpoint_url=variables["AWS_ENDPOINT_URL_S3"], region_name="us-east-1", **keys
            ).create_bucket(Bucket=BUCKET)
            yield variables
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def bucket(store: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Files:
    """The bucket, which is reached with the variables for backups only: AWS's own name a store that isn't there."""
    for name, value in store.items():
        monkeypatch.setenv(f"BACKUP_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    return backup._files(f"s3://{BUCKET}")


def names_below(bucket: Files, prefix: str) -> list[str]:
    return [name for name in bucket.sizes() if name.startswith(f"{prefix}/")]


def test_a_backup_in_a_bucket_restores_the_same_champion_data_corrections_and_repository(
    bucket: Files,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = weights_hash(downloads.checkpoint_of(f"models:/{MODEL}@champion", 1))
    said = backup.back_up(f"s3://{BUCKET}/whole/monday")
    print(said)
    assert f"`image-captioning restore s3://{BUCKET}/whole/monday`" in said
    assert not Path(".work/backup").exists()
    backup.back_up(str(tmp_path / "monday"))
    below = {
        path.relative_to(tmp_path / "monday").as_posix() for path in (tmp_path / "monday").rglob("*") if path.is_file()
    }
    assert {name.removeprefix("whole/monday/") for name in names_below(bucket, "whole/monday")} == below
    with pytest.raises(ConfigError, match="has a backup already; name a new prefix"):
        backup.back_up(f"s3://{BUCKET}/whole/monday")
    Path.cwd().rename(tmp_path / "gone")
    emptied(tmp_path, monkeypatch)
    assert f"restored/{repository.BRANCH}" in backup.restore(f"s3://{BUCKET}/whole/monday")
    assert weights_hash(downloads.checkpoint_of(f"models:/{MODEL}@champion", 1)) == before
    assert registry.champion(runs.client(), MODEL) == 1
    assert registry.versions(runs.client(), MODEL) == [1, 2]
    assert CAPTIONS.read_text() == '{"caption": "a dog"}\n'
    assert OBJECT.read_text() == "a picture"
    assert git("show", f"restored/{repository.BRANCH}:params.yaml").endswith("# changed")
    assert not Path(".work/backup").exists()


def test_a_killed_backup_is_not_restored(
    bucket: Files,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in range(2000):  # so that it takes seconds
        OBJECT.with_name(f"{number:05}").write_text(f"{number}")
    command = [sys.executable, "-m", "pipeline.cli", "backup", f"s3://{BUCKET}/killed"]
    process = subprocess.Popen(command, env=environment(PYTHONPATH=str(ROOT)))
    deadline = time.monotonic() + 120
    while len(names_below(bucket, "killed")) < 20:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "killed/manifest.json" not in bucket.sizes()
    with pytest.raises(ConfigError, match=r"has other files already.*delete what is there"):
        backup.back_up(f"s3://{BUCKET}/killed")
    emptied(tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match=r"has no manifest.json.*was cut off"):
        backup.restore(f"s3://{BUCKET}/killed")


def test_a_failed_backup_leaves_nothing_in_the_bucket(
    bucket: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(repository, "bundle", lambda file: (_ for _ in ()).throw(TemporaryError("no")))
    with pytest.raises(TemporaryError, match="no"):
        backup.back_up(f"s3://{BUCKET}/failed")
    assert names_below(bucket, "failed") == []


def test_a_damaged_backup_in_a_bucket_is_found_before_anything_is_written(
    bucket: Files,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backup.back_up(f"s3://{BUCKET}/damaged")
    name = next(name for name in names_below(bucket, "damaged") if name.endswith("model.safetensors"))
    bucket.get(name, tmp_path / "file")
    kept = (tmp_path / "file").read_bytes()
    folder = emptied(tmp_path, monkeypatch)
    there = sorted(folder.rglob("*"))
    for damaged in (kept[:-1] + bytes([kept[-1] ^ 1]), kept[:-1], None):
        if damaged is None:
            bucket.delete([name])
        else:
            (tmp_path / "file").write_bytes(damaged)
            bucket.put(tmp_path / "file", name)
        with pytest.raises(DataError, match="is missing" if damaged is None else "has changed since"):
            backup.restore(f"s3://{BUCKET}/damaged")
    assert sorted(folder.rglob("*")) == there


def test_a_bucket_that_is_not_there_is_one_line(bucket: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """As other servers answer; SeaweedFS creates a bucket when something is written to it."""

    def put_file(*paths: str) -> None:
        raise FileNotFoundError("The specified bucket does not exist")

    made = Bucket.__init__

    def make(self: Bucket, *args: Any, **options: Any) -> None:
        made(self, *args, **options)
        self.system.put_file = put_file

    monkeypatch.setattr(Bucket, "__init__", make)
    with pytest.raises(ConfigError, match=f"s3://{BUCKET}/new: there is no such bucket; create it"):
        backup.back_up(f"s3://{BUCKET}/new")


@pytest.mark.parametrize(
    ("variables", "url", "kind", "words"),
    [
        ({"BACKUP_AWS_SECRET_ACCESS_KEY": "wrong"}, f"s3://{BUCKET}/a", ConfigError, "check the AWS credentials"),
        ({"BACKUP_AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}, f"s3://{BUCKET}/a", TemporaryError, "run it again"),
        ({}, "gs://bucket/a", ConfigError, "gs is not known; name a folder or s3://BUCKET/PREFIX"),
    ],
)
def test_a_bucket_that_cannot_be_written_is_one_line_that_says_why(
    variables: dict[str, str],
    url: str,
    kind: type[Exception],
    words: str,
    bucket: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(kind, match=words) as found:
        backup.back_up(url)
    assert "\n" not in str(found.value)
    print(found.value)
