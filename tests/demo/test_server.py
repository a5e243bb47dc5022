"""The server as programs reach it, past what the page in a browser would allow."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client

from nextscale.demo import bounds

pytestmark = pytest.mark.slow

VISITORS = 20
SHIP = "?model=cifar10&label=ship&count=1&ssg=0.6&seed="


@pytest.fixture(scope="module")
def client(server) -> Iterator[Client]:
    client = Client(server.address, verbose=False, analytics_enabled=False, download_files=False)
    yield client
    client.close()


def draw(client: Client, query: Any, view: tuple[Any, Any] = ("signed", 2)) -> str:
    """Everything that the page shows after a request, as one text."""
    return json.dumps(client.predict(query, False, *view, api_name="/draw"))


def test_twenty_visitors_at_once_all_get_their_pictures(server):
    def visit(seed: int) -> str:
        client = Client(server.address, verbose=False, analytics_enabled=False, download_files=False)
        try:
            return draw(client, f"{SHIP}{seed}")
        finally:
            client.close()

    with ThreadPoolExecutor(VISITORS) as pool:
        answers = list(pool.map(visit, range(VISITORS)))
    for seed, answer in enumerate(answers):
        assert "1 picture, each without and with SSG" in answer
        assert f"ship \\u00b7 seed {seed}" in answer and f"seed={seed}&" in answer
    assert len({answer.partition("data:image/png")[2][:2000] for answer in answers}) == VISITORS
    assert "Traceback" not in server.said()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?model=/etc/passwd", "unknown model"),
        ("?model=../cifar10", "unknown model"),
        ("?model=FoundationVision/var", "unknown model"),
        ("?label=ship&count=9", "count is a whole number from 1 to 8"),
        ("?label=ship&label=cat&label=dog&count=3", "9 pictures are more than the 8"),
        ("?" + "label=ship&" * 200, "these are no settings"),
        ("?label=" + "ship" * 101, "at most 400"),
        ("?label=ship&seed=" + "1," * 50, "seed is a number, or one for each of at most 8"),
        ("?label=ship&seed=18446744073709551616", "seed is a whole number from 0 to 18446744073709551615"),
        ("?label=ship&ssg=nan", "ssg is a number from 0 to 20"),
        ("?label=ship&ssg=1e999", "ssg is a number from 0 to 20"),
        ("?label=ship&ssg=0,1", "one value per step"),
        ("?label=ship&temperature=0", "temperature is a number from 0.01"),
        ("?label=ship&top-k=99999", "the vocabulary has"),
        ("?label=ship&sampler=multinomial", "unknown sampler"),
        ("?label=ship&pixels=1M", "has no setting pixels"),
        ("?label=ship&negative-prompt=rain", "has no setting negative-prompt"),
        ("?label=ship&%ff=1", "no settings"),
        ("?label=", "is empty"),
        ("x" * (bounds.QUERY + 1), "at most 8000"),
    ],
)
def test_what_is_out_of_bounds_is_refused_with_a_message(
    client: Client, server, model: Path, query: str, message: str
):
    answer = draw(client, query)
    assert str(model.parents[1]) not in answer  # where models lie is nobody's business
    assert message in answer and "Not drawn" in answer
    assert "data:image" not in answer
    assert "Traceback" not in server.said()


def test_nonsense_gets_no_traceback_and_the_server_lives(client: Client, server):
    for query, view in (
        (None, ("signed", 2)),
        ({"a": [1]}, ("signed", 2)),
        (SHIP + "1", ("signed", 3)),
        (SHIP + "1", (7, "x")),
    ):
        try:
            answer = draw(client, query, view)
        except Exception as refused:  # by gradio itself, before the page hears of it
            answer = str(refused)
        assert "data:image" not in answer and 'File "' not in answer
    assert "1 picture" in draw(client, SHIP + "1")


def test_every_other_way_in_is_shut(client: Client, server):
    described = client.view_api(return_format="dict")
    assert described["named_endpoints"] == {} and described["unnamed_endpoints"] == {}
    for path in (
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=server.log",
        "/gradio_api/file=../server.log",
    ):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(server.address + path, timeout=30)
        assert refused.value.code in (403, 404)


def test_a_picture_that_is_too_large_is_not_taken(server):
    body = b"x" * (bounds.UPLOAD + 1000)
    boundary = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    request = urllib.request.Request(
        f"{server.address}/gradio_api/upload",
        boundary + body + b"\r\n--b--\r\n",
        {"Content-Type": "multipart/form-data; boundary=b"},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    assert refused.value.code == 413


def test_the_page_holds_no_address_elsewhere_that_would_be_fetched(server):
    with urllib.request.urlopen(server.address, timeout=30) as answer:
        page = answer.read().decode()
    for tag in ("<script src=", '<link rel="stylesheet" href=', "<iframe"):
        for part in page.split(tag)[1:]:
            assert not part.lstrip("\"'").startswith(("http", "//")), part[:100]
    assert "googleapis" not in page and "gstatic" not in page


def test_it_reaches_for_nothing_outside_of_this_machine(client: Client, server):
    draw(client, SHIP + "1")
    assert server.outside.calls == []


def test_only_this_machine_is_served(server):
    host = server.address.removeprefix("http://").partition(":")[0]
    sockets = Path(f"/proc/{server.process.pid}/net/tcp")
    if not sockets.exists():
        pytest.skip("listening sockets are read from /proc, which this system has not")
    port = int(server.address.rpartition(":")[2])
    listening = [line.split()[1] for line in sockets.read_text().splitlines()[1:] if line.split()[3] == "0A"]
    assert host == "127.0.0.1" and f"0100007F:{port:04X}" in listening
    assert f"00000000:{port:04X}" not in listening
