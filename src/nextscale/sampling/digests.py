"""Digests of the files of a run, which its logs keep, so that any later change is noticed."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from nextscale.sampling.plan import JOINED, LOGS, RunPlan

PIECE = 1 << 20  # bytes


def path_digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files with their names, in hexadecimal."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if path.is_dir():
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            while piece := stream.read(PIECE):
                digest.update(piece)
    return digest.hexdigest()


def logged_digests(folder: Path, plan: RunPlan) -> dict[str, set[str]]:
    """Read what the logs of a run say of its files, by name; several, where several processes made one.

    Lines that cannot be read tell nothing, and neither do logs that are not there.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for log in sorted((folder / LOGS).glob("*.jsonl")):
        for line in log.read_bytes().splitlines():
            name, digest = _said(line, plan)
            if name and digest:
                found[name].add(digest)
    return found


def _said(line: bytes, plan: RunPlan) -> tuple[str, str]:
    try:
        event: Any = json.loads(line)
        digest = str(event.get("sha256", ""))
        if event["event"] == "joined":
            return JOINED, digest
        return (plan.name(int(event["shard"])), digest) if event["event"] == "shard" else ("", "")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return "", ""
