"""The page behind a proxy that shows it under a path, as people who share a machine have it."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from nextscale.cli.demo import page_names, read_root_path
from nextscale.cli.models import ModelChoice
from nextscale.errors import InvalidArgumentError

PATH = "/tools/ssg"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("/tools/ssg", "/tools/ssg"),
        ("tools/ssg/", "/tools/ssg"),
        (" /a.b~c/D-1 ", "/a.b~c/D-1"),
        ("/", ""),
    ],
)
def test_paths_of_proxies_are_read(text: str, path: str):
    assert read_root_path(text) == path


@pytest.mark.parametrize(
    "text",
    ["", "  ", "https://host/tools", "//host/a", "/a//b", "/a/../b", "/.", "/a b", "/a?b", "/é", "/a\nb"],
)
def test_what_is_no_path_is_refused(text: str):
    with pytest.raises(InvalidArgumentError, match="--root-path is the path under which a proxy"):
        read_root_path(text)


def test_models_in_folders_go_by_their_last_names(tmp_path: Path):
    names = ("a/horse", "b/horse", "b/cow", "cifar10")
    for name in names:
        (tmp_path / name).mkdir(parents=True)
    folders = [ModelChoice(model=str(tmp_path / name)) for name in names]
    others = [ModelChoice(model="cifar10"), ModelChoice(model="FoundationVision/var", depth=16)]
    assert page_names([*folders, *others]) == [
        "a/horse", "b/horse", "cow", f"{tmp_path.name}/cifar10", "cifar10", "FoundationVision/var d16",
    ]  # fmt: skip
    assert page_names([folders[0], folders[0]]) == ["horse", "horse"]


class Relay(socketserver.BaseRequestHandler):
    """One connection: what is below the path goes on to the page, with the path or without; else 404."""

    def handle(self) -> None:
        server: Any = self.server
        head = b""
        while b"\r\n\r\n" not in head:
            part = self.request.recv(65536)
            if not part:
                return
            head += part
        line, _, rest = head.partition(b"\r\n")
        method, target, version = line.split(b" ")
        if not target.startswith(server.path + b"/"):
            server.strays.append(target.decode())
            self.request.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        target = target.removeprefix(server.path) if server.strips else target
        fields, _, body = rest.partition(b"\r\n\r\n")
        kept = [f for f in fields.split(b"\r\n") if not f.lower().startswith(b"connection:")]
        with socket.create_connection(server.to) as page:
            lines = [b" ".join((method, target, version)), *kept, b"Connection: close", b"", body]
            page.sendall(b"\r\n".join(lines))
            threading.Thread(target=pump, args=(self.request, page), daemon=True).start()
            pump(page, self.request)


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Pass on what comes, as it comes, until there is no more."""
    with suppress(OSError):
        while part := source.recv(65536):
            sink.sendall(part)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


class Proxy(socketserver.ThreadingTCPServer):
    """Shows a page under a path, as nginx does with ``location /tools/ssg/``."""

    daemon_threads = True

    def __init__(self, to: tuple[str, int], *, strips: bool) -> None:
        super().__init__(("127.0.0.1", 0), Relay)
        self.to, self.strips, self.path = to, strips, PATH.encode()
        self.strays: list[str] = []  # asked for outside of the path

    @contextmanager
    def running(self) -> Iterator[str]:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{self.server_address[1]}{PATH}"
        finally:
            self.shutdown()
            self.server_close()


@pytest.fixture(scope="module")
def proxied(start: Callable[..., Iterator[Any]], model: Path) -> Iterator[Any]:
    """The page as it is started for a proxy."""
    yield from start("--model", model, "--root-path", PATH)


@pytest.fixture
def address() -> str:
    """None: every visit says which proxy it goes through."""
    return ""


@pytest.mark.slow
def test_the_page_works_under_the_path_of_a_proxy(
    visit: Callable[..., Any], proxied: Any, tmp_path: Path, model: Path
):
    to = ("127.0.0.1", int(proxied.address.rpartition(":")[2]))
    for strips in (True, False):
        proxy = Proxy(to, strips=strips)
        with proxy.running() as home:
            one = visit("?label=ship&count=1&seed=3", at=home)
            page = one.page
            shown = page.get_attribute("#ns-slider img.ns-b", "src")
            link = page.input_value("#ns-link textarea, #ns-link input")
            assert link == page.url and link.startswith(f"{home}/?model=tiny&label=ship")
            page.get_by_label("β, the strength of SSG").press("ArrowRight")  # the page reaches its server
            page.wait_for_function("new URLSearchParams(location.search).get('ssg') === '0.65'")
            with page.expect_download() as download:
                page.get_by_role("button", name="Save without SSG").click()
            assert download.value.path().stat().st_size > 500
            page.get_by_role("button", name="Open a picture").click()
            page.set_input_files("input[type=file]", str(keep(download.value, tmp_path)))
            page.wait_for_function("new URLSearchParams(location.search).get('ssg') === '0'")
            page.goto(link)
            page.wait_for_selector("#ns-film img")
            assert page.get_attribute("#ns-slider img.ns-b", "src") == shown
            assert len(one.asked) > 10 and proxy.strays == []
            page.context.close()
    assert "Traceback" not in proxied.said()


def keep(download: Any, folder: Path) -> Path:
    """A downloaded file, by its name."""
    file = folder / download.suggested_filename
    download.save_as(file)
    return file
