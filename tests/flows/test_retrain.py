"""The retraining flow against a real Prefect server, real git and DVC with a remote, in a toy workspace."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.runtime.atomic_files import read_json, sha256_of
from tests.conftest import run, set_params
from tests.flows.conftest import Api, processes_in, wait_until
from tests.flows.toy import GIT, git

Start = Callable[..., subprocess.Popen[str]]


class Web:
    """A web server whose files a test changes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.port = 0
        self.up()

    def up(self) -> None:
        handler = partial(_Quiet, directory=str(self.folder))
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def down(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def put(self, text: str) -> None:
        (self.folder / "captions.csv").write_text(text)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/captions.csv"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    server = Web(tmp_path / "web")
    server.put("w.jpg,a boat on the web\n")
    yield server
    server.down()


@pytest.fixture
def feed(toy_workspace: Path, web: Web) -> Path:
    """A workspace with a second source, which comes from the web, and a remote for its data."""
    (toy_workspace / "data/raw/feed").mkdir()
    set_params(toy_workspace, {"ingest.sources": ["mine", "feed"]})
    for words in (
        ["dvc", "import-url", "-q", web.address, "data/raw/feed/captions.csv"],
        ["dvc", "remote", "add", "-q", "-d", "store", str(toy_workspace.parent / "store")],
        [*GIT, "add", "-A"],
        [*GIT, "commit", "-qm", "a feed"],
    ):
        done = run(toy_workspace, *words)
        assert done.returncode == 0, done.stderr
    return toy_workspace


def retrain(folder: Path, prefect: dict[str, str], **more: str) -> subprocess.CompletedProcess[str]:
    return run(folder, sys.executable, "-m", "flows.retrain", **prefect, **more)


def theirs(folder: Path) -> tuple[str, str, str]:
    """What is a person's: what is checked out, the index, their files."""
    return (
        git(folder, "rev-parse", "--abbrev-ref", "HEAD") + git(folder, "rev-parse", "HEAD"),
        git(folder, "status", "--porcelain") + git(folder, "diff", "--cached"),
        sha256_of(*(folder / name for name in ("data", "models", "reports", "params.yaml", "dvc.lock"))),
    )


def state_of(clone: Path) -> str:
    return sha256_of(*(clone / name for name in ("data", "models", "reports/build.json", "dvc.lock")))


def registry(folder: Path) -> dict:
    return read_json(folder / "mlflow.db.json")


def branches(folder: Path) -> list[str]:
    return git(folder, "for-each-ref", "--format=%(refname:short)", "refs/heads/retrain").split()


def test_a_source_is_looked_at_fetched_trained_on_promoted_and_published_and_nothing_of_a_persons_is_touched(
    feed: Path, web: Web, prefect: dict[str, str], api: Api
) -> None:
    (feed / "params.yaml").write_text((feed / "params.yaml").read_text() + "# being edited\n")
    (feed / "pipeline/works/new.py").write_text("# not committed\n")
    git(feed, "add", "pipeline/works/new.py")
    before, clone = theirs(feed), feed / ".work/clone"

    first = retrain(feed, prefect)
    assert first.returncode == 0, first.stderr
    assert (
        first.stdout.splitlines()[-1]
        == "flows.retrain: models:/m/2 is promoted as the first champion: it has 2 rows; cause: outputs"
    )

    nothing = retrain(feed, prefect)
    assert nothing.returncode == 0, nothing.stderr
    assert nothing.stdout.splitlines()[-1].startswith("flows.retrain: nothing new")
    found = api.run_of(nothing.stderr)
    assert found["state_name"] == "Nothing new"
    assert [*api.tasks(found)] == ["check_updates"]

    web.put("w.jpg,a boat on the web\nx.jpg,one more\n")
    hook: list[dict] = []
    with listening(hook) as address:
        second = retrain(feed, prefect, IMAGE_CAPTIONING_WEBHOOK=address)
    assert second.returncode == 0, second.stderr
    found = api.run_of(second.stderr)
    assert (found["state_type"], found["state_name"]) == ("COMPLETED", "Promoted")
    assert found["name"].endswith(" (data)")
    assert found["state"]["message"] == "models:/m/3 is promoted in the place of version 2: it has 3 rows; cause: data"
    stages = ["commit_raw", "ingest", "build", "finetune", "evaluate", "register", "model_status"]
    after = [
        "tag_version",
        "promote",
        "publish",
        "delete_old_versions",
        "delete_old_data",
    ]  # tagged before promoting, and after publishing
    assert [*api.tasks(found)] == ["check_updates", "fetch", *stages, *after]
    page = api.artifacts(found)["retraining"]["data"]
    assert "* it has 3 rows" in page
    assert "| rows | 3.0000 | 2.0000 | +1.0000 |" in page
    assert "data/raw/feed/captions.csv.dvc" in page
    assert [told["event"] for told in hook] == ["image-captioning.retrain.promoted"]
    assert "models:/m/3 is promoted" in hook[0]["text"]

    assert theirs(feed) == before
    assert git(feed, "diff", "--name-only", "HEAD", branches(feed)[-1]).split() == [
        "data/raw/feed/captions.csv.dvc",
        "dvc.lock",
    ]
    assert registry(feed)["tags"]["3"] == git(feed, "rev-parse", branches(feed)[-1])
    # Whoever takes that branch has the very data, from DVC's remote.
    other = feed.parent / "other"
    subprocess.run(["git", "clone", "-q", "-b", branches(feed)[-1], str(feed), str(other)], check=True)
    assert run(other, "dvc", "pull", "-q").returncode == 0
    assert state_of(other) == state_of(clone)
    assert run(other, "dvc", "status", "-q").returncode == 0


class Listening(ThreadingHTTPServer):
    heard: list[dict]


class _Hook(SimpleHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Listening)
        self.server.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        pass


class listening:  # noqa: N801
    def __init__(self, heard: list[dict]) -> None:
        self._server = Listening(("127.0.0.1", 0), _Hook)
        self._server.heard = heard

    def __enter__(self) -> str:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self._server.server_port}/hook"

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.mark.slow
def test_bad_data_leave_data_model_and_champion_in_place_and_good_ones_go_on_from_there(
    feed: Path, web: Web, prefect: dict[str, str], api: Api
) -> None:
    clone = feed / ".work/clone"
    assert retrain(feed, prefect).returncode == 0
    before, known = state_of(clone), registry(feed)

    web.put("corrupt\n")
    hook: list[dict] = []
    with listening(hook) as address:
        set_params(feed, {"flow.webhook": address})
        git(feed, "commit", "-qam", "a webhook")
        bad = retrain(feed, prefect)
    assert bad.returncode == 65
    assert bad.stderr.splitlines()[-1] == "flows.retrain: ingest: data/raw/feed: is corrupt; bring it again"
    assert state_of(clone) == before
    assert registry(feed) == known
    assert "failed" in hook[0]["event"]
    assert "is corrupt" in hook[0]["text"]
    assert retrain(feed, prefect).returncode == 65  # it is not forgotten
    assert state_of(clone) == before

    web.put("w.jpg,a boat on the web\n")
    assert "nothing new" in retrain(feed, prefect).stdout

    before = state_of(clone)
    web.down()
    set_params(feed, {"flow.retries": 1})
    git(feed, "commit", "-qam", "one retry")
    down = retrain(feed, prefect)
    web.up()
    assert down.returncode == 75
    assert re.search(
        r"check_updates: data/raw/feed/captions.csv.dvc: http://\S+ is not there or can't be reached", down.stderr
    )
    assert api.tasks(api.run_of(down.stderr))["check_updates"]["run_count"] == 2
    assert state_of(clone) == before
    assert "nothing new" in retrain(feed, prefect).stdout


