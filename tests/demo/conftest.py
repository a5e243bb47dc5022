"""A page that is really served, by a process of its own, and a browser that really opens it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from nextscale.cli import pictures
from nextscale.demo.desk import Desk
from nextscale.demo.models import Model, Offer, Shelf
from nextscale.families import load_pretrained
from nextscale.families.var.pipeline import VARPipeline
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig

# The small models of all families are those of the command line's tests.
_spec = importlib.util.spec_from_file_location(
    "cli_models", Path(__file__).parents[1] / "cli" / "conftest.py"
)
assert _spec is not None and _spec.loader is not None
_models = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_models)
model, text_model, wide_model = _models.model, _models.text_model, _models.wide_model
hart_model, language_model = _models.hart_model, _models.language_model

START = 600.0  # seconds after which a server is not coming any more, however busy the machine is

# In a container the sandbox cannot be had; the rest keeps the browser from talking to anyone on its own.
CHROMIUM = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def find_chromium() -> str | None:
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))),
        None,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Outside:
    """Stands where the way out of the machine would be, and counts who wants to take it."""

    def __init__(self) -> None:
        self.calls: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                caller, _ = self._socket.accept()
            except OSError:
                return
            with caller:
                self.calls.append(caller.recv(1000))

    def close(self) -> None:
        self._socket.close()


@dataclass
class Server:
    """``nextscale demo`` in another process. outside: who tried to reach what is not on this machine."""

    address: str
    outside: Outside
    log: Path
    process: subprocess.Popen[bytes]

    def said(self) -> str:
        return self.log.read_text()


def serve(folder: Path, *arguments: str | Path) -> Iterator[Server]:
    outside, port, log = Outside(), free_port(), folder / "server.log"
    local = {"OMP_NUM_THREADS": "1", "no_proxy": "127.0.0.1,localhost", "NO_PROXY": "127.0.0.1,localhost"}
    proxies = dict.fromkeys(
        ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"), outside.address
    )
    command = [sys.executable, "-m", "nextscale.cli.main", "demo", "--port", str(port), "--no-open"]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [*command, *map(str, arguments)],
            cwd=folder,
            env={**os.environ, **local, **proxies},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        _await(process, log)
        yield Server(f"http://127.0.0.1:{port}", outside, log, process)
    finally:
        process.terminate()
        process.wait(timeout=30)
        outside.close()


def _await(process: subprocess.Popen[bytes], log: Path) -> None:
    pause = threading.Event()
    for _ in range(int(START / 0.1)):
        if "http://" in log.read_text():
            return
        assert process.poll() is None, log.read_text()
        pause.wait(0.1)
    pytest.fail(f"no page after {START} s: {log.read_text()}")


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights that take a second for every step, for what has to be stopped."""
    torch.manual_seed(0)
    shared = {"vocab_size": 64, "z_channels": 8, "patch_nums": (1, 4, 8, 16, 24, 28, 32)}
    transformer = VARTransformer(
        VARTransformerConfig(**shared, num_classes=3, depth=16, embed_dim=384, num_heads=6)
    )
    tokenizer = VARTokenizer(
        VARTokenizerConfig(**shared, ch=8, ch_mult=(1, 2, 2), num_res_blocks=1, norm_groups=8)
    )
    folder = tmp_path_factory.mktemp("models") / "slow"
    VARPipeline(transformer, tokenizer, name="slow").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def all_models(
    model: Path, text_model: Path, wide_model: Path, hart_model: Path, slow_model: Path
) -> list[str]:
    return ["cifar10", *map(str, (model, text_model, wide_model, hart_model, slow_model))]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, all_models: list[str]) -> Iterator[Server]:
    """One for all tests, since it takes many seconds to start."""
    options = [part for name in all_models for part in ("--model", name)]
    yield from serve(tmp_path_factory.mktemp("server"), *options)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Iterator[Server]]:
    """Serves the page with other options, for a fixture that yields from it."""
    return lambda *arguments: serve(tmp_path_factory.mktemp("server"), *arguments)


@dataclass
class Opened:
    """A page in the browser, and everything it asked for and complained about. home: all that it may ask."""

    page: Any
    home: str
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = find_chromium()
    if chromium is None:
        pytest.skip(
            "there is no Chromium; apt-get install chromium, or have any on the path, to test the page"
        )
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(CHROMIUM))
        yield browser
        browser.close()


@pytest.fixture
def address(server: Server) -> str:
    """Where the page is opened where a test says nothing else."""
    return server.address


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Callable[..., Opened]]:
    """Opens the page with some settings, and waits for its pictures; at the end nothing may be amiss."""
    contexts: list[Any] = []
    opened: list[Opened] = []

    def open_page(query: str = "", *, drawn: bool = True, at: str = address, **options: Any) -> Opened:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(120_000)
        contexts.append(context)
        one = Opened(context.new_page(), at)
        opened.append(one)
        one.page.on("request", lambda request: one.asked.append(request.url))
        one.page.on("console", lambda m: one.complaints.append(m.text) if m.type == "error" else None)
        one.page.on("pageerror", lambda problem: one.complaints.append(str(problem)))
        one.page.goto(f"{at}/{query}")
        one.page.wait_for_selector("#ns-film img" if drawn else "#ns-status .ns-status")
        return one

    yield open_page
    for context in contexts:
        context.close()
    for one in opened:
        assert one.complaints == []
        here = (f"{one.home}/", "data:", "blob:")
        assert [url for url in one.asked if not url.startswith(here)] == []


@pytest.fixture(scope="session")
def shelf(all_models: list[str]) -> Shelf:
    """The same models in this process."""

    def offer(name: str) -> Offer:
        return Offer(name, {"model": name}, False, lambda: load_pretrained(name, device="cpu"), {})

    return Shelf([offer(name) for name in all_models])


@pytest.fixture
def tiny(shelf: Shelf, model: Path) -> Model:
    """Classes of 32 pixels, random weights."""
    return shelf.get(str(model))


@pytest.fixture
def desk(shelf: Shelf, tmp_path: Path) -> Desk:
    return Desk(shelf, pictures, tmp_path / "pictures")
