"""The retraining flow, in its own clone: check for updates, fetch, run the stages, promote, publish, delete old data.

    image-captioning retrain

The flow uses what is committed in this workspace. If no source has changed since the last retraining and nothing else
is left to do, the run ends within seconds as "nothing new". If a stage rejects the data (exit code 65), the flow
restores the previous data; the previous model and champion stay in place.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed
from ruamel.yaml import YAML

from flows import causes
from flows.exec import artifacts, running, stages, tasks
from flows.steps import notify
from flows.steps.check_updates import DONE
from flows.train import register, run_stages, show_status
from flows.workspace import clone, reconcile
from pipeline.config import paths
from pipeline.config.errors import ConfigError, PipelineError
from pipeline.config.params import Params, load
from pipeline.config.sections.finetune import REGISTERED
from pipeline.runtime.atomic_files import swapped_in, write_json
from pipeline.tracking.decision import WAITS
from pipeline.tracking.gate import check_metric

# The final state's name for each decision.
_ENDS = {"promoted": "Promoted", "first": "Promoted", "kept": "Kept", WAITS: "Waits for approval"}
_NOTHING = "Nothing new"
_WAIT_MINUTES = 60.0  # for the clone, if it has no params yet


@flow(
    name="retrain", description="Check for new data, fetch it, retrain, and promote the model if it beats the champion."
)
def retrain() -> State | None:
    """Retrain if there is something new. Return the final state, with a one-line message."""
    return running.with_failures(_retrain)


def _retrain() -> State:
    workspace, log = Path.cwd(), get_run_logger().info
    died = bool(reconcile.dead_runs(workspace, log))
    reconcile.missed_runs(log)
    webhook = _webhook()
    try:
        with (
            reconcile.recorded_run(workspace),
            clone.entered(workspace),
            running.workspace_locked("`flows.retrain`", _wait_minutes(), log),
        ):
            reconcile.half_written(log)
            reconcile.dead_lock(log)
            clone.synchronize(workspace)
            params = load()
            webhook = params.flow.webhook
            check_metric(params.promote)  # now, not after hours of training
            return _work(params, workspace, died)
    except Exception as failure:
        own = isinstance(failure, stages.StageError | PipelineError)
        words = str(failure) if own else f"{type(failure).__name__}; the run's log has more"
        notify.send("failed", words, webhook, get_run_logger().warning, {})
        raise


def _webhook() -> str | None:
    """Return the webhook in the params of the current folder; None if they cannot be read."""
    try:
        return load().flow.webhook
    except ConfigError:
        return None


def _wait_minutes() -> float:
    try:
        return load().flow.wait_minutes
    except ConfigError:  # the clone is new, or the params committed last time are invalid
        return _WAIT_MINUTES


def _work(params: Params, workspace: Path, died: bool) -> State:
    where = ("--workspace", str(workspace))
    if died:
        tasks.step(params, "close_dead_runs", "pipeline.tracking.retention", "close-dead-runs", ours=True)
    if params.retrain.start == "champion":
        params = _start_from(_last_start())
    found = tasks.step(params, "check_updates", "flows.steps.check_updates", *where, ours=True)
    cause = causes.of_retraining(found)
    running.add_to_name(cause)
    if not found["changed"] and not found["stale"] and found["ended"]:
        clone.forget()  # the last run may have been killed after it recorded its end
        return Completed(name=_NOTHING, message="nothing new: no source has changed since the last retraining")
    if (
        not found["changed"]
        and found["ended"]
        and (reason := causes.no_reason(found["stale"], params.retrain.on_code_change))
    ):
        clone.forget()
        return Completed(name=_NOTHING, message=reason)
    clone.remember()
    try:
        if found["changed"]:
            tasks.step(params, "fetch", "flows.steps.fetch", *where, "--source", *found["changed"], ours=True)
        # If only the end of the last run is missing, the champion may be this very model: do not train it from itself.
        if params.retrain.start == "champion" and (found["changed"] or found["stale"]):
            checkpoint = tasks.step(params, "start_checkpoint", "pipeline.tracking.retention", "start", ours=True)
            params = _start_from(checkpoint)
        outcomes = run_stages(params)
    except stages.StageError as failure:
        if failure.code == stages.DATA:
            _restore_data(params, where)
        raise
    if outcomes["register"] == "nothing":
        if found["ended"]:
            _end()
            return Completed(name=_NOTHING, message="nothing new: the stages made what they had made before")
        register(params)
    status = show_status(params)
    # Before the version can become champion: from here on its data are kept even if the run is killed.
    since = ("--since", str(clone.began()))
    aside, commit = clone.put_aside("registered, and not yet published")
    _tag_version(params, commit, "none", since)
    clone.accept()
    promoted = _promote(params, status["version"], since)
    head = _headline(promoted)
    reasons = "".join(f"* {reason}\n" for reason in promoted["reasons"])
    message = ("--message", f"Retrained: {head}\n\n{reasons}")
    published = tasks.step(params, "publish", "flows.steps.publish", *message, ours=True)
    _tag_version(params, published["commit"], published["branch"], since)
    clone.forget_ref(aside)
    artifacts.words("retraining", _page(reasons, promoted, published, found["changed"]), head)
    words = f"{head}: {'; '.join(promoted['reasons'])}"
    facts = {**promoted, **published}
    notify.send(promoted["decision"], words, params.flow.webhook, get_run_logger().warning, facts)
    _end()  # after the notification: if the run is killed between the two, it is sent twice, not lost
    _delete_old(params, where)
    return Completed(name=_ENDS[promoted["decision"]], message=f"{words}; cause: {cause}")


def _promote(params: Params, version: int, since: tuple[str, str]) -> dict[str, Any]:
    """Compare this model, which need not be the newest version, with the champion; return the report."""
    arguments = ("promote", "--challenger", str(version), "--unless-rolled-back", *since)
    report: dict[str, Any] = tasks.step(params, "promote", "pipeline.cli", *arguments, prefix="promote")
    return report


def _tag_version(params: Params, commit: str, branch: str, since: tuple[str, str]) -> None:
    """Tag the version with the commit that keeps its data."""
    named = ("--commit", commit, "--branch", branch, *since)
    tasks.step(params, "tag_version", "pipeline.tracking.retention", "tag-version", *named, ours=True)


def _end() -> None:
    """Record that a retraining finished with the current data."""
    with swapped_in(DONE) as (place,):
        write_json(place, clone.data_state())
    clone.forget()


def _restore_data(params: Params, where: tuple[str, str]) -> None:
    """Restore the data of before the fetch. If that fails, the first failure stays the run's message."""
    try:
        tasks.step(params, "restore_data", "flows.steps.fetch", "--undo", *where, ours=True)
        _delete_old(params, where)
    except stages.StageError as failure:
        get_run_logger().error("restoring the previous data or deleting old data failed: %s", failure)