@pytest.mark.slow
def test_what_is_no_better_is_kept_back_with_its_reasons(
    feed: Path, web: Web, prefect: dict[str, str], api: Api
) -> None:
    web.put("w.jpg,a\nx.jpg,b\n")
    assert retrain(feed, prefect).returncode == 0
    web.put("w.jpg,a\n")
    worse = retrain(feed, prefect)
    assert worse.returncode == 0, worse.stderr
    assert worse.stdout.splitlines()[-1] == (
        "flows.retrain: models:/m/2 is not promoted, version 3 stays: it has 2 rows; cause: data"
    )
    assert api.run_of(worse.stderr)["state_name"] == "Kept"
    assert registry(feed)["champion"] == 3


@pytest.mark.slow
def test_a_retraining_whose_version_needs_approval_ends_and_says_how_to_approve_it(
    feed: Path, web: Web, prefect: dict[str, str], api: Api
) -> None:
    set_params(feed, {"promote.approval": "always"})
    git(feed, "commit", "-qam", "a person approves")
    web.put("w.jpg,a\nx.jpg,b\n")
    done = retrain(feed, prefect)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(
        "flows.retrain: models:/m/3 waits for approval, there is no champion; approve it with"
        " `image-captioning promote --approve 3` or on the page Models: it has 3 rows"
    )
    assert api.run_of(done.stderr)["state_name"] == "Waits for approval"
    assert registry(feed)["champion"] is None
    assert "nothing new" in retrain(feed, prefect).stdout
    assert registry(feed)["champion"] is None


