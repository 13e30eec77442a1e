"""The commands, files, params and links in README and the guides are real: commands are run in order, in a clone."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.config.params import Params
from pipeline.synthetic.sample import write_sample
from tests.conftest import ROOT, TINY, environment, jpeg, set_params

README = "README.md"
# In the order in which the test goes through them; each starts where the one before ended.
GUIDES = [f"docs/{name}.md" for name in ("own-data", "evaluation", "training", "serving")]
PAGES = [
    README,
    "CONTRIBUTING.md",
    "SECURITY.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
NOT_RUN = {
    "make test": "it runs this test",
    "python -m pipeline.finetune --machine 1": "it needs a second machine; tests/test_finetune.py starts it as one",
}
# `make setup` has been run for the tests themselves; `-o` marks its outputs as up to date.
MAKE = "make -o .venv/ready -o .venv/pulled"
AUTHOR = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]
EXAMPLE_COMMIT = "THE-COMMIT"
TAGS = {"retrain.commit", "retrain.branch"}  # of versions in MLflow; they look like params


def text(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text(page), flags=re.S)


def commands(page: str) -> list[str]:
    """The commands that a page shows, without the comments behind them."""
    return [line.partition("  #")[0].rstrip() for block in blocks(page, "sh") for line in block.splitlines()]


def settings(page: str) -> list[dict[str, Any]]:
    return [YAML(typ="safe").load(block) for block in blocks(page, "yaml")]


def leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a tree, by their dotted keys."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **base,
        **{k: merged(base[k], v) if isinstance(v, dict) and k in base else v for k, v in changes.items()},
    }


class Reader:
    """Someone who follows the pages in a fresh clone, with some pictures in ~/Downloads."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder, self.home = folder, home
        self.followed: list[str] = []  # pages
        self._servers: list[subprocess.Popen[bytes]] = []
        downloads = home / "Downloads"
        write_sample(downloads, pictures=70, seed=2)
        (downloads / "images.zip").rename(downloads / "pictures.zip")
        (downloads / "photo.jpg").write_bytes(jpeg("blue", (500, 400)))
        (downloads / "predictions.jsonl").write_text('{"image_id": 42, "caption": "a dog"}\n')
        (downloads / "references.jsonl").write_text('{"image_id": 42, "references": ["a dog", "the dog runs"]}\n')

    def run(self, command: str) -> str:
        """Run a command to its end, and return what it printed."""
        done = subprocess.run(
            self._shell(command), cwd=self.folder, env=self._environment(), capture_output=True, text=True, timeout=400,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, command: str, ready: str) -> str:
        """Start a server, and return what it printed once that contains `ready`."""
        log = self.home / f"server-{len(self._servers)}.log"
        with log.open("w") as file:
            server = subprocess.Popen(
                self._shell(f"exec env {command}"), cwd=self.folder, env=self._environment(), stdout=file,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self._servers.append(server)
        end = time.monotonic() + 150
        while ready not in log.read_text():
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.5)
        return log.read_text()

    def end_servers(self) -> list[int]:
        """End the servers as a service manager does, and return their exit codes."""
        codes = []
        for server in self._servers:
            server.terminate()
            codes.append(server.wait(timeout=100))
            with contextlib.suppress(ProcessLookupError):  # whatever a server left running
                os.killpg(server.pid, signal.SIGKILL)
        self._servers.clear()
        return codes

    def _shell(self, command: str) -> list[str]:
        return ["bash", "-c", f". .venv/bin/activate && {command}"]

    def _environment(self) -> dict[str, str]:
        author = {
            f"GIT_{who}_{what}": "tests@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        }
        prefect = {"PREFECT_HOME": str(self.home / "prefect"), "PREFECT_RUNNER_POLL_FREQUENCY": "2"}
        return environment(HOME=str(self.home), **author, **prefect)


@pytest.fixture(scope="module")
def reader(clone: Callable[[], Path], tmp_path_factory: pytest.TempPathFactory) -> Reader:
    folder = clone()
    shutil.rmtree(folder / "data/raw/sample", ignore_errors=True)
    write_sample(folder / "data/raw/sample", pictures=120)  # the shipped one has 1,000 and takes minutes
    for words in (["dvc", "add", "-q", "data/raw/sample"], ["git", *AUTHOR, "commit", "-qam", "a smaller sample"]):
        subprocess.run(words, cwd=folder, env=environment(), check=True)
    set_params(folder, {**TINY, "finetune.epochs": 1})
    return Reader(folder, tmp_path_factory.mktemp("home"))


@pytest.mark.timeout(1800)  # trains three times; on a busy machine each step takes minutes
@pytest.mark.xdist_group("readme")
@pytest.mark.parametrize("page", [README, *(pytest.param(guide, marks=pytest.mark.slow) for guide in GUIDES)])
def test_every_command_works_as_written(reader: Reader, page: str, request: pytest.FixtureRequest) -> None:
    request.addfinalizer(reader.end_servers)
    pages = [README, *GUIDES]
    for each in pages[: pages.index(page) + 1]:
        if each not in reader.followed:
            follow(reader, each)
            reader.followed.append(each)


def follow(reader: Reader, page: str) -> None:
    if page == GUIDES[0]:  # the guides' commands are the same for a model that trains in a tenth of the time
        set_params(reader.folder, {key: value for key, value in TINY.items() if key.startswith("finetune.")})
        set_params(reader.folder, {"finetune.epochs": 1, "evaluate.generation.beams": 1})
        reader.run("dvc repro")
    for command in commands(page):
        if command in NOT_RUN:
            continue
        if command == "image-captioning ui":
            (address,) = re.findall(r"http://[\d.:]+/", reader.start(command, ready="Ctrl-C ends it"))
            with urllib.request.urlopen(address, timeout=30) as answer:
                assert b"MLflow" in answer.read()
        elif "mlflow models serve" in command:
            reader.run("image-captioning promote --force")  # after one epoch the model is worse than the naive answers
            reader.start(command, ready="Application startup complete")
        elif command == "image-captioning serve-model":
            reader.start(command, ready="serving models")
        elif command.startswith("image-captioning serve"):
            log = reader.start(command, ready="Ctrl-C ends this")
            (start_a_run,) = re.findall(r"PREFECT_API_URL=\S+ prefect deployment run \S+", log)
            assert "Flow run finished successfully" in reader.run(f"{start_a_run} --watch")
            assert reader.end_servers() == [0]
        else:
            check_output(command, reader.run(re.sub("^make", MAKE, command)))
        if command.startswith("image-captioning init"):
            set_params(reader.folder, {"finetune.epochs": 1})  # the only change to what a reader gets: 12 take a minute
    if page == README:
        report = (reader.folder / "reports/ingest/mine.json").read_text()
        assert '"pictures_kept": 70' in report or '"pictures_kept": 69' in report


def check_output(command: str, printed: str) -> None:
    if command == "make demo":
        assert "models:/image-captioning/1" in printed
        assert "Next:" in printed.splitlines()[-2]
    if "/v1/captions" in command:
        assert all(result["captions"] for result in json.loads(printed)["results"])
    elif command.startswith("curl"):
        (caption,) = json.loads(printed)["predictions"]
        assert caption


def test_no_command_that_readers_need_is_missing() -> None:
    shown = [command for page in (README, *GUIDES) for command in commands(page)]
    for expected in ("make demo", "dvc add data/raw/mine", "dvc repro", "make register"):
        assert expected in shown
    for name in ("init", "caption", "score", "promote", "trained-on", "ui", "train", "serve", "serve-model"):
        assert any(command.startswith(f"image-captioning {name}") for command in shown), name
    assert set(NOT_RUN) <= set(shown)


def test_readme_fits_on_two_screens() -> None:
    assert len(text(README).splitlines()) <= 130


@pytest.mark.parametrize("page", [page for page in PAGES if settings(page)])
def test_the_params_that_a_page_shows_are_valid(page: str) -> None:
    shipped = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    for shown in settings(page):
        for section, values in shown.items():
            assert set(values) <= set(shipped[section]), section
        if shown.get("finetune", {}).get("revision") == EXAMPLE_COMMIT:
            shown["finetune"]["revision"] = "0" * 40
        Params.model_validate(merged(shipped, shown))  # also refuses unknown keys


@pytest.mark.parametrize("page", PAGES)
def test_the_params_that_a_page_names_exist(page: str) -> None:
    shipped = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    every = {key for key, _ in leaves(shipped)}
    sections = "|".join(shipped)
    for name in re.findall(rf"`((?:{sections})\.[a-z_.]+)(?:: [^`]*)?`", text(page)):
        if name not in TAGS and not name.endswith((".py", ".yaml", ".md", ".csv", ".json")):
            assert any(key == name or key.startswith(f"{name}.") for key in every), name


@pytest.mark.parametrize("page", PAGES)
def test_the_files_that_a_page_names_exist(page: str) -> None:
    made = (
        "reports/",
        ".work/",
        "data/ingest",
        "data/dataset",
        "data/raw",
        "data/votes",
        "data/watch",
        "deploy/wheels",
        "models/",
        "mlflow.db",
        "mlartifacts/",
        ".venv",
        ".dvc/",
        "deploy/secrets",
        "../shared/",
        "retrain/",
    )
    for name in re.findall(r"`([\w./-]+/[\w./-]*|[\w-]+\.(?:yaml|md))`", text(page)):
        if (
            not name.startswith(made)
            and not re.search("NAME|STAGE|METRIC|SYSTEM", name)
            and name not in ("microsoft/git-base", "data/")
        ):
            assert any((ROOT / folder / name).exists() for folder in ("", "docs", "pipeline")), name


@pytest.mark.parametrize("page", PAGES)
def test_the_links_of_a_page_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if not link.startswith(("https://", "http://")):
            path, _, anchor = link.partition("#")
            target = (ROOT / page).parent / path if path else ROOT / page
            assert target.exists(), link
            titles = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.M) if anchor else []
            assert not anchor or anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


def test_every_guide_is_in_the_index() -> None:
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name == "README.md" or f"({path.name})" in text("docs/README.md"), path.name


def test_the_card_in_docs_is_the_checkpoints_own() -> None:
    assert text("docs/git-demo.md") == text("models/git-demo/README.md")


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_that_are_named_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", text("Makefile"), flags=re.M))
    assert set(re.findall(r"`make ([a-z]+)`", text(page))) <= targets


def test_contributing_commands_exist() -> None:
    targets = re.findall(r"^make ([a-z]+)$", text("CONTRIBUTING.md"), flags=re.M)
    assert targets == ["setup", "lint", "test"]
