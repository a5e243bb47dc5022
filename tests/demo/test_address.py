"""Addresses that the page is served at."""

from __future__ import annotations

import socket

import pytest

from nextscale.demo.address import listening_address
from nextscale.errors import InvalidArgumentError


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "0.0.0.0"), ("127.1", "127.0.0.1"), ("0", "0.0.0.0")],
)
def test_addresses_of_this_machine(host: str, address: str):
    assert listening_address(host) == address


def test_names_of_this_machine():
    assert listening_address("localhost") in ("127.0.0.1", "[::1]")


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_addresses_of_the_new_kind_stand_in_brackets(host: str):
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no such addresses")
    assert listening_address(host) == "[::1]"


@pytest.mark.parametrize(
    "host",
    [
        *(
            "nowhere.invalid",
            "192.0.2.1",
            "2001:db8::1",
            "127.0.0.1:80",
            "http://127.0.0.1",
        ),
        *("a b", "256.1.1.1", "x" * 300, "ü..x", "127.0.0.1%lo", "a\0b", "-"),
    ],
)
def test_others_are_refused(host: str):
    with pytest.raises(InvalidArgumentError, match=r"cannot listen at .*; --host takes an address of this"):
        listening_address(host)
