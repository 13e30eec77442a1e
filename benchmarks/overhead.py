"""What the loop costs where it has nothing to do: beside DVC itself, and beside the imports that are avoided."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import Figure, ratio
from benchmarks._workspace import set_params
from pipeline.synthetic.sample import write_sample

ROOT = Path(__file__).parent.parent
RUNS = 9
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "DVC_NO_ANALYTICS": "1",
}
NEW = (["git", "init", "-q"], ["dvc", "init", "-q"])
# As many stages as ours has, of which none does anything.
PLAIN = "stages:\n" + "".join(
    f"  s{k}:\n    cmd: cp in{k} in{k + 1}\n    deps: [in{k}]\n    outs: [in{k + 1}]\n" for k in range(5)
)


def command(folder: Path, *words: str) -> Callable[[], object]:
    """Runs a command in a folder."""
    return lambda: subprocess.run(words, cwd=folder, env=ENVIRONMENT, check=True, capture_output=True)


def ours(folder: Path) -> Path:
    """A copy of the repository, on a small sample, in which everything is up to date."""
    shutil.copytree(ROOT / "pipeline", folder / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    for path in ("models/git-demo", "data/excluded"):
        shutil.copytree(ROOT / path, folder / path)
    write_sample(folder / "data" / "raw" / "small", pictures=60)
    set_params(folder, {"ingest.sources": ["small"], "finetune.epochs": 1})
    for words in (*NEW, ["dvc", "add", "-q", "data/raw/small"], ["dvc", "repro"]):
        command(folder, *words)()
    return folder


def plain(folder: Path) -> Path:
    """A DVC repository of five stages that do nothing."""
    folder.mkdir()
    (folder / "dvc.yaml").write_text(PLAIN)
    (folder / "in0").write_text("x")
    for words in (*NEW, ["dvc", "repro"]):
        command(folder, *words)()
    return folder


def figures() -> list[Figure]:
    """Both figures."""
    with tempfile.TemporaryDirectory() as temporary:
        here, other = ours(Path(temporary) / "ours"), plain(Path(temporary) / "plain")
        return [
            ratio(
                "`dvc repro` with nothing to do",
                ("our five stages", command(here, "dvc", "repro")),
                ("five stages of `cp`", command(other, "dvc", "repro")),
                goal=1.5,
                runs=RUNS,
            ),
            ratio(
                "`python -m pipeline.finetune --help`",
                ("our command", command(ROOT, sys.executable, "-m", "pipeline.finetune", "--help")),
                ("`import torch`", command(ROOT, sys.executable, "-c", "import torch")),
                goal=0.5,
                runs=RUNS,
            ),
        ]
