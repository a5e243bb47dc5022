from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from nextscale.cli import pictures
from nextscale.demo import serve
from nextscale.demo.models import Offer
from nextscale.errors import InvalidArgumentError, MissingDependencyError
from nextscale.families import load_pretrained


@pytest.fixture
def environment():
    """As it was, afterwards."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.2", False),
        ("example.org", False),
        ("localhost.example.org", False),
    ],
)
def test_which_addresses_are_this_machine_alone(host: str, expected: bool):
    assert serve.is_loopback(host) is expected


def test_without_gradio_the_message_says_how_to_get_it(monkeypatch, tmp_path: Path, environment):
    monkeypatch.setitem(sys.modules, "gradio", None)  # what an import of it finds
    for start in (serve.require_gradio, lambda: serve.build([], pictures, tmp_path)):
        with pytest.raises(MissingDependencyError, match=r'pip install "nextscale\[demo\]"'):
            start()


def test_telemetry_is_off_before_gradio_is_imported(environment):
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "True"
    serve.require_gradio()
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_an_address_that_is_taken_is_named(model: Path, environment):
    offer = Offer("tiny", {"model": str(model)}, False, lambda: load_pretrained(model), {})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidArgumentError, match=f"cannot serve at 127.0.0.1, port {port}"):
            serve.serve([offer], pictures, port=port)


def test_the_page_has_no_font_from_elsewhere():
    from nextscale.demo.page import theme

    assert theme()._font_css == [] and theme()._stylesheets == []
