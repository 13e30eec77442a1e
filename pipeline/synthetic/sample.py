"""Generate the sample: synthetic scenes with Instagram-style captions, in the layout of a user's own data.

    python -m pipeline.synthetic.sample data/raw/sample

writes `images.zip` and `captions.csv`. The same seed and Pillow version give the same bytes. The sample contains some
faults of real archives on purpose, to show how ingest handles them:

* an empty caption, and one of white space only
* the same caption twice for one picture
* a caption whose picture is not in the zip
* a row with too few fields
* a picture without a caption
* the same picture under two names
* a truncated picture, and a text file named like a picture
* files that operating systems add to zips: a folder of resource forks and a Thumbs.db
"""

from __future__ import annotations

import argparse
import csv
import io
import random
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.synthetic.scenes import draw, random_scene, unseen_pairs
from pipeline.synthetic.words import instagram

PICTURES = 1000
SEED = 20
TWO_THINGS = 0.5  # fraction of the scenes with two things


def write_sample(folder: Path, pictures: int = PICTURES, seed: int = SEED) -> None:
    """Write `images.zip` (`pictures` scenes, and the faults) and `captions.csv` to `folder`."""
    rng, grain = random.Random(seed), np.random.default_rng(seed)
    files: dict[str, bytes] = {}
    rows: list[list[str]] = []
    for k in range(pictures):
        scene = random_scene(rng, two=TWO_THINGS, avoid=unseen_pairs())
        name = f"scene-{k:04d}.jpg"
        files[name] = _jpeg(draw(scene, grain))
        rows += [[name, caption] for caption in instagram(scene, rng)]

    last = f"scene-{pictures - 1:04d}.jpg"
    rows[3][1], rows[17][1] = "", "   "
    rows.insert(11, rows[10])
    rows.append(["scene-lost.jpg", "A picture that nobody put into the zip."])
    rows.append(["scene-0005.jpg"])
    files["scene-nameless.jpg"] = _jpeg(draw(random_scene(rng, avoid=unseen_pairs()), grain))
    files["scene-0000 (copy).jpg"] = files["scene-0000.jpg"]
    rows.append(["scene-0000 (copy).jpg", "the first scene, once more"])
    files["scene-cut.jpg"] = files[last][: len(files[last]) // 2]
    rows.append(["scene-cut.jpg", "Half of a picture."])
    files["scene-text.jpg"] = b"This is a note and no picture.\n"
    rows.append(["scene-text.jpg", "A note."])
    files["__MACOSX/._scene-0000.jpg"] = b"\0\5\26\7" + bytes(60)
    files["Thumbs.db"] = bytes(512)

    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, date_time=(2024, 1, 1, 0, 0, 0)), data)
    with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "caption"])
        writer.writerows(rows)


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def main() -> None:
    """Command line: write the sample to a folder."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.synthetic.sample", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder to write images.zip and captions.csv to")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="number of pictures (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="random seed (default: %(default)s)")
    args = parser.parse_args()
    write_sample(args.folder, args.pictures, args.seed)
    size = (args.folder / "images.zip").stat().st_size / 1e6
    print(f"wrote {args.pictures} pictures ({size:.1f} MB) and their captions to {args.folder}")


if __name__ == "__main__":
    main()
