"""The page *Models*: versions with their scores, the gate's decisions, promoting, rolling back, retraining."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app.background import RETRAIN_LOG, is_retraining, log_tail, run, start_retraining
from app.deployment import Deployment, served
from app.session import client, corrections, escaped, load_params, person, warn_if_in_use
from pipeline.commands.watch import REPORT
from pipeline.config.params import Params
from pipeline.runtime.atomic_files import read_json
from pipeline.serving import feedback
from pipeline.serving.client import ServiceError
from pipeline.serving.corrections import FOLDER
from pipeline.tracking import registry
from pipeline.tracking.decision import AGAINST, APPROVED_BY, CORRECTIONS, DECISION, REASONS, VOTES, WAITS
from pipeline.tracking.ui import mlflow_pages

_METRICS = ("CIDEr-D", "CIDEr", "BLEU-4", "ROUGE-L", "METEOR", "SPICE", "distinct_captions")
_SHOWN = 20  # the newest versions
_WORDS = {WAITS: "waits for approval"}


def page() -> None:
    """Show the page."""
    st.header("Models")
    params = load_params()
    warn_if_in_use()
    try:
        current = client().model()
        st.text(f"The service captions with {current.source}.")
    except ServiceError as error:
        st.text(f"The service captions with no model: {error}")
    if outcome := st.session_state.pop("outcome", None):
        (st.success if outcome[0] else st.error)(escaped(outcome[1]))
    with st.spinner("Asking MLflow ..."):
        versions, champion = _versions(params)
    if versions:
        _table(versions)
        _approve(versions)
        _people(versions)
        _drift(params)
        _change(versions, champion)
    else:
        st.info("No version is registered yet. Run `dvc repro`: its last stage registers the model.")
    _retraining(params)


def _versions(params: Params) -> tuple[list[dict[str, Any]], int | None]:
    """Return the newest versions as rows of the table, the newest first, and the champion.

    Raises:
        TemporaryError: MLflow can't be reached.
    """
    from pipeline.tracking import runs

    model = params.register_.model
    rows = []
    with runs.reachable():
        store = runs.client()
        champion = registry.champion(store, model)
        feedback.publish(params)
        for version in registry.versions_with_tags(store, model)[-_SHOWN:][::-1]:
            found = registry.figures(store, registry.run_of(store, model, version.number))
            decided = version.tags.get(DECISION, "not compared")
            decision = _WORDS.get(decided, decided)
            if AGAINST in version.tags:
                decision += f" (against {version.tags[AGAINST]})"
            if APPROVED_BY in version.tags:
                decision += f", approved by {version.tags[APPROVED_BY]}"
            if registry.ROLLED_BACK in version.tags:
                decision += ", rolled back"
            rows.append(
                {
                    "version": version.number,
                    "champion": "🏆" if version.number == champion else "",
                    "gate": decision,
                    **{name: round(found.metrics[name], 3) for name in _METRICS if name in found.metrics},
                    "votes": version.tags.get(VOTES, ""),
                    "corrections": version.tags.get(CORRECTIONS, ""),
                    "reasons": version.tags.get(REASONS, ""),
                    "waits": decided == WAITS and registry.ROLLED_BACK not in version.tags,
                }
            )
    return rows, champion


def _table(versions: list[dict[str, Any]]) -> None:
    hidden = ("reasons", "waits", "votes", "corrections")
    st.dataframe([{key: row[key] for key in row if key not in hidden} for row in versions], hide_index=True)
    with st.expander("Why the gate decided so"):
        for row in versions:
            st.text(f"Version {row['version']}: {row['gate']}\n{row['reasons']}")
    if address := mlflow_pages():
        st.link_button("Curves, params and pictures of every run in MLflow", address)
    else:
        st.caption("Curves, params and pictures of every run: `image-captioning ui` opens MLflow.")


def _said(row: dict[str, Any]) -> str:
    """Return what people said of a version, in lines."""
    labels = {"votes": "Votes", "corrections": "Captions that people judged"}
    return "\n".join(f"{label}: {row[key]}" for key, label in labels.items() if row.get(key))


def _people(versions: list[dict[str, Any]]) -> None:
    """Show what people said of each version; the same words are in the tags of the versions in MLflow."""
    judged = [row for row in versions if _said(row)]
    if judged:
        with st.expander("What people said"):
            for row in judged:
                st.text(f"Version {row['version']}\n{_said(row)}")


def _drift(params: Params) -> None:
    """Show the last report of `image-captioning watch`."""
    if not REPORT.is_file():
        return
    report = read_json(REPORT)
    weeks = [week for week in report["weeks"] if week["alarms"]]
    with st.expander("Drift of what the service sees", expanded=bool(weeks)):
        if weeks:
            words = ", ".join(f"{word} {before:.0%} to {now:.0%}" for word, before, now in weeks[-1]["words"])
            st.warning(escaped(f"{weeks[-1]['week']}: drift of {' and '.join(weeks[-1]['alarms'])} ({words})"))
        st.dataframe(_drift_rows(report), hide_index=True)
        weekly = (
            "`image-captioning serve` runs it every Monday, and a new alarm starts a retraining"
            if params.retrain.on_drift
            else "an alarm starts no retraining, unless `retrain.on_drift` is set"
        )
        st.caption(
            f"Version {report['version']} against the validation split. `image-captioning watch` updates this;"
            f" {weekly}. In brackets: 95 % confidence intervals, and how many captions people judged."
        )


def _drift_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each week in which pictures were compared or captions were judged, in order of time."""
    looks = {week["week"]: week for week in report["weeks"]}
    rates = {rate["week"]: rate for rate in report.get("edit_rates", [])}
    rows = []
    for name in sorted(looks.keys() | rates.keys()):
        row: dict[str, Any] = {"week": name, "pictures": None, "drift": "", "confidence": "", "changed by people": ""}
        if week := looks.get(name):
            row["pictures"] = week["pictures"]
            row["drift"] = ", ".join(week["alarms"]) or "none"
            row["confidence"] = "{:.2f} ({:.2f} to {:.2f})".format(*week["confidence"])
        if rate := rates.get(name):
            row["changed by people"] = "{rate:.0%} ({low:.0%} to {high:.0%}, {judged})".format(**rate)
        for key in ("pictures", "words", "confidence"):
            row[f"p {key}"] = float(f"{week[f'p_{key}']:.2g}") if week else None
        row["alarm below"] = float(f"{week['threshold']:.2g}") if week else None
        rows.append(row)
    return rows


