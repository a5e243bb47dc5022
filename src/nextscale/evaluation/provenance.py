"""What a figure rests on: digests of files and weights, downloads, versions."""

from __future__ import annotations

import hashlib
import os
import platform
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from http.client import HTTPException
from importlib import metadata
from pathlib import Path

import torch

from nextscale import __version__
from nextscale.errors import CheckpointError, ModelNotFoundError

CHUNK = 1 << 20
TIMEOUT = 30.0  # seconds without a byte

Report = Callable[[str], None]


def silent(_: str) -> None:
    """For callers that do not want to hear what is going on."""


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def cached_download(url: str, *, sha256: str | None, what: str, remedy: str, report: Report = silent) -> Path:
    """A file from the network, kept where torch keeps its downloads (``$TORCH_HOME``, see torch.hub).

    sha256: the digest it must have, if one is known; a file that is already there is checked as well.
    what, remedy: for messages: what the file is, and what to do if it cannot be had.
    Raises ModelNotFoundError if it cannot be downloaded, CheckpointError if it is not what it should be.
    """
    target = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if not target.is_file():
        report(f"downloading {what} from {url}")
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            _download(url, partial)
            if sha256 is not None:
                check_digest(partial, sha256, f"what {url} sent", remedy)
            os.replace(partial, target)
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise ModelNotFoundError(f"cannot download {what} from {url}: {reason}. {remedy}") from None
        finally:
            partial.unlink(missing_ok=True)
    elif sha256 is not None:
        check_digest(target, sha256, str(target), f"Delete it to download it again. {remedy}")
    return target


def _download(url: str, target: Path) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response, target.open("wb") as file:
        expected = response.headers.get("Content-Length")
        while chunk := response.read(CHUNK):
            file.write(chunk)
        if expected is not None and file.tell() != int(expected):
            raise urllib.error.URLError(f"the connection ended after {file.tell()} of {expected} bytes")


def check_digest(path: Path, sha256: str, name: str, remedy: str) -> None:
    """Raises CheckpointError, naming both digests, if a file is another one."""
    found = file_digest(path)
    if found != sha256.lower():
        raise CheckpointError(f"{name} has the SHA-256 {found}, expected {sha256.lower()}. {remedy}")


def versions() -> dict[str, str]:
    """Of everything that figures could depend on."""
    packages = {"torch": str(torch.__version__)}
    for name in ("numpy", "pillow", "transformers"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"nextscale": __version__, "python": platform.python_version(), **packages}
