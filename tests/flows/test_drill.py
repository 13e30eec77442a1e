"""Drills: weeks of retraining with real training, MLflow, DVC and Prefect; and kills at random moments."""

from __future__ import annotations

import csv
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest

from flows.serve import deployment_name
from pipeline.runtime.atomic_files import sha256_of
from pipeline.synthetic.sample import write_sample
from pipeline.tracking.registry import MODEL_SHA256
from tests.conftest import TINY, environment, free_port, run, set_params
from tests.flows.conftest import Api, answers, processes_in, wait_until
from tests.flows.test_retrain import Web
from tests.flows.toy import GIT, git

MODEL = "image-captioning"
READY = "Ctrl-C ends this"


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    server = Web(tmp_path / "web")
    yield server
    server.down()


class Drill:
    """A workspace with the real stages whose one source is served on the web, its scheduler, and what both tell."""

    def __init__(self, folder: Path, web: Web, log: Path, **params: Any) -> None:
        self.folder, self.web = folder, web
        self.port = free_port()
        self.api = Api(f"http://127.0.0.1:{self.port}/api")
        self._log, self._began = log, time.monotonic()
        self._environment = {"PREFECT_HOME": str(folder.parent / "prefect"), "PREFECT_RUNNER_POLL_FREQUENCY": "2"}
        self.scheduler: subprocess.Popen[bytes] | None = None
        set_params(folder, {"ingest.sources": ["feed"], "flow.retry_seconds": 1, **params})
        (folder / "data/raw/feed").mkdir(parents=True)
        for name in ("images.zip", "captions.csv"):
            self._do("dvc", "import-url", "-q", f"http://127.0.0.1:{web.port}/{name}", f"data/raw/feed/{name}")
        self._do("dvc", "remote", "add", "-q", "-d", "store", str(folder.parent / "store"))
        self._do(*GIT, "add", "-A")
        self._do(*GIT, "commit", "-qm", "a feed from the web")
        self.theirs = self._theirs()

    def _do(self, *words: str) -> str:
        done = run(self.folder, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def say(self, words: str) -> None:
        line = f"{time.monotonic() - self._began:7.1f} s  {words}\n"
        sys.stderr.write(line)
        with self._log.open("a") as file:
            file.write(line)

    @property
    def clone(self) -> Path:
        return self.folder / ".work/clone"

    def serve(self, cron: str) -> None:
        with self._log.with_suffix(".serve.log").open("ab") as log:
            self.scheduler = subprocess.Popen(
                [sys.executable, "-m", "flows.serve", "--cron", cron, "--port", str(self.port)],
                cwd=self.folder, env=environment(**self._environment), stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        begun = self.said().count(READY)
        wait_until(lambda: self.said().count(READY) > begun, 150)

    def said(self) -> str:
        return self._log.with_suffix(".serve.log").read_text(errors="replace")

    def end(self) -> None:
        if self.scheduler and self.scheduler.poll() is None:
            self.scheduler.terminate()
            self.scheduler.wait(timeout=100)

    def runs(self) -> list[dict[str, Any]]:
        """The flow runs that have begun, the newest first."""
        found = self.api.ask("flow_runs/filter", sort="START_TIME_DESC", limit=200)
        return [run for run in found if run["start_time"]]

    def active(self) -> list[dict[str, Any]]:
        """The flow runs that go on, or were asked for and are due."""
        types = ["SCHEDULED", "PENDING", "RUNNING", "CANCELLING"]
        found = self.api.ask("flow_runs/filter", flow_runs={"state": {"type": {"any_": types}}})
        return [run for run in found if run["state_type"] != "SCHEDULED" or not run["auto_scheduled"]]

    def ends_as(self, *names: str, seconds: float = 400) -> dict[str, Any]:
        """The newest run, once one that began after now ends in one of some states."""
        before = {run["id"] for run in self.runs() if run["state_type"] not in ("RUNNING", "PENDING")}
        end = time.monotonic() + seconds
        while True:
            for run_ in self.runs():
                if run_["id"] not in before and run_["state_name"] in names:
                    self.say(f"run {run_['name']}: {run_['state_name']}: {run_['state']['message']}")
                    return run_
            assert time.monotonic() < end, f"none of {names}; the last words:\n{self.said()[-3000:]}"
            time.sleep(1)

    def store(self) -> mlflow.MlflowClient:
        return mlflow.MlflowClient(f"sqlite:///{self.folder / 'mlflow.db'}")

    def versions(self) -> list[Any]:
        found = self.store().search_model_versions(f"name='{MODEL}'", max_results=1000)
        return sorted(found, key=lambda version: int(version.version))

    def champion(self) -> int:
        return int(self.store().get_model_version_by_alias(MODEL, "champion").version)

    def data(self) -> str:
        return sha256_of(*(self.clone / name for name in ("data", "models", "dvc.lock")))

    def _theirs(self) -> str:
        """What is a person's: branch, index, files that git keeps, raw data."""
        return git(self.folder, "rev-parse", "HEAD") + git(self.folder, "status", "--porcelain")

    def check(self) -> None:
        """Nothing is doubled, half made, left over or touched; looked at where no run goes on."""
        for attempt in range(5):
            wait_until_idle(self)
            begun = len(self.runs())
            try:
                self._check()
                return
            except AssertionError:
                no_run_of_the_clock_came_between = len(self.runs()) == begun and not self.active()
                if no_run_of_the_clock_came_between or attempt == 4:
                    raise

    def _check(self) -> None:
        assert self._theirs() == self.theirs
        versions = self.versions()
        hashes = [version.tags[MODEL_SHA256] for version in versions]
        assert len(set(hashes)) == len(hashes), "a model was registered twice"
        for version in versions:
            assert version.status == "READY"
            uri = self.store().get_model_version_download_uri(MODEL, version.version)
            place = Path(uri.removeprefix("file://").replace("%20", " "))
            assert (place / "artifacts/finetune/model.safetensors").is_file(), f"version {version.version} is half made"
        open_runs = self.store().search_runs(["1"], "attributes.status = 'RUNNING'")
        assert not open_runs
        status = run(self.clone, "dvc", "status")
        assert status.stdout.strip().endswith("Data and pipelines are up to date."), status.stdout
        assert not self.active()
        wait_until(lambda: not self.orphans(), 15)  # a process may still tell Prefect what has ended

    def orphans(self) -> list[str]:
        """The commands that run in the workspace and are neither the scheduler's nor its server's."""
        commands = [" ".join(process.cmdline()) for process in processes_in(self.folder)]
        expected = ("flows.serve", "flows.exec.server", "resource_tracker")
        return [command for command in commands if not any(word in command for word in expected)]


def bring(web: Web, folder: Path) -> None:
    """Have the web serve the files of a folder, from one moment to the next."""
    for file in sorted(folder.iterdir()):
        shutil.copy(file, web.folder / f".{file.name}")
    for file in sorted(folder.iterdir()):
        (web.folder / f".{file.name}").rename(web.folder / file.name)


def shuffled(source: Path, target: Path) -> None:
    """The same pictures with each other's captions."""
    target.mkdir()
    shutil.copy(source / "images.zip", target)
    with (source / "captions.csv").open(newline="", encoding="utf-8") as file:
        head, *rows = list(csv.reader(file))
    whole = [row for row in rows if len(row) == 2]
    captions = [row[1] for row in whole]
    random.Random(3).shuffle(captions)
    with (target / "captions.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *([row[0], caption] for row, caption in zip(whole, captions, strict=True))])


@pytest.fixture
def workspace_of_the_real_stages(clone: Callable[[], Path]) -> Path:
    folder = clone()
    shutil.rmtree(folder / "data/raw")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_weeks_of_retraining(workspace_of_the_real_stages: Path, web: Web, tmp_path: Path) -> None:
    weeks = {name: tmp_path / name for name in ("few", "many", "worse", "corrupt")}
    write_sample(weeks["few"], pictures=150, seed=5)
    write_sample(weeks["many"], pictures=900, seed=5)
    shuffled(weeks["many"], weeks["worse"])
    shutil.copytree(weeks["many"], weeks["corrupt"])
    whole = (weeks["many"] / "images.zip").read_bytes()
    (weeks["corrupt"] / "images.zip").write_bytes(whole[: len(whole) // 2])
    bring(web, weeks["few"])
    log = Path(os.environ.get("DRILL_LOG", tmp_path / "drill.log"))
    drill = Drill(workspace_of_the_real_stages, web, log, **{"finetune.epochs": 2, "evaluate.generation.beams": 1})
    try:
        drill.serve("* * * * *")
        drill.say("the schedule begins: every minute; 150 pictures are served")
        first = drill.ends_as("Promoted", "Kept", "Failed")
        assert first["state_name"] == "Promoted"
        assert first["auto_scheduled"]
        drill.check()
        drill.ends_as("Nothing new")

        bring(web, weeks["many"])
        drill.say("900 pictures are served")
        better = drill.ends_as("Promoted", "Kept", "Failed")
        assert better["state_name"] == "Promoted"
        assert {
            "check_updates",
            "fetch",
            "ingest",
            "build",
            "finetune",
            "evaluate",
            "register",
            "promote",
            "publish",
        } <= set(drill.api.tasks(better))
        assert drill.champion() == 2
        drill.check()

        bring(web, weeks["worse"])
        drill.say("the same pictures with each other's captions are served")
        worse = drill.ends_as("Promoted", "Kept", "Failed")
        assert worse["state_name"] == "Kept"
        assert len(drill.versions()) == 3
        assert drill.champion() == 2
        assert drill.versions()[2].tags["gate.reasons"]
        drill.check()

        good = drill.data()
        bring(web, weeks["corrupt"])
        drill.say("an archive that was cut off is served")
        refused = drill.ends_as("Promoted", "Kept", "Failed")
        assert "ingest: data/raw/feed/images.zip" in refused["state"]["message"]
        wait_until(lambda: drill.data() == good, 60)
        assert (len(drill.versions()), drill.champion()) == (3, 2)

        web.down()
        drill.say("the source goes down")
        down = drill.ends_as("Failed")
        if "check_updates" not in down["state"]["message"]:  # one that had looked before
            down = drill.ends_as("Failed")
        assert re.search(r"check_updates: .* is not there or can't be reached", down["state"]["message"])
        assert drill.api.tasks(down)["check_updates"]["run_count"] == 4
        web.up()
        bring(web, weeks["many"])
        drill.say("it is up again, with the 900 pictures")
        back = drill.ends_as("Promoted", "Kept")
        drill.check()
        drill.say(f"champion: version {drill.champion()}")
        drill.end()

        before = drill.champion()
        rolled = run(drill.folder, sys.executable, "-m", "pipeline.cli", "promote", "--rollback")
        drill.say(rolled.stdout.strip().splitlines()[-1])
        assert rolled.returncode == 0, rolled.stderr
        assert drill.champion() == before - 1 == 1
        assert back["state_name"] == "Kept"  # the model of these data is the champion, or was judged before
        assert git(drill.folder, "for-each-ref", "--format=%(refname:short)", "refs/heads/retrain")
    finally:
        drill.end()
    assert not processes_in(drill.folder)


REFUSED = r"is running in this workspace|is busy, it is being blocked|Unable to acquire lock"
TARGETS = ("stage", "dvc", "flow", "server", "scheduler")


def victim(drill: Drill, target: str) -> psutil.Process | None:
    """The process to kill, if there is one at this moment."""
    words = {
        "stage": r"-m (pipeline|flows)\.(?!serve|exec)",
        "dvc": r"dvc repro",
        "flow": r"multiprocessing.spawn import spawn_main",
        "server": r"flows\.exec\.server",
        "scheduler": r"flows\.serve ",
    }[target]
    for process in processes_in(drill.folder):
        with suppress(psutil.NoSuchProcess):  # or a zombie by now
            if re.search(words, " ".join(process.cmdline())):
                return process
    return None


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_kills_at_random_moments(workspace_of_the_real_stages: Path, web: Web, tmp_path: Path) -> None:
    """DRILL_KILLS says how many."""
    kills = int(os.environ.get("DRILL_KILLS", "30"))
    source = tmp_path / "source"
    bring_more(source, web, 0)
    log = Path(os.environ.get("DRILL_LOG", tmp_path / "kills.log"))
    # From git-demo the model is not worse than the naive answers, so that versions are promoted.
    start = {"finetune.checkpoint": "models/git-demo", "finetune.freeze": "image_encoder"}
    tiny = {**TINY, **start, "runtime.state_minutes": 0, "promote.least_distinct": 0.0}
    drill = Drill(workspace_of_the_real_stages, web, log, **tiny)
    rng = random.Random(11)
    never = "0 0 1 1 *"
    try:
        drill.serve(never)
        begin(drill)
        longest = ends_well(drill)
        drill.check()
        for kill in range(1, kills + 1):
            before = int(drill.versions()[-1].version)
            target = TARGETS[kill % len(TARGETS)]
            bring_more(source, web, kill)
            begin(drill)
            wait_until(lambda: any(run["state_type"] == "RUNNING" for run in drill.runs()), 60)
            struck = strike(drill, target, rng.uniform(0, 0.8 * longest))
            drill.say(f"kill {kill}: {struck}")
            if struck.startswith("scheduler"):
                assert drill.scheduler
                drill.scheduler.wait(10)
                wait_until(lambda: not processes_in(drill.folder), 100)
                drill.serve(never)
            wait_until_idle(drill)
            begin(drill)
            ends_well(drill)
            drill.check()
            assert int(drill.versions()[-1].version) > before, "the new data made a version"
    finally:
        drill.end()
    assert not processes_in(drill.folder)


def bring_more(source: Path, web: Web, step: int) -> None:
    """A few pictures more each time; so many that some are to learn from, not all to test by."""
    shutil.rmtree(source, ignore_errors=True)
    write_sample(source, pictures=90 + 6 * step, seed=8)
    bring(web, source)


def begin(drill: Drill) -> None:
    """Ask for a run, once the server answers."""
    wait_until(lambda: answers(f"http://127.0.0.1:{drill.port}/api/health"), 120)

    def asked() -> bool:
        try:
            drill.api.start(drill.api.deployment(f"retrain/{deployment_name(drill.folder)}"))
        except (OSError, ValueError):
            return False
        return True

    wait_until(asked, 60)


def strike(drill: Drill, target: str, after: float) -> str:
    """Kill a process some seconds into a run; where there is none of its kind then, the next one that comes."""
    time.sleep(after)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with suppress(psutil.NoSuchProcess):  # it ended by itself in this moment
            if process := victim(drill, target):
                what = " ".join(process.cmdline()[-4:])
                process.kill()
                return f"{target} ({what}) after {after:.1f} s"
        if not any(run["state_type"] == "RUNNING" for run in drill.runs()):
            break
        time.sleep(0.02)
    return f"no {target} was there after {after:.1f} s"


def wait_until_idle(drill: Drill) -> None:
    """Wait until no run goes on, and none that was asked for is due."""

    def quiet() -> bool:
        try:
            return not drill.active()
        except OSError:
            return False

    wait_until(quiet, 400)


def ends_well(drill: Drill) -> float:
    """Wait until all runs have ended, the last of them well; gives the seconds that the last one took.

    A scheduler that was killed goes on by a run of its own, which does for the one that was asked for, now cancelled.
    """
    wait_until_idle(drill)
    last = next(run for run in drill.runs() if "covers this run too" not in (run["state"]["message"] or ""))
    drill.say(f"         then {last['name']}: {last['state_name']}: {last['state']['message']}")
    assert last["state_type"] == "COMPLETED", drill.said()[-4000:]
    return float(last["total_run_time"])


@pytest.mark.timeout(1200)
@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 10])
def test_two_flows_and_a_dvc_repro_at_once(toy_workspace: Path, prefect: dict[str, str], times: int) -> None:
    for time_ in range(times):
        file = toy_workspace / "data/raw/mine/captions.csv"
        file.unlink()
        file.write_text("a.jpg,a boat\n" * (time_ + 2))
        commands = [["-m", "flows.train"], ["-m", "flows.train"], ["-m", "dvc", "repro"]]
        random.Random(time_).shuffle(commands)
        started = [
            subprocess.Popen(
                [sys.executable, *words], cwd=toy_workspace, env=environment(**prefect, WORKS_SECONDS="0.3"),
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for words in commands
        ]  # fmt: skip
        said = [process.communicate(timeout=200)[0] for process in started]
        for words, process, text in zip(commands, started, said, strict=True):
            if words[1] == "flows.train":
                assert process.returncode == 0, text
            else:
                assert process.returncode == 0 or re.search(REFUSED, text), text
            assert "Traceback" not in text
        assert run(toy_workspace, "dvc", "status").stdout.strip().endswith("Data and pipelines are up to date.")
        assert (toy_workspace / "models/finetune/all.csv").read_text() == file.read_text()
        assert not processes_in(toy_workspace)