def _approve(versions: list[dict[str, Any]]) -> None:
    """Show the versions that wait for a person, with what speaks for and against them."""
    who = person()
    for row in versions:
        if not row["waits"]:
            continue
        with st.container(border=True):
            st.text(f"Version {row['version']} waits for approval.\n{row['reasons']}")
            st.text(_said(row) or "Nobody has voted on it yet: compare it with the champion on Caption.")
            label = f"Approve version {row['version']}"
            if st.button(label, type="primary", disabled=not who):
                _command("promote", "--approve", f"{row['version']}", f"--by={who}")
            if not who:
                st.caption("Write your name at the top to approve it.")


def _change(versions: list[dict[str, Any]], champion: int | None) -> None:
    number = st.selectbox("Version", [row["version"] for row in versions])
    with st.container(horizontal=True):
        if st.button("Compare and promote if better", disabled=number == champion):
            _command("promote", "--challenger", f"{number}")
        if st.button("Roll back the champion", disabled=champion is None):
            _command("promote", "--rollback")


def _command(*words: str) -> None:
    with st.spinner("This may take minutes ..."):
        st.session_state["outcome"] = run(*words)
    st.rerun()


def _retraining(params: Params) -> None:
    st.subheader("Retrain")
    saved = len(corrections(params).counting())
    if saved and FOLDER.name not in params.ingest.sources:
        st.warning(
            f"{saved} corrections are saved, but no training uses them yet. Add `{FOLDER.name}` to `ingest.sources` in"
            " params.yaml and commit that."
        )
    if deployment := served():
        _by_prefect(deployment)
    else:
        _here()


def _by_prefect(deployment: Deployment) -> None:
    """Start and watch a retraining of the deployment that `image-captioning serve` serves."""
    newest = deployment.run()
    if newest and newest.active:
        st.info(f"A retraining is {escaped(newest.state.lower())}: {escaped(newest.name)}.")
    elif newest:
        st.text(f"The last retraining, {newest.name}: {newest.state}. {newest.message}")
    with st.container(horizontal=True):
        if newest and newest.active:
            st.button("Refresh")
        elif st.button("Start a retraining"):
            deployment.start()
            st.rerun()
        if newest:
            st.link_button("This run in Prefect", newest.link)
        st.link_button("Prefect", f"{deployment.pages}/deployments")


def _here() -> None:
    """Start and watch a retraining as a child of the page."""
    if is_retraining():
        st.info("A retraining is running. It checks the sources, trains on what is new, and promotes a better model.")
        st.button("Refresh")
    elif st.button("Start a retraining"):
        start_retraining()
        st.rerun()
    if tail := log_tail(RETRAIN_LOG):
        st.code(tail, language=None, wrap_lines=True)
    st.caption("`image-captioning serve` retrains on a schedule, and shows its runs in Prefect.")
