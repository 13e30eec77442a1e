"""`image-captioning`: help, usage errors, exit codes, and each command's work through the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline import cli
from pipeline.commands import status
from pipeline.config import paths
from pipeline.runtime import local_server, process_identity, workspace_lock
from pipeline.runtime.atomic_files import read_json, write_json
from tests.conftest import ROOT, environment, jpeg, run, set_params

COMMANDS = [
    *("caption", "serve-model", "app", "corrections", "score", "promote", "trained-on", "ui", "status", "doctor"),
    *("train", "retrain", "serve", "init", "add-bucket"),
]
COMMAND = (sys.executable, "-m", "pipeline.cli")
UNREACHABLE = "http://127.0.0.1:9"  # the discard port: nothing answers


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_examples(command: str, flag: str) -> None:
    done = CliRunner().invoke(cli.app, [command, flag])
    assert done.exit_code == 0
    assert f"Usage: image-captioning {command}" in done.stdout
    assert f"  image-captioning {command}" in done.stdout.partition("Examples:")[2]


def test_without_a_command_it_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    done = CliRunner().invoke(cli.app, [])
    assert done.exit_code == 0
    for command in COMMANDS:
        assert f"  {command}" in done.stdout


def test_the_installed_command_shows_its_version_from_any_folder(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("image-captioning")
    if not script.exists():
        pytest.skip("the package was installed before it had this command; run `make setup`")
    done = run(tmp_path, str(script), "--version")
    assert done.returncode == 0
    assert done.stdout.startswith("image-captioning 0.")


def test_the_shell_completes_commands() -> None:
    asked = {"_IMAGE_CAPTIONING_COMPLETE": "complete_bash", "COMP_WORDS": "image-captioning tra", "COMP_CWORD": "1"}
    assert set(run(ROOT, *COMMAND, **asked).stdout.split()) == {"trained-on", "train"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["captoin"], "No such command 'captoin'. Did you mean 'caption'"),
        (["--wrong"], "No such option"),
        (["caption"], "Missing argument 'PHOTO...'"),
        (["caption", "x.jpg", "--seed", "-1"], "Invalid value for '--seed'"),
        (["caption", "x.jpg", "--seed", "4294967296"], "Invalid value for '--seed'"),
        (["caption", "x.jpg", "--several", "0"], "Invalid value for '--several'"),
        (["caption", "x.jpg", "--several", "101"], "Invalid value for '--several'"),
        (["caption", "x.jpg", "--several", "many"], "Invalid value for '--several'"),
        (["score"], "Missing argument 'PREDICTIONS'"),
        (["score", "p.jsonl", "--seed", "-1"], "Invalid value for '--seed'"),
        (["promote", "--challenger", "0"], "Invalid value for '--challenger'"),
        (["promote", "--since", "-1"], "Invalid value for '--since'"),
        (["promote", "2"], "unexpected extra argument"),
        (["trained-on"], "Missing argument 'PICTURE...'"),
        (["add-bucket"], "Missing argument 'NAME'"),
        (["ui", "--port", "0"], "Invalid value for '--port'"),
        (["ui", "--port", "65536"], "Invalid value for '--port'"),
        (["status", "--all"], "No such option"),
        (["train", "now"], "unexpected extra argument"),
        (["retrain", "--force"], "No such option"),
        (["serve"], "Missing option '--cron'"),
        (["serve", "--cron", "0 3 * * 1", "--port", "70000"], "Invalid value for '--port'"),
    ],
)
def test_wrong_usage_is_one_line_and_78(words: list[str], message: str) -> None:
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 78
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert "--help`" in done.stderr


@pytest.mark.parametrize(
    ("words", "becomes"),
    [
        (["train"], ["flows.train"]),
        (["retrain"], ["flows.retrain"]),
        (
            ["serve", "--cron", "0 3 * * 1"],
            ["flows.serve", "--cron=0 3 * * 1", "--timezone=UTC", "--port=4200"],
        ),
        (
            ["serve", "--cron", "5 4 * * *", "--timezone", "Europe/Berlin", "--port", "4300"],
            ["flows.serve", "--cron=5 4 * * *", "--timezone=Europe/Berlin", "--port=4300"],
        ),
    ],
)
def test_flows_replace_the_process(words: list[str], becomes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, command: started.append(command))
    CliRunner().invoke(cli.app, words)
    assert started == [[sys.executable, "-m", *becomes]]


def test_outside_a_workspace_it_says_where_to_run(tmp_path: Path) -> None:
    done = run(tmp_path, *COMMAND, "status", PYTHONPATH=str(ROOT))
    assert done.returncode == 78
    assert "params.yaml: not found" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["--challenger", "1"], ["--force"]])
def test_rollback_takes_neither_challenger_nor_force(workspace: Path, words: list[str]) -> None:
    done = run(workspace, *COMMAND, "promote", "--rollback", *words, PYTHONPATH=str(ROOT))
    assert done.returncode == 78
    assert done.stderr == f"promote: --rollback: cannot be combined with {words[0]}; use one of the two\n"


def test_an_engine_for_single_photos_is_refused(workspace: Path) -> None:
    done = run(workspace, *COMMAND, "caption", "photo.jpg", "--engine", "ray", PYTHONPATH=str(ROOT))
    assert done.returncode == 78
    assert done.stderr == "caption: --engine ray: needs --out; add it, or leave this out\n"


@pytest.mark.parametrize("words", [["caption", "photo.jpg"], ["promote"], ["trained-on", "photo.jpg"]])
def test_an_unreachable_mlflow_is_one_line_and_75(workspace: Path, words: list[str]) -> None:
    (workspace / "photo.jpg").write_bytes(jpeg())
    quick = {"MLFLOW_TRACKING_URI": UNREACHABLE, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "PYTHONPATH": str(ROOT)}
    done = run(workspace, *COMMAND, *words, **quick)
    assert done.returncode == 75
    assert done.stderr.count("\n") == 1
    assert f"MLflow at {UNREACHABLE} can't be used" in done.stderr


@pytest.mark.parametrize("words", [["caption", "photo.jpg"], ["promote"]])
def test_an_empty_registry_says_what_to_run(workspace: Path, mlflow_db: Path, words: list[str]) -> None:
    (workspace / "photo.jpg").write_bytes(jpeg())
    shutil.copy(mlflow_db, workspace)
    done = run(workspace, *COMMAND, *words, PYTHONPATH=str(ROOT))
    assert done.returncode == 78
    assert "models:/image-captioning: has no version in MLflow; run `dvc repro`" in done.stderr
    assert done.stderr.count("\n") == 1


# --- status ---


def read() -> dict[str, Any]:
    return status.read_status()


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    status.show_status()
    return capsys.readouterr().out


def commands(found: dict[str, Any]) -> list[str]:
    return [step["command"] for step in found["next"]]


def test_status_of_a_fresh_clone_creates_nothing_and_says_make_demo(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_params(workspace, {"finetune.checkpoint": status.DEMO_CHECKPOINT})
    (workspace / status.DEMO_CHECKPOINT).mkdir(parents=True)
    text = shown(capsys)
    assert "data/raw/sample: not found" in text
    assert "no registered version yet" in text
    assert "not scheduled: `image-captioning serve --cron" in text
    assert "running now: nothing" in text
    assert text.splitlines()[-1].startswith("Next:        make demo")
    assert {path.name for path in workspace.iterdir()} == {"params.yaml", "models"}


def test_status_before_setup_says_make_setup(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_params(workspace, {"finetune.checkpoint": status.DEMO_CHECKPOINT})
    (workspace / "models").mkdir()
    (workspace / f"{status.DEMO_CHECKPOINT}.dvc").write_text("outs: []\n")
    text = shown(capsys)
    assert "'models/git-demo' is tracked by DVC but not in the workspace" in " ".join(text.split())
    assert text.splitlines()[-1].startswith("Next:        make setup")


def test_status_says_what_is_wrong_with_params(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    set_params(workspace, {"build.tests": 0.5})
    assert "params.yaml: build.tests: unknown key" in shown(capsys)
    assert commands(read()) == ["image-captioning status"]


def test_status_says_how_to_bring_a_missing_source(workspace: Path) -> None:
    set_params(workspace, {"ingest.sources": ["mine", "theirs"]})
    (workspace / "data/raw").mkdir(parents=True)
    (workspace / "data/raw/theirs.dvc").write_text("outs: []\n")
    assert commands(read()) == ["dvc add data/raw/mine", "dvc pull data/raw/theirs"]
    for name in ("mine", "theirs"):
        (workspace / "data/raw" / name).mkdir()
    assert commands(read()) == ["dvc repro"]


def test_status_with_an_unreachable_mlflow_says_so_and_exits_with_0(workspace: Path) -> None:
    quick = {"MLFLOW_TRACKING_URI": UNREACHABLE, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "PYTHONPATH": str(ROOT)}
    done = run(workspace, *COMMAND, "status", **quick)
    assert done.returncode == 0, done.stderr
    assert f"MLflow at {UNREACHABLE} can't be used" in " ".join(done.stdout.split())
    assert "Next:" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_status_survives_a_damaged_database(workspace: Path) -> None:
    (workspace / "mlflow.db").write_bytes(b"no database " * 100)
    done = run(workspace, *COMMAND, "status", PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert "Next:" in done.stdout


HALF_MADE = ["", "{", "null", "[]", "5", '{"model": null}', '{"pictures": 3}', '{"pictures": {}, "captions": {}}']


@pytest.mark.parametrize("content", HALF_MADE)
def test_status_survives_half_made_outputs(workspace: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (workspace / "data/raw/sample").mkdir(parents=True)
    files = ["reports/build.json", "reports/evaluate.json", "reports/register.json", "reports/ingest/sample.json"]
    files += ["reports/evaluate/captions.jsonl", "models/finetune/training.json", ".work/schedule.json"]
    files += [".work/locks/workspace.json"]
    for name in files:
        (workspace / name).parent.mkdir(parents=True, exist_ok=True)
        (workspace / name).write_text(content)
    text = shown(capsys)
    assert "can't be read" in text
    assert text.splitlines()[-1].startswith("Next:        dvc repro")


def test_status_shows_the_schedule_only_while_the_scheduler_runs(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    schedule = {"cron": "0 3 * * 1", "timezone": "UTC", "address": "http://prefect:4200", "deployment": "retrain/x"}
    schedule["pages"] = "http://localhost:8080/prefect"
    write_json(paths.SCHEDULE, {**schedule, "process": process_identity.identity()})
    assert "0 3 * * 1 (UTC), deployment retrain/x; pages at http://localhost:8080/prefect" in shown(capsys)
    write_json(paths.SCHEDULE, {**schedule, "process": "4194000:1.0"})
    assert "not scheduled" in shown(capsys)


def test_status_says_what_is_running(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    me = process_identity.identity()
    workspace_lock.take("`flows.train`", me)
    assert f"running now: `flows.train` (process {os.getpid()})" in shown(capsys)
    assert commands(read()) == ["image-captioning ui"]
    workspace_lock.give_back(me)
    assert "running now: nothing" in shown(capsys)


def test_status_after_the_loop_shows_data_model_versions_and_runs(loop: Path) -> None:
    done = run(loop, *COMMAND, "status")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    evaluated = read_json(loop / "reports/evaluate.json")
    for words in (
        f"{loop} (commit ",
        "data/raw/small: ",
        "data set: train ",
        "set aside: ",
        f"{evaluated['model']['CIDEr-D']:10.3f}",
        "nearest picture",
        "people: ",
        "models:/image-captioning/1  ",
        "(this workspace's model)",
        "there is no champion",
        "  finished",
        "image-captioning promote",
    ):
        assert words in done.stdout, words
    assert "git-demo" not in done.stdout  # this model is trained from scratch


def test_status_as_json_is_nothing_but_json_and_asks_dvc_on_request(loop: Path) -> None:
    done = run(loop, *COMMAND, "status", "--json", "--dvc")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (
        found["model"]["metrics"]["model"]["CIDEr-D"] == read_json(loop / "reports/evaluate.json")["model"]["CIDEr-D"]
    )
    assert found["registry"]["versions"] >= 1
    assert isinstance(found["stale"]["stages"], list)
    assert found["next"]


def test_a_model_of_the_demo_is_not_offered_for_photos(
    loop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(loop)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    training = read_json(loop / "models/finetune/training.json")

    def read_changed(path: Path) -> Any:
        return {**training, "checkpoint": status.DEMO_CHECKPOINT} if path.name == "training.json" else read_json(path)

    monkeypatch.setattr(status, "read_json", read_changed)
    text = shown(capsys)
    assert "git-demo, which knows only drawings" in text
    assert "image-captioning caption" not in text


def test_the_champion_captions_by_default(
    loop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.commands.caption import _default_model
    from pipeline.tracking import registry, runs

    monkeypatch.chdir(loop)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store, name = runs.client(), "image-captioning"
    assert _default_model(name)[1] == ", the newest version: there is no champion"
    registry.make_champion(store, name, 1)
    try:
        assert _default_model(name) == (f"models:/{name}/1", ", the champion")
        assert "the champion is version 1" in shown(capsys)
    finally:
        store.delete_registered_model_alias(name, registry.CHAMPION)


# --- ui ---


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that another program listens on."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_ui_says_that_its_port_is_taken(workspace: Path, taken: int) -> None:
    done = run(workspace, *COMMAND, "ui", "--port", str(taken), PYTHONPATH=str(ROOT))
    assert done.returncode == 78
    assert done.stderr == f"ui: --port {taken}: is taken or not allowed; choose another, or omit it\n"


def test_ui_takes_the_next_free_port(taken: int) -> None:
    assert taken < local_server.free_port("127.0.0.1", taken) < taken + 20


def test_ui_leaves_the_pages_to_a_server_of_its_own(workspace: Path) -> None:
    address = "http://me:secret@127.0.0.1:9"
    done = run(workspace, *COMMAND, "ui", MLFLOW_TRACKING_URI=address, PYTHONPATH=str(ROOT))
    assert done.returncode == 78
    assert "http://127.0.0.1:9 has pages of its own" in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 75)])
def test_ui_prints_its_address_when_it_answers_and_ends_with_its_server(
    workspace: Path, mlflow_db: Path, how: signal.Signals, code: int
) -> None:
    shutil.copy(mlflow_db, workspace)
    # Where these tests run in the background of a script, Ctrl-C is ignored, and children would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    server = subprocess.Popen(
        [*COMMAND, "ui"], cwd=workspace, env=environment(PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    signal.signal(signal.SIGINT, before)
    with server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ui: starting MLflow ...\n"
        address = server.stdout.readline().split()[1]
        host = address.partition("/#")[0]
        with urllib.request.urlopen(host, timeout=20) as page:
            assert b"MLflow" in page.read()
        server.send_signal(how)
        _, errors = server.communicate(timeout=60)
        assert server.returncode == code
        assert errors.count("\n") == (1 if code else 0)
    end = time.monotonic() + 20
    while not local_server.is_free("127.0.0.1", int(host.rpartition(":")[2])):
        assert time.monotonic() < end, "the server goes on"
        time.sleep(0.2)