@pytest.mark.slow
def test_a_folder_that_a_person_changes_is_taken_as_it_lies_there_and_their_dvc_file_stays(
    toy_workspace: Path, prefect: dict[str, str]
) -> None:
    assert retrain(toy_workspace, prefect).returncode == 0
    file = toy_workspace / "data/raw/mine/captions.csv"
    file.unlink()
    file.write_text("a.jpg,a boat\nb.jpg,a red house\n")
    before = theirs(toy_workspace)
    done = retrain(toy_workspace, prefect)
    assert done.returncode == 0, done.stderr
    assert "models:/m/2 is promoted in the place of version 1" in done.stdout
    assert theirs(toy_workspace) == before
    assert "nothing new" in retrain(toy_workspace, prefect).stdout
    run(toy_workspace, "dvc", "add", "-q", "data/raw/mine")
    assert (toy_workspace / "data/raw/mine.dvc").read_bytes() == (
        toy_workspace / ".work/clone/data/raw/mine.dvc"
    ).read_bytes()


@pytest.mark.slow
def test_new_params_are_taken_once_they_are_committed_and_the_same_model_is_not_promoted_again(
    toy_workspace: Path, prefect: dict[str, str], api: Api
) -> None:
    assert retrain(toy_workspace, prefect).returncode == 0
    set_params(toy_workspace, {"finetune.epochs": 7})
    assert "nothing new" in retrain(toy_workspace, prefect).stdout
    git(toy_workspace, "commit", "-qam", "seven epochs")
    done = retrain(toy_workspace, prefect)
    assert "check_updates: stale: finetune" in done.stderr
    assert "Running stage 'finetune'" in done.stderr
    assert "nothing new: the stages made what they had made before" in done.stdout
    assert not {"fetch", "promote"} & set(api.tasks(api.run_of(done.stderr)))


@pytest.mark.slow
def test_changed_code_alone_is_named_and_retrains_only_if_the_params_say_so(
    toy_workspace: Path, prefect: dict[str, str], api: Api
) -> None:
    assert retrain(toy_workspace, prefect).returncode == 0
    code = toy_workspace / "pipeline/works/finetune.py"
    code.write_text(code.read_text() + "# changed\n")
    git(toy_workspace, "commit", "-qam", "changed code")
    waits = retrain(toy_workspace, prefect)
    assert waits.returncode == 0, waits.stderr
    assert "nothing new: only code changed (stale: finetune)" in waits.stdout
    found = api.run_of(waits.stderr)
    assert (found["name"].partition(" ")[2], found["state_name"]) == ("(code)", "Nothing new")
    assert [*api.tasks(found)] == ["check_updates"]

    set_params(toy_workspace, {"retrain.on_code_change": "all"})
    git(toy_workspace, "commit", "-qam", "retrain on code")
    trains = retrain(toy_workspace, prefect)
    assert trains.returncode == 0, trains.stderr
    assert "Running stage 'finetune'" in trains.stderr
    assert api.run_of(trains.stderr)["name"].endswith(" (code)")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_crash_left_is_put_in_order_at_the_next_start_and_said(
    feed: Path, web: Web, prefect: dict[str, str], api: Api, start: Start, how: signal.Signals
) -> None:
    assert retrain(feed, prefect).returncode == 0
    web.put("w.jpg,a boat on the web\nx.jpg,one more\n")
    flow = start(feed, "flows.retrain", WORKS="finetune=sleep")
    assert flow.stdout
    log = [line for line in iter(flow.stdout.readline, "") if flow.poll() is None and not _sleeps(line, flow, how)]
    flow.wait(timeout=20)
    wait_until(lambda: not processes_in(feed), 10)
    (feed / ".work/clone/reports/.build.json.partial").touch()
    crashed = api.run_of("".join(log))
    assert crashed["state_type"] == ("RUNNING" if how == signal.SIGKILL else "CRASHED")

    done = retrain(feed, prefect)
    assert done.returncode == 0, done.stderr
    assert api.run_of("".join(log))["state_type"] == "CRASHED"
    assert {task["state_type"] for task in api.tasks(crashed).values()} <= {"COMPLETED", "CRASHED"}
    if how == signal.SIGKILL:
        assert re.search(r"the run [\w-]+ \(data\) was Running, but its process died", done.stderr)
        assert "which had died" in done.stderr
    assert "removed reports/.build.json.partial" in done.stderr
    assert "fetch" not in api.tasks(api.run_of(done.stderr))
    assert "models:/m/3 is promoted" in done.stdout
    assert registry(feed)["versions"] == [2, 3]
    assert not list((feed / ".work/runs").iterdir())
    assert run(feed / ".work/clone", "dvc", "status", "-q").returncode == 0


