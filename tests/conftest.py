"""Workspaces for tests: an empty one, and a copy of the repository in which the whole loop has run once."""

from __future__ import annotations

import csv
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from ruamel.yaml import YAML

from pipeline import build, ingest
from pipeline.config import params
from pipeline.synthetic.sample import write_sample

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"

# As small as they come, so that a whole loop takes seconds; for learning itself see test_learning.py.
TINY = {
    "ingest.min_side": 1,
    "finetune.checkpoint": "scratch",
    "finetune.freeze": "none",
    "finetune.epochs": 2,
    "finetune.batch_size": 16,
    "finetune.scratch": {
        "image_size": 32,
        "patch_size": 16,
        "hidden_size": 32,
        "heads": 2,
        "image_layers": 1,
        "text_layers": 1,
        "vocabulary": 200,
        "dropout": 0.1,
    },
    "evaluate.max_pictures": 10,
    "evaluate.gallery_pictures": 4,
}


# Before xdist, which reads the groups of tests.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Of several processes one makes the loop and does all that is done in it, in the order that is written, and one
    # starts a Prefect server and uses it; README's commands take as long, so another begins with them.
    items.sort(key=lambda item: "test_every_command" not in item.name)
    for item in items:
        if config.pluginmanager.hasplugin("xdist"):
            for shared in {"loop", "prefect"}.intersection(getattr(item, "fixturenames", ())):
                item.add_marker(pytest.mark.xdist_group(shared))
        if item.get_closest_marker("real") and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason="needs real pictures in ../shared/data"))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name long arguments by their length: pytest puts whole texts into names, up to 50 MB, and xdist sends them on."""
    return f"{argname} of {len(val)}" if isinstance(val, str | bytes) and len(val) > 100 else None


def set_params(folder: Path, changes: Mapping[str, Any]) -> None:
    """Change values of a workspace's params.yaml, by their dotted keys."""
    yaml = YAML()
    file = folder / "params.yaml"
    content = yaml.load(file.read_text())
    for key, value in changes.items():
        *sections, last = key.split(".")
        place = content
        for section in sections:
            place = place[section]
        place[last] = value
    with file.open("w") as stream:
        yaml.dump(content, stream)


def environment(**more: str) -> dict[str, str]:
    """The environment of a user who has activated this virtual environment and set nothing else."""
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("MLFLOW_", "PREFECT_", "IMAGE_CAPTIONING_", "MAKE", "MFLAGS"))
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "DVC_NO_ANALYTICS": "1", "HF_HUB_OFFLINE": "1", **more}


def default_signals() -> None:
    """Undo what `nohup` and `&` do to signals, which all that they start would inherit (for `preexec_fn`)."""
    for ignored in (signal.SIGHUP, signal.SIGINT):
        signal.signal(ignored, signal.SIG_DFL)


def run(folder: Path, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a workspace; `python` is the one that runs the tests."""
    return subprocess.run(
        command, cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=300, check=False
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tiny_workspace(folder: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """Make `folder` a workspace with the shipped params.yaml, made tiny, and with changed params."""
    folder.mkdir(exist_ok=True)
    shutil.copy(ROOT / "params.yaml", folder)
    set_params(folder, {**TINY, **(changes or {})})
    return folder


@contextmanager
def inside(folder: Path) -> Iterator[pytest.MonkeyPatch]:
    """Make a workspace the current folder, for a fixture that several tests share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield patch


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace with the shipped params.yaml, made tiny; the current folder while the test runs."""
    folder = tiny_workspace(tmp_path / "work space")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


@pytest.fixture(scope="session")
def mlflow_db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new `mlflow.db`, to be copied: MLflow takes seconds to make the tables of one."""
    from pipeline.tracking import runs  # MLflow is slow to import, and many tests need none

    folder = tmp_path_factory.mktemp("mlflow")
    with inside(folder):
        runs.client()
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def bring_data_set(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., None]:
    """Brings a built data set of drawn pictures into a workspace: `bring_data_set(folder, pictures, changed params)`.

    It takes seconds, and many tests start from the same one, so it is made once and copied.
    """
    made: dict[str, Path] = {}

    def bring(folder: Path, pictures: int = 60, changes: Mapping[str, Any] | None = None) -> None:
        key = f"{pictures} {changes}"
        if key not in made:
            made[key] = new = tiny_workspace(tmp_path_factory.mktemp("data set"), changes)
            write_sample(new / "data/raw/sample", pictures, seed=3)
            with inside(new):
                ingest.run(params.load(), Namespace(source="sample"))
                build.run(params.load(), Namespace())
            (new / "params.yaml").unlink()
        shutil.copytree(made[key], folder, dirs_exist_ok=True)
        set_params(folder, changes or {})

    return bring


@pytest.fixture(scope="session")
def trained_once(
    tmp_path_factory: pytest.TempPathFactory, mlflow_db: Path, bring_data_set: Callable[..., None]
) -> Path:
    """A workspace with a trained model, to be copied."""
    from pipeline import finetune  # as above

    folder = tiny_workspace(tmp_path_factory.mktemp("trained"))
    shutil.copy(mlflow_db, folder)
    bring_data_set(folder)
    with inside(folder):
        finetune.run(params.load(), Namespace())
    return folder


def jpeg(colour: str = "red", size: tuple[int, int] = (40, 30)) -> bytes:
    """A small picture."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def bring(workspace: Path) -> Callable[..., Path]:
    """Puts a source into the workspace: `bring(name, files, rows)`."""

    def put(
        name: str, files: Mapping[str, bytes], rows: Iterable[list[str]] | None, table: str = "captions.csv"
    ) -> Path:
        folder = workspace / "data" / "raw" / name
        folder.mkdir(parents=True)
        with zipfile.ZipFile(folder / "images.zip", "w") as archive:
            for member, data in files.items():
                archive.writestr(member, data)
        if rows is not None:
            with (folder / table).open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([["image", "caption"], *rows])
        return folder

    return put


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes copies of the repository's files as they are now, each a git repository, in a path with a space."""

    def make() -> Path:
        folder = tmp_path_factory.mktemp("clone") / "fresh clone"
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file() and name != "dvc.lock":
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        shutil.copytree(ROOT / "models" / "git-demo", folder / "models" / "git-demo")
        (folder / ".venv").symlink_to(sys.prefix)
        git = ["git", "-c", "user.name=tests", "-c", "user.email=tests@localhost"]
        for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "as it is"]):
            subprocess.run([*git, *words], cwd=folder, check=True)
        return folder

    return make


@pytest.fixture(scope="session")
def loop(clone: Callable[[], Path]) -> Path:
    """A copy of the repository in which `dvc repro` has run once, on a small sample of its own."""
    folder = clone()
    shutil.rmtree(folder / "data" / "raw")
    write_sample(folder / "data" / "raw" / "small", pictures=90, seed=1)
    set_params(folder, {**TINY, "ingest.sources": ["small"]})
    added = run(folder, "dvc", "add", "data/raw/small")
    assert added.returncode == 0, added.stderr
    done = run(folder, "dvc", "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder
