"""How fast a model learns: `finetune` with default settings beside the usual notebook's recipe, from the same start.

The notebook's recipe: stock transformers, the whole model, AdamW at a constant 5e-5, a batch of two captions padded to
the longest that the tokenizer knows, 20 epochs. It gets as much time for its steps alone as `pipeline.finetune` takes
with all that it does (start, features, validation, states). Both are judged by CIDEr-D of greedy captions of the
sample's validation pictures; the table of it after each epoch is in benchmarks/results/learning.md.
"""

from __future__ import annotations

import io
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks import Figure
from benchmarks._workspace import ROOT, run, workspace
from pipeline.data.dataset import Example, PictureReader, read_examples
from pipeline.evaluation.metrics.cider import cider_d
from pipeline.evaluation.ptb.tokens import ptb_tokenize
from pipeline.models.captioner import Captioner
from pipeline.training.history import read_history

EPOCHS, BATCH, RATE = 20, 2, 5e-5
GOAL = 1.0  # times what the notebook's recipe reaches in the same time
RESULT = Path(__file__).parent / "results" / "learning.md"


def notebook(dataset: Path, start: Path) -> Iterator[tuple[float, Path]]:
    """The notebook's recipe; after each epoch the seconds that its steps took so far, and a folder with the model."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(start)
    processor = transformers.AutoProcessor.from_pretrained(start)
    reader, examples = PictureReader(dataset / "train"), read_examples(dataset / "train")
    pairs = [(example.file_name, caption) for example in examples for caption in example.captions]

    def item(pair: tuple[str, str]) -> dict[str, torch.Tensor]:
        made = processor(images=_picture(reader, pair[0]), text=pair[1], padding="max_length", truncation=True,
                         return_tensors="pt")  # fmt: skip
        return {name: value.squeeze(0) for name, value in made.items() if name != "token_type_ids"}

    items = [item(pair) for pair in pairs]  # once: a notebook's pictures fit into memory
    loader = DataLoader(items, shuffle=True, batch_size=BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    took = 0.0
    for _ in range(EPOCHS):
        begin = time.perf_counter()
        model.train()
        for batch in loader:
            loss = model(**batch, labels=batch["input_ids"]).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        took += time.perf_counter() - begin
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
            yield took, Path(folder)


def cider(folder: Path, reader: PictureReader, examples: list[Example]) -> float:
    """The mean CIDEr-D of greedy captions."""
    captioner = Captioner.from_folder(folder)
    said = []
    for first in range(0, len(examples), 32):
        pictures = [_picture(reader, example.file_name) for example in examples[first : first + 32]]
        said += captioner.caption(pictures, max_tokens=48)
    references = [[ptb_tokenize(caption) for caption in example.captions] for example in examples]
    return statistics.fmean(cider_d([ptb_tokenize(caption) for caption in said], references))


def _picture(reader: PictureReader, name: str) -> Image.Image:
    return Image.open(io.BytesIO(reader.read(name))).convert("RGB")


def figures() -> list[Figure]:
    """The best of ours over the best that the notebook's recipe reaches in the same time."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = workspace(Path(temporary), {})
        shutil.copytree(ROOT / "data/raw/sample", folder / "data/raw/sample")
        for stage in ("ingest", "build"):
            run(folder, "-m", f"pipeline.{stage}", *(["sample"] if stage == "ingest" else []))
        begin = time.perf_counter()
        run(folder, "-m", "pipeline.finetune")
        ours = time.perf_counter() - begin
        curve = read_history(folder / "reports/finetune.csv")
        dataset, start = folder / "data/dataset", ROOT / "models/git-demo"
        held_out, reader = read_examples(dataset / "validation"), PictureReader(dataset / "validation")
        before = cider(start, reader, held_out)
        theirs = [(took, cider(model, reader, held_out)) for took, model in notebook(dataset, start)]
    best = max(epoch.validation_cider for epoch in curve)
    in_time = max((value for took, value in theirs if took <= ours), default=before)
    _write(ours, before, [epoch.validation_cider for epoch in curve], theirs)
    return [
        Figure(
            figure="validation CIDEr-D of `finetune` with default settings,"
            " beside the notebook's recipe for as many seconds",
            value=round(best / in_time, 3),
            unit="x",
            goal=GOAL,
            better="higher",
            runs=1,
            a=f"ours: {best:.3f}",
            b=f"the notebook's recipe: {in_time:.3f}",
        )
    ]


def _write(ours: float, before: float, curve: list[float], theirs: list[tuple[float, float]]) -> None:
    within = sum(took <= ours for took, _ in theirs)
    lines = [
        "# CIDEr-D of the validation pictures after each epoch",
        "",
        f"Both start from git-demo ({before:.3f}), on the sample of this repository. `python -m pipeline.finetune` with"
        f" default settings took {ours:.0f} s in all; the notebook's recipe (stock transformers, the whole model, AdamW"
        f" at a constant {RATE:g}, {BATCH} captions a step, padded) ended {within} of its {EPOCHS} epochs in that time,"
        f" and took {theirs[-1][0]:.0f} s in all for its steps alone.",
        "",
        "| epoch | default settings | the notebook's recipe | after so many seconds |",
        "|---|---|---|---|",
    ]
    for k, (took, value) in enumerate(theirs):
        mine = f"{curve[k]:.3f}" if k < len(curve) else ""
        lines.append(f"| {k + 1} | {mine} | {value:.3f} | {took:.0f}{'' if took <= ours else ' (beyond ours)'} |")
    RESULT.write_text("\n".join(lines) + "\n")
