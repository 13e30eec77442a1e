"""Every command in README is run, in its order, in a copy of the repository."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.config.params import Params
from pipeline.synthetic.sample import write_sample
from tests.conftest import ROOT, TINY, environment, jpeg, set_params

README = (ROOT / "README.md").read_text()
# `make setup` has been run for the tests themselves; `-o` says that what it made is up to date.
MAKE = "make -o .venv/ready -o .venv/pulled"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def leaves(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a tree, by their dotted keys."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines()]


def shell(folder: Path, home: Path, command: str) -> subprocess.CompletedProcess[str]:
    activated = f". .venv/bin/activate && {command}"
    who = {f"GIT_{who}_{what}": "tests@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return subprocess.run(
        ["bash", "-c", activated],
        cwd=folder,
        env=environment(HOME=str(home), PREFECT_HOME=str(home / "prefect"), **who),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def see_the_page(folder: Path, home: Path) -> None:
    """`make ui` is a server: it is started, asked for its page, and ended."""
    with subprocess.Popen(
        ["bash", "-c", f"exec {MAKE} ui"], cwd=folder, env=environment(HOME=str(home)), start_new_session=True
    ) as server:
        try:
            end = time.monotonic() + 90
            while True:
                try:
                    with urllib.request.urlopen("http://127.0.0.1:5000/", timeout=5) as page:
                        assert b"MLflow" in page.read()
                    break
                except OSError:
                    assert server.poll() is None
                    assert time.monotonic() < end
                    time.sleep(0.5)
        finally:
            os.killpg(server.pid, signal.SIGTERM)


class Schedule:
    """`flows.serve` stays: it is started, the commands after it find it, and it is ended with them."""

    def __init__(self, folder: Path, home: Path, command: str) -> None:
        quick = {"HOME": str(home), "PREFECT_HOME": str(home / "prefect"), "PREFECT_RUNNER_POLL_FREQUENCY": "2"}
        self._log = home / "schedule.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", f". .venv/bin/activate && exec {command}"],
                cwd=folder, env=environment(**quick), stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + 150
        while "Ctrl-C ends this" not in self._log.read_text():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < end
            time.sleep(0.5)

    def end(self) -> None:
        self._process.terminate()
        assert self._process.wait(timeout=100) == 0, self._log.read_text()


def test_every_command_works_as_it_stands(
    clone: Callable[[], Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder, home = clone(), tmp_path / "home"
    downloads = home / "Downloads"
    write_sample(downloads, pictures=70, seed=2)
    (downloads / "images.zip").rename(downloads / "pictures.zip")
    (downloads / "photo.jpg").write_bytes(jpeg("blue", (500, 400)))
    (downloads / "predictions.jsonl").write_text('{"image_id": 42, "caption": "a dog"}\n')
    (downloads / "references.jsonl").write_text('{"image_id": 42, "references": ["a dog", "the dog runs"]}\n')
    shutil.rmtree(folder / "data/raw/sample", ignore_errors=True)
    pull = ["dvc", "pull", "-q", "-r", "sample", "data/raw/sample.dvc"]
    subprocess.run(pull, cwd=folder, env=environment(), check=True)
    set_params(folder, {**TINY, "finetune.epochs": 1})
    (settings,) = blocks("yaml")

    ran = []
    schedules: list[Schedule] = []
    request.addfinalizer(lambda: [schedule.end() for schedule in schedules])
    for command in commands():
        if command == "make test" or "webbrowser" in command:
            continue  # the first is what runs here, and for the second there is no screen
        if command == "make ui":
            see_the_page(folder, home)
        elif command.startswith("python -m flows.serve"):
            schedules.append(Schedule(folder, home, command))
        else:
            if command == "dvc repro":  # between the two commands, README has the user edit params.yaml
                chosen = YAML(typ="safe").load(settings)
                assert chosen["finetune"]["checkpoint"] == "microsoft/git-base"
                # No network here: the same code path loads a checkpoint's folder (see test_finetune.py).
                chosen["finetune"] |= {"checkpoint": "scratch", "revision": None}
                set_params(folder, dict(leaves(chosen)))
            done = shell(folder, home, re.sub("^make", MAKE, command))
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
            if command == "make demo":
                assert "models:/image-captioning/1" in done.stdout
                assert "Next:" in done.stdout.splitlines()[-2]
            if "prefect deployment run" in command:
                assert "Flow run finished successfully" in done.stdout
        ran.append(command)
    for expected in ("make demo", "dvc add data/raw/mine", "dvc repro", "make register", "python -m flows.train"):
        assert expected in ran
    assert len(schedules) == 1
    account = (folder / "reports/ingest/mine.json").read_text()
    assert '"pictures_kept": 70' in account or '"pictures_kept": 69' in account


def test_the_keys_that_readme_names_are_params() -> None:
    for block in blocks("yaml"):
        for section, values in YAML(typ="safe").load(block).items():
            assert set(values) <= set(Params.model_fields[section].annotation.model_fields)  # type: ignore[union-attr]


def test_the_files_that_readme_names_are_there() -> None:
    made = (
        "reports/",
        ".work/",
        "data/ingest",
        "data/dataset",
        "models/",
        "mlflow.db",
        "mlartifacts/",
        ".venv",
        "data/raw/mine",
        "retrain/",
    )
    for name in re.findall(r"`([\w./-]+/[\w./-]*|[\w-]+\.(?:yaml|md))`", README):
        if not name.startswith(made) and "NAME" not in name and name not in ("microsoft/git-base", "data/raw"):
            assert (ROOT / name).exists() or (ROOT / "pipeline" / name).exists(), name
    assert (ROOT / "docs/contact_sheet.png").is_file()


def test_the_card_that_readme_shows_is_the_checkpoints_own() -> None:
    assert (ROOT / "docs/git-demo.md").read_text() == (ROOT / "models/git-demo/README.md").read_text()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_make_targets_that_are_named_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"`make ([a-z]+)`", (ROOT / page).read_text())) <= targets


def test_contributing_commands_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    targets = re.findall(r"^make ([a-z]+)$", text, flags=re.M)
    assert targets == ["setup", "lint", "test"]