def _delete_old(params: Params, where: tuple[str, str]) -> None:
    keep = ("--keep", str(params.retrain.keep))
    commits = tasks.step(
        params, "delete_old_versions", "pipeline.tracking.retention", "delete-old-versions", *keep, ours=True
    )["commits"]
    keep_commits = ("--keep-commit", *commits) if commits else ()
    tasks.step(params, "delete_old_data", "flows.steps.delete_old_data", *where, *keep_commits, ours=True)


def _last_start() -> str | None:
    """Return the registered version that the last training started from, as in `dvc.lock`; None if it was not one."""
    if not paths.DVC_LOCK.is_file():
        return None
    stage = YAML(typ="safe", pure=True).load(paths.DVC_LOCK.read_text(encoding="utf-8"))["stages"].get("finetune", {})
    settings = stage.get("params", {}).get(paths.PARAMS.name, {}).get("finetune", {})
    checkpoint = str(settings.get("checkpoint", ""))
    return checkpoint if checkpoint.startswith(REGISTERED) else None


def _start_from(checkpoint: str | None) -> Params:
    """Set `finetune.checkpoint` in the clone's params, if a checkpoint is given. Return the params."""
    if checkpoint:
        yaml = YAML()
        yaml.preserve_quotes = True
        yaml.width = 4096
        content = yaml.load(paths.PARAMS.read_text(encoding="utf-8"))
        content["finetune"]["checkpoint"] = checkpoint
        with paths.PARAMS.open("w", encoding="utf-8") as file:
            yaml.dump(content, file)
    return load()


def _headline(promoted: Mapping[str, Any]) -> str:
    """Return the decision in one line, without the reasons."""
    model, challenger, champion = promoted["model"], promoted["challenger"], promoted["champion"]
    if promoted["decision"] == "kept":
        stays = f"version {champion} stays" if champion else "there is no champion"
        return f"models:/{model}/{challenger} is not promoted, {stays}"
    if promoted["decision"] == WAITS:
        stays = f"version {champion} stays until then" if champion else "there is no champion"
        return (
            f"models:/{model}/{challenger} waits for approval, {stays}; approve it with `image-captioning promote"
            f" --approve {challenger}` or on the page Models"
        )
    instead = f"in the place of version {champion}" if champion else "as the first champion"
    return f"models:/{model}/{challenger} is promoted {instead}"


def _page(reasons: str, promoted: Mapping[str, Any], published: Mapping[str, str], changed: Sequence[str]) -> str:
    """Return a summary of the retraining and the reasons for the decision, in Markdown."""
    champion = promoted["metrics"].get("champion") or {}
    lines = ["| figure | challenger | champion | change |", "|---|---:|---:|---:|"]
    for name, value in promoted["metrics"].get("challenger", {}).items():
        beside = champion.get(name)
        rest = f"{beside:.4f} | {value - beside:+.4f}" if isinstance(beside, int | float) else " | "
        lines.append(f"| {name} | {value:.4f} | {rest} |")
    news = ", ".join(f"`{name}`" for name in changed) or "no data; stages were stale, or the last run did not finish"
    return f"""{reasons}
{chr(10).join(lines)}

* What was new: {news}.
* The data are in the commit `{published["commit"][:12]}`, branch: `{published["branch"]}`.
"""


if __name__ == "__main__":
    sys.exit(running.main(retrain, "done"))
