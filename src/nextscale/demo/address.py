"""Where the page is served: checked at once, since a server would look for a free port for ever."""

from __future__ import annotations

import socket

from nextscale.errors import InvalidArgumentError


def listening_address(host: str) -> str:
    """Find the address of this machine that a name or address stands for, as it is written in a URL.

    Raises InvalidArgumentError unless programs of this machine can listen there.
    """
    reason = ""
    try:
        found = socket.getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError, ValueError) as problem:
        found, reason = [], getattr(problem, "strerror", None) or "it is no address"
    for family, kind, protocol, _, address in found:
        number = str(address[0])
        if "%" in number:
            reason = "addresses with a zone stand in no URL"
            continue
        try:
            with socket.socket(family, kind, protocol) as ours:
                ours.bind(address)
                ours.listen(1)
        except OSError as problem:
            reason = problem.strerror or str(problem)
        else:
            return f"[{number}]" if family == socket.AF_INET6 else number
    raise InvalidArgumentError(
        f"cannot listen at {host!r}: {reason}; --host takes an address of this machine: 127.0.0.1, which it "
        f"alone can reach, or 0.0.0.0 for all of its addresses"
    )
