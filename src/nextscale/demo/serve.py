"""Start the page: on this machine alone unless told otherwise, and without a word to any other."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from nextscale.demo import bounds
from nextscale.demo.desk import Desk, PictureFiles
from nextscale.demo.models import Offer, Shelf
from nextscale.errors import InvalidArgumentError, MissingDependencyError

HOST, PORT = "127.0.0.1", 7860
PORTS = 100  # looked at from PORT on for one that is free, where none is asked for


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach a server at this address."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def require_gradio() -> None:
    """Import gradio, told beforehand not to ask or tell servers elsewhere anything.

    Raises MissingDependencyError where it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import_module("gradio")
    except ImportError:
        raise MissingDependencyError('the page is made with gradio: pip install "nextscale[demo]"') from None


def stay_offline() -> None:
    """From here on nothing is fetched from the hub; what is loaded again comes from the disk."""
    from huggingface_hub import constants

    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    constants.HF_HUB_OFFLINE = True


def build(offers: Sequence[Offer], files: PictureFiles, folder: Path) -> Any:
    """The page as gradio has it. folder: for files to download.

    Raises MissingDependencyError without gradio.
    """
    require_gradio()
    from nextscale.demo.page import Page

    return Page(Desk(Shelf(offers), files, folder)).build()


def serve(
    offers: Sequence[Offer],
    files: PictureFiles,
    *,
    host: str = HOST,
    port: int | None = None,
    root_path: str | None = None,
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serve the page until it is interrupted.

    offers: the models it has; the first is the one it opens with. files: how PNG files are written and read.
    port: ``None`` takes the first free one from :data:`PORT` on. root_path: ``"/a/b"``, where a proxy shows
    the page, whether it takes that off what it passes on or not. ready: told the address once the page is up.

    Raises MissingDependencyError without gradio, and InvalidArgumentError if the address cannot be had.
    """
    with tempfile.TemporaryDirectory(prefix="nextscale-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "gradio")
        blocks = build(offers, files, Path(folder) / "pictures")
        stay_offline()
        address = _launch(blocks, host, port, root_path, Path(folder))
        ready(address)
        try:
            _end_asked_for().wait()  # or Ctrl+C
        finally:
            blocks.close(verbose=False)


def _end_asked_for() -> threading.Event:
    """Set when the process is asked to end, so that it can do so with nothing left behind."""
    asked = threading.Event()
    if threading.current_thread() is threading.main_thread():  # no other may take signals
        signal.signal(signal.SIGTERM, lambda *_: asked.set())
    return asked


def _launch(blocks: Any, host: str, port: int | None, root_path: str | None, folder: Path) -> str:
    from nextscale.demo.events import THREADS
    from nextscale.demo.page import asset, theme

    icon = folder / "favicon.svg"
    icon.write_text(asset("favicon.svg"), encoding="utf-8")
    blocks.queue(max_size=bounds.QUEUE, default_concurrency_limit=1)
    os.environ.setdefault("GRADIO_NUM_PORTS", str(PORTS))
    try:
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port,
            root_path=root_path,
            max_threads=THREADS,
            prevent_thread_lock=True,
            quiet=True,
            inbrowser=False,
            share=False,
            show_error=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            footer_links=[],
            allowed_paths=[str(folder / "pictures")],
            max_file_size=bounds.UPLOAD,
            favicon_path=str(icon),
            theme=theme(),
            css=asset("page.css"),
            head=f"<script>{asset('page.js')}</script>",
        )
    except OSError as problem:
        raise InvalidArgumentError(f"cannot serve at {host}, port {port or PORT}: {problem}") from None
    return str(address)
