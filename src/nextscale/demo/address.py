"""Where the page is served: checked at once, since a server would look for a free port for ever."""

from __future__ import annotations

import socket

from nextscale.errors import InvalidArgumentError


def check_host(host: str) -> None:
    """Raises InvalidArgumentError unless programs of this machine can listen at an address."""
    reason = ""
    try:
        found = socket.getaddrinfo(host.strip("[]"), 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError, ValueError) as problem:
        found, reason = [], getattr(problem, "strerror", None) or "it is no address"
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as ours:
                ours.bind(address)
            return
        except OSError as problem:
            reason = problem.strerror or str(problem)
    raise InvalidArgumentError(
        f"cannot listen at {host!r}: {reason}; --host takes an address of this machine: 127.0.0.1, which it "
        f"alone can reach, or 0.0.0.0 for all of its addresses"
    )