def _sleeps(line: str, flow: subprocess.Popen[str], how: signal.Signals) -> bool:
    """End the flow once its stage sleeps."""
    if "finetune: sleeps" in line:
        flow.send_signal(how)
        return True
    return False


@pytest.mark.slow
def test_what_a_crash_left_fetched_is_taken_back_too_where_it_turns_out_bad(
    feed: Path, web: Web, prefect: dict[str, str], start: Start
) -> None:
    assert retrain(feed, prefect).returncode == 0
    before = state_of(feed / ".work/clone")
    web.put("corrupt\n")
    flow = start(feed, "flows.retrain", WORKS="ingest=sleep")
    assert flow.stdout
    for line in flow.stdout:
        if "ingest: sleeps" in line:
            flow.kill()
    flow.wait()
    wait_until(lambda: not processes_in(feed), 10)
    assert state_of(feed / ".work/clone") != before
    assert retrain(feed, prefect).returncode == 65
    assert state_of(feed / ".work/clone") == before


@pytest.mark.slow
def test_of_two_retrainings_the_second_waits_and_finds_nothing_new(
    feed: Path, web: Web, prefect: dict[str, str], start: Start
) -> None:
    assert retrain(feed, prefect).returncode == 0
    web.put("w.jpg,a boat on the web\nx.jpg,one more\n")
    both = [start(feed, "flows.retrain", WORKS_SECONDS="0.5") for _ in range(2)]
    said = [flow.communicate(timeout=120)[0] for flow in both]
    assert [flow.returncode for flow in both] == [0, 0]
    assert sorted("nothing new" in text for text in said) == [False, True]
    assert any("waiting: `flows.retrain`" in text for text in said)
    assert registry(feed)["versions"] == [2, 3]


@pytest.mark.slow
def test_a_person_may_run_the_stages_while_a_retraining_works(
    feed: Path, web: Web, prefect: dict[str, str], start: Start
) -> None:
    assert retrain(feed, prefect).returncode == 0
    web.put("w.jpg,a boat on the web\nx.jpg,one more\n")
    flow = start(feed, "flows.retrain", WORKS_SECONDS="1")
    assert flow.stdout
    next(line for line in flow.stdout if "Running stage 'build'" in line)
    set_params(feed, {"finetune.epochs": 9})
    mine = run(feed, "dvc", "repro")
    assert mine.returncode == 0, mine.stderr
    assert "Running stage 'finetune'" in mine.stdout
    flow.stdout.read()
    assert flow.wait() == 0
    assert run(feed, "dvc", "status", "-q").returncode == 0
    assert run(feed / ".work/clone", "dvc", "status", "-q").returncode == 0


@pytest.mark.slow
def test_publishing_can_be_switched_off(feed: Path, prefect: dict[str, str]) -> None:
    set_params(feed, {"retrain.publish": False})
    git(feed, "commit", "-qam", "no branches")
    done = retrain(feed, prefect)
    assert done.returncode == 0, done.stderr
    assert "retrain.publish is off" in done.stderr
    assert branches(feed) == []
    assert not (feed.parent / "store").exists()
    assert "nothing new" in retrain(feed, prefect).stdout


@pytest.mark.slow
def test_training_may_start_from_the_champion_and_that_alone_is_nothing_new(
    feed: Path, web: Web, prefect: dict[str, str]
) -> None:
    set_params(feed, {"retrain.start": "champion"})
    git(feed, "commit", "-qam", "from the champion")
    starts = []
    for rows in range(2, 5):
        web.put("w.jpg,a boat\n" * (rows - 1))
        done = retrain(feed, prefect)
        assert done.returncode == 0, done.stderr
        starts.append(re.search(r"checkpoint: (\S+)", (feed / ".work/clone/params.yaml").read_text())[1])  # type: ignore[index]
        assert "nothing new" in retrain(feed, prefect).stdout
    assert starts == ["scratch", "models:/m/2", "models:/m/3"]
    assert "checkpoint: models:/m/3" in git(feed, "show", f"{branches(feed)[-1]}:params.yaml")
    assert "checkpoint: scratch" in (feed / "params.yaml").read_text()


