"""Run the benchmarks, write their results, and put the table of all results into docs/benchmarks.md."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import psutil

from benchmarks import UnavailableError

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
LIBRARIES = ("torch", "transformers", "dvc", "mlflow", "prefect", "pillow", "numpy")


def hardware() -> dict[str, object]:
    """What it was measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = round(psutil.virtual_memory().total / 2**30)
    return {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count(), "memory_gib": memory}


def table() -> str:
    """All results as a Markdown table."""
    lines = ["| | measured | goal | a | b |", "|---|---|---|---|---|"]
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        for figure in result["figures"]:
            sign = "at least" if figure["better"] == "higher" else "at most"
            value, goal = f"{figure['value']:g} {figure['unit']}", f"{sign} {figure['goal']:g} {figure['unit']}"
            lines.append(f"| {figure['figure']} | **{value}** | {goal} | {figure['a']} | {figure['b']} |")
    return "\n".join(lines)


def main() -> None:
    """Command line: all benchmarks, or those that are named."""
    every = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure, and write benchmarks/results.")
    parser.add_argument("name", nargs="*", metavar="NAME", help=f"of {', '.join(every)} (default: all)")
    names = parser.parse_args().name or every
    RESULTS.mkdir(exist_ok=True)
    for name in names:
        print(f"bench: {name} ...", flush=True)
        try:
            figures = importlib.import_module(f"benchmarks.{name}").figures()
        except UnavailableError as reason:
            print(f"  left out, its last results stay: {reason}")
            continue
        versions = {"python": platform.python_version(), **{library: version(library) for library in LIBRARIES}}
        result = {"hardware": hardware(), "versions": versions, "figures": [asdict(figure) for figure in figures]}
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
        for figure in figures:
            print(
                f"  {figure.figure}: {figure.value:g} {figure.unit} (goal {figure.goal:g}, {figure.better} is better)"
            )
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}")
    print(f"bench: the results are in {RESULTS.relative_to(HERE.parent)} and in {PAGE.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
