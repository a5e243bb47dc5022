"""``nextscale demo``: a local web page that shows what SSG does."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextscale.cli import options
from nextscale.cli.help import NAMES, Command
from nextscale.cli.models import DEFAULT_MODEL, ModelChoice
from nextscale.cli.progress import note, working
from nextscale.errors import InvalidArgumentError

if TYPE_CHECKING:
    from nextscale.demo.models import Offer

EPILOG = """\
nextscale demo
nextscale demo --model my-model --model cifar10 --port 8000
nextscale demo --model "FoundationVision/var d16" --device cuda
nextscale demo --model "FoundationVision/Infinity 2b" --device cuda --dtype bfloat16
"""

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command(cls=Command, epilog=EPILOG, context_settings=NAMES)
def demo(
    *,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME_OR_PATH",
            help="A model that the page offers; may be repeated. An embedded name, a folder or a hub id; "
            "where official files hold several, which of them behind a space: d16, 2b. Default: cifar10.",
            rich_help_panel="Model",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option("--host", metavar="ADDRESS", help="Where to listen. 127.0.0.1 is this machine alone."),
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            metavar="N",
            help="Default: the first free one from 7860 on.",
            show_default=False,
        ),
    ] = None,
    root_path: Annotated[
        str | None,
        typer.Option(
            "--root-path",
            metavar="PATH",
            help="The path under which a proxy shows the page, as /tools/ssg. Default: the proxy has none.",
            show_default=False,
        ),
    ] = None,
    open_browser: Annotated[
        bool | None,
        typer.Option(
            "--open/--no-open",
            help="Whether to open the page in the browser. Default: where this runs on a terminal.",
            show_default=False,
        ),
    ] = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
) -> None:
    """Open a page on this machine that shows the same pictures without and with SSG.

    It needs no network: nothing is fetched once it has started, and nothing is sent anywhere. Models are
    those named here, and no others.
    """
    if port is not None and not 1 <= port <= 65535:
        raise InvalidArgumentError(f"--port is a number from 1 to 65535, got {port}")
    path = None if root_path is None else read_root_path(root_path)
    from nextscale.demo.address import listening_address

    listening_address(host)
    choices = [read_choice(text) for text in models or [DEFAULT_MODEL]]
    if all(is_local(choice) for choice in choices):
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when the hub's client is imported
    with working("loading"):
        from nextscale.cli import pictures
        from nextscale.demo.serve import HOST, is_loopback, require_gradio, serve

        require_gradio()
        named = zip(page_names(choices), choices, strict=True)
        offers = [offer(name, choice, device, dtype) for name, choice in named]
    if not is_loopback(host):
        note(
            f"warning: {host} can be reached from other machines. Whoever reaches it can draw pictures here, "
            f"and there is no password; {HOST} is this machine alone"
        )

    def ready(address: str) -> None:
        print(f"{address}  (Ctrl+C ends it)", flush=True)
        if sys.stdout.isatty() if open_browser is None else open_browser:
            import webbrowser

            webbrowser.open(address)

    serve(offers, pictures, host=host, port=port, root_path=path, ready=ready)


def read_choice(text: str) -> ModelChoice:
    """``"my-folder"``, or, as such models are printed, ``"FoundationVision/var d16"`` or
    ``"FoundationVision/Infinity 2b"``."""
    source, _, which = text.strip().rpartition(" ")
    if not source or Path(text).exists():
        return ModelChoice(model=text.strip())
    depth = re.fullmatch(r"d(\d+)", which)
    choice = ModelChoice(model=source)
    return replace(choice, depth=int(depth[1])) if depth else replace(choice, variant=which)


def is_local(choice: ModelChoice) -> bool:
    """Whether a model is on this machine already: embedded, or a file or folder."""
    return choice.source == DEFAULT_MODEL or Path(choice.source).exists()


def page_names(choices: Sequence[ModelChoice]) -> list[str]:
    """Name the models for the page: folders and files by the last part of their path, or as many as tell
    them apart.

    Where a model lies on this machine is not for everybody who opens the page, and a link goes to others too.
    """
    whole: dict[ModelChoice, tuple[str, ...]] = {choice: (str(choice),) for choice in choices}
    whole |= {c: Path(str(c)).absolute().parts for c in choices if c.source != DEFAULT_MODEL and is_local(c)}
    found = []
    for choice in choices:
        mine = whole[choice]
        others = [parts for parts in whole.values() if parts != mine]
        short = (n for n in range(1, len(mine)) if all(parts[-n:] != mine[-n:] for parts in others))
        found.append("/".join(mine[-next(short, len(mine)) :]))
    return found


def read_root_path(text: str) -> str:
    """The path under which a proxy shows the page, as ``"/a/b"``; empty for ``"/"``.

    Raises InvalidArgumentError for what is no path.
    """
    path = text.strip().removeprefix("/").removesuffix("/")
    parts = path.split("/") if path else []
    if not text.strip() or not all(re.fullmatch(r"[\w~+-][\w.~+-]*", part, re.ASCII) for part in parts):
        raise InvalidArgumentError(
            f"--root-path is the path under which a proxy shows the page, as /tools/ssg, without a host "
            f"before it; got {text!r}"
        )
    return f"/{path}" if path else ""


def offer(name: str, choice: ModelChoice, device: str | None, dtype: str | None) -> Offer:
    """What the page knows of a model, which is loaded once here: so that a wrong name is refused at once, and
    everything it needs is on this machine before the page opens. name: what the page calls it.

    Raises ModelNotFoundError or CheckpointError, naming what is wrong.
    """
    from nextscale.demo.models import Offer

    pipe = choice.load(device, dtype)
    encoder: Any = getattr(pipe, "text_encoder", None)
    if hasattr(encoder, "load"):
        encoder.load()
        encoder.release()
    where = {"device": device, "dtype": dtype}
    placement = {name: value for name, value in where.items() if value is not None}
    return Offer(name, choice.to_json(), choice.is_official, lambda: choice.load(device, dtype), placement)