@pytest.mark.slow
def test_what_was_promoted_and_not_published_goes_on_from_there_and_keeps_its_data(
    feed: Path, web: Web, prefect: dict[str, str]
) -> None:
    """The data of the champion are its own though others came before it could be published."""
    set_params(feed, {"retrain.start": "champion", "retrain.keep": 1, "flow.retries": 0})
    git(feed, "commit", "-qam", "from the champion")
    assert retrain(feed, prefect).returncode == 0
    remote = feed.parent / "store"

    web.put("w.jpg,a boat\n" * 2)
    remote.rename(feed.parent / "away")
    remote.write_text("no folder")
    failed = retrain(feed, prefect)
    assert failed.returncode in (65, 75), failed.stderr
    assert registry(feed)["champion"] == 3
    remote.unlink()
    (feed.parent / "away").rename(remote)
    hook: list[dict] = []
    with listening(hook) as address:
        again = retrain(feed, prefect, IMAGE_CAPTIONING_WEBHOOK=address)
    assert again.returncode == 0, again.stderr
    assert "Running stage" not in again.stderr  # it is not trained again, from itself
    assert "models:/m/3 is promoted in the place of version 2" in again.stdout
    assert [told["event"] for told in hook] == ["image-captioning.retrain.promoted"]

    web.put("w.jpg,the best\n" * 3)
    remote.rename(feed.parent / "away")
    remote.write_text("no folder")
    assert retrain(feed, prefect).returncode in (65, 75)
    assert registry(feed)["champion"] == 4
    remote.unlink()
    (feed.parent / "away").rename(remote)
    web.put("w.jpg,worse\n")
    worse = retrain(feed, prefect)
    assert worse.returncode == 0, worse.stderr
    assert "version 4 stays" in worse.stdout
    texts = [path.read_text() for path in (feed / ".dvc/cache/files/md5").rglob("*") if path.is_file()]
    assert "w.jpg,the best\n" * 3 in texts
    commit = registry(feed)["tags"]["4"]
    assert "captions.csv" in git(feed / ".work/clone", "show", f"{commit}:data/raw/feed/captions.csv.dvc")


@pytest.mark.slow
def test_bad_data_after_an_unpublished_promotion_leave_the_data_of_the_champion(
    feed: Path, web: Web, prefect: dict[str, str]
) -> None:
    set_params(feed, {"flow.retries": 0})
    git(feed, "commit", "-qam", "no retries")
    assert retrain(feed, prefect).returncode == 0
    remote, clone = feed.parent / "store", feed / ".work/clone"
    web.put("w.jpg,a boat\n" * 2)
    remote.rename(feed.parent / "away")
    remote.write_text("no folder")
    assert retrain(feed, prefect).returncode in (65, 75)
    assert registry(feed)["champion"] == 3
    promoted = state_of(clone)
    remote.unlink()
    (feed.parent / "away").rename(remote)

    web.put("corrupt\n")
    for _ in range(2):
        assert retrain(feed, prefect).returncode == 65
        assert state_of(clone) == promoted

    web.put("w.jpg,a boat\n" * 2)
    hook: list[dict] = []
    with listening(hook) as address:
        again = retrain(feed, prefect, IMAGE_CAPTIONING_WEBHOOK=address)
    assert again.returncode == 0, again.stderr
    assert "models:/m/3 is promoted in the place of version 2" in again.stdout
    assert [sent["event"] for sent in hook] == ["image-captioning.retrain.promoted"]
    assert "nothing new" in retrain(feed, prefect).stdout


@pytest.mark.slow
def test_a_years_weeks_are_kept_to_the_bound(feed: Path, web: Web, prefect: dict[str, str]) -> None:
    set_params(feed, {"retrain.keep": 2})
    git(feed, "commit", "-qam", "keep two")
    web.put("w.jpg,a\n" * 9)
    sizes = []
    for rows in range(9, 3, -1):  # the first stays champion
        web.put(f"w.jpg,week {rows}\n" * rows)
        assert retrain(feed, prefect).returncode == 0
        sizes.append(len([path for path in (feed / ".dvc/cache/files").rglob("*") if path.is_file()]))
    assert sizes[-1] == sizes[-2] == sizes[-3]
    assert len(branches(feed)) == 3
    assert registry(feed)["champion"] == 10
    of_champion = feed.parent / "champion"
    commit = registry(feed)["tags"]["10"]
    subprocess.run(["git", "clone", "-q", str(feed), str(of_champion)], check=True)
    git(of_champion, "checkout", "-q", commit)
    run(of_champion, "dvc", "cache", "dir", "--local", str(feed / ".dvc/cache"))
    assert run(of_champion, "dvc", "checkout", "-q").returncode == 0
    assert (of_champion / "data/raw/feed/captions.csv").read_text() == "w.jpg,week 9\n" * 9
