"""Commands that caption: photos, over HTTP, on the web page; and `init`, which comes before all others."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.command_line.declaring import MAX_SEED, Model, examples, execute
from pipeline.config.errors import ConfigError
from pipeline.serving.bulk_sidecars import Sidecars

if TYPE_CHECKING:
    from pipeline.config.params import Params

commands = typer.Typer()


class Device(StrEnum):
    """Where trainings run."""

    cpu = "cpu"
    gpu = "gpu"


class Engine(StrEnum):
    """Where pictures are captioned."""

    local = "local"
    ray = "ray"


@commands.command(
    epilog=examples(
        "caption photo.jpg",
        "caption holiday/*.jpg --several 5",
        "caption photo.jpg --model models:/image-captioning/3",
        "caption holiday --out captions.jsonl",
        "caption holiday.zip --out texts",
        "caption holiday --out holiday --sidecars xmp",
        "caption s3://bucket/holiday --out captions.jsonl",
        "caption holiday --out captions.jsonl --engine ray",
    )
)
def caption(
    photos: Annotated[
        list[str],
        typer.Argument(
            metavar="PHOTO...",
            help="Picture files; with --out, one folder, .zip or s3://BUCKET/PREFIX of them.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Write the captions to a .jsonl or .parquet file, or to a folder with a file per picture."
            " Run it again to continue, or for new pictures; existing captions and texts are not changed.",
        ),
    ] = None,
    model: Model = None,
    several: Annotated[
        int,
        typer.Option(
            min=1,
            max=100,
            help="Up to this many different captions per photo: twice as many are sampled, and the likeliest kept."
            " evaluate.generation has temperature, top_p and top_k.",
        ),
    ] = 1,
    sidecars: Annotated[
        Sidecars | None,
        typer.Option(
            help="With a folder as --out: write photo.txt (default) or photo.jpg.xmp for each photo.jpg."
            " Other properties in existing XMP sidecars are kept.",
            show_default=False,
        ),
    ] = None,
    diverse: Annotated[
        bool, typer.Option("--diverse", help="With --several: keep captions that share few words, not the likeliest.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Random seed for --several.")] = 0,
    engine: Annotated[
        Engine | None,
        typer.Option(
            help="With --out: caption in this process, or in Ray's workers, one per CPU or GPU. The output is the same."
            " Default: runtime.engine.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Caption photos with a registered model or a checkpoint."""

    def work(params: Params) -> str:
        from pipeline.commands.caption import caption_folder, caption_photos

        options: dict[str, Any] = {"model": model, "several": several, "seed": seed, "diverse": diverse}
        if out is not None:
            return caption_folder(params, photos, out, sidecars=sidecars, engine=engine, **options)
        for option, value in (("sidecars", sidecars), ("engine", engine)):
            if value is not None:
                raise ConfigError(f"--{option} {value.value}: needs --out; add it, or leave this out")
        return caption_photos(params, [Path(photo) for photo in photos], **options)

    execute("caption", work)


@commands.command(
    epilog=examples(
        "init ~/Downloads/pictures.zip --captions ~/Downloads/captions.csv",
        "init ~/Downloads/archive.zip --name kaggle",
        "init ~/photos --captions ~/photos.xlsx --for cpu",
        "init s3://bucket/photos --captions ~/photos.csv",
    )
)
def init(
    photos: Annotated[
        str,
        typer.Argument(
            metavar="PHOTOS",
            help="A folder, a .zip or a .tar of pictures; or s3://BUCKET/PREFIX, whose pictures stay there.",
            show_default=False,
        ),
    ],
    captions: Annotated[
        Path | None,
        typer.Option(metavar="TABLE", help="The captions, if they are not among the photos.", show_default=False),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the source: its folder in data/raw.")] = "mine",
    for_: Annotated[
        Device | None,
        typer.Option("--for", help="Where it will be trained. Default: a GPU if this machine has one."),
    ] = None,
) -> None:
    """Set up training on your own photos: copy them, track them with DVC, and choose the checkpoint to start from.

    The choice is written into params.yaml with its reason: microsoft/git-base at its newest commit if the hub can be
    reached, else cnn-attention.
    """

    def work(params: Params) -> str:
        from pipeline.commands import init as command

        gpu = None if for_ is None else for_ == Device.gpu
        place: Path | str = photos if photos.startswith("s3://") else Path(photos).expanduser()
        return command.init(params, place, captions and captions.expanduser(), name, gpu)

    execute("init", work)


@commands.command(
    "add-bucket",
    epilog=examples(
        "add-bucket album s3://bucket/photos",
        "add-bucket album s3://bucket/photos --captions ~/photos.csv",
        "add-bucket album",
    ),
)
def add_bucket(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its folder in data/raw.", show_default=False)],
    url: Annotated[
        str | None,
        typer.Argument(metavar="[URL]", help="s3://BUCKET/PREFIX. Default: the one that the source has."),
    ] = None,
    captions: Annotated[
        Path | None,
        typer.Option(metavar="TABLE", help="The captions, if they are not in the bucket.", show_default=False),
    ] = None,
) -> None:
    """Make a source of pictures that stay in an S3 bucket. Run it again to list what is in the bucket now.

    DVC tracks the list (names, sizes, ETags) and a copy of the captions; the pictures stay in the bucket.
    """

    def work(params: Params) -> str:
        from pipeline.commands.add_bucket import add_bucket as add

        return add(params, name, url, captions and captions.expanduser())

    execute("add-bucket", work, lock="add-bucket")


@commands.command(
    "serve-model",
    epilog=examples("serve-model", "serve-model --port 9000 --alias challenger", "serve-model --host 0.0.0.0"),
)
def serve_model(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 8600,
    host: Annotated[
        str, typer.Option(help="Name or address to listen on. Beyond this machine it needs IMAGE_CAPTIONING_TOKEN.")
    ] = "127.0.0.1",
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the registered model. Default: register.model.")
    ] = None,
    alias: Annotated[
        str, typer.Option(help="Serve the version with this alias; without such a version, the newest one.")
    ] = "champion",
) -> None:
    """Caption pictures over HTTP. Ctrl-C ends it.

    The service follows the alias without a restart. Its address, routes and limits are in docs/serving.md.
    """

    def work(params: Params) -> str:
        from pipeline.commands.serve_model import serve_model as serve

        return serve(params, host=host, port=port, model=model, alias=alias)

    execute("serve-model", work)


@commands.command("app", epilog=examples("app", "app --port 9000", "app --service http://127.0.0.1:8600"))
def open_app(
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, show_default=False, help="Default: the first free port from 8501."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Name or address to listen on. Beyond this machine it needs IMAGE_CAPTIONING_TOKEN.")
    ] = "127.0.0.1",
    service: Annotated[
        str | None, typer.Option(metavar="URL", help="A running captioning service. Default: start one.")
    ] = None,
) -> None:
    """Open a web page to caption photos, review captions, browse data and promote models. Ctrl-C ends it."""

    def work(params: Params) -> str:
        from pipeline.commands.app import open_app as serve_page

        return serve_page(host, port, service)

    execute("app", work)
