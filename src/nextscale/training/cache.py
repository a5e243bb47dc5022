"""What a tokenizer makes of a whole data set, made once and kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from nextscale.errors import CheckpointError, warn
from nextscale.families.infinity.tokenizer import InfinityTokenizer
from nextscale.families.var.tokenizer import VARTokenizer
from nextscale.training.checkpoint import read_whole, write_whole
from nextscale.training.data import ImageSource, to_float
from nextscale.training.digest import pictures_digest
from nextscale.training.sizes import height_width
from nextscale.training.task import Reporter
from nextscale.training.views import TURNS, check_square, turned
from nextscale.weights.digest import text_digest, weights_digest

AnyTokenizer = VARTokenizer | InfinityTokenizer
Encode = Callable[[Tensor], Tensor]  # pictures (B, 3, H, W) in [-1, 1] -> what is kept of them, (B, ...)


@torch.inference_mode()
def encode_dataset(
    encode: Encode,
    data: ImageSource,
    *,
    flip: bool,
    turn: bool = False,
    batch_size: int = 100,
    report: Reporter | None = None,
) -> Tensor:
    """Encode a whole data set, seen in every way: ``(views, N, ...)``.

    flip: also mirrored. turn: also turned by one, two and three quarters; with both there are eight views.
    The first view is the picture as it is.
    """
    if turn:
        check_square(height_width(data.size))
    views = [(mirrored, k) for mirrored in (False, True)[: 1 + flip] for k in (TURNS if turn else (0,))]
    started, done, total = time.monotonic(), 0, len(data) * len(views)
    sets = []
    for mirrored, quarters in views:
        chunks = []
        for rows in torch.arange(len(data)).split(batch_size):
            images = to_float(data.batch(rows))
            chunks.append(encode(turned(images.flip(-1) if mirrored else images, quarters)).cpu())
            done += len(rows)
            if report:
                rate = done / max(time.monotonic() - started, 1e-9)
                left = (total - done) / rate
                report({"doing": "encoding", "images_per_second": rate, "seconds_left": left}, done, total)
        sets.append(torch.cat(chunks))
    return torch.stack(sets)


def cached(
    tokenizer: AnyTokenizer,
    encode: Encode,
    data: ImageSource,
    path: Path,
    *,
    flip: bool,
    turn: bool = False,
    report: Reporter | None = None,
) -> Tensor:
    """:func:`encode_dataset`, kept in a file so that a resumed run need not encode again.

    tokenizer: what ``encode`` works with. The file also says what it was made from, by digests of all
    pictures and of the tokenizer; with others, and where it is damaged, it is made anew. If it cannot be
    written, the training goes on without it, with a warning.
    """
    views = (1 + flip) * (len(TURNS) if turn else 1)
    origin = _origin(tokenizer, data, f"{flip} turned" if turn else str(flip))
    kept = _kept(path, origin, (views, len(data)))
    if kept is not None:
        return kept
    tokens = encode_dataset(encode, data, flip=flip, turn=turn, report=report)
    try:
        write_whole({"origin": origin, "tokens": tokens}, path)
    except OSError as error:
        warn(f"{error}; the training goes on, and will encode again when it is resumed")
    return tokens


def _kept(path: Path, origin: str, shape: tuple[int, int]) -> Tensor | None:
    """Read what a file holds, if it is whole and of this origin."""
    try:
        found = read_whole(path) if path.exists() else None
    except CheckpointError:
        return None
    if not isinstance(found, dict) or found.get("origin") != origin:
        return None
    tokens = found.get("tokens")
    return tokens if isinstance(tokens, Tensor) and tuple(tokens.shape[:2]) == shape else None


def _origin(tokenizer: AnyTokenizer, data: ImageSource, views: str) -> str:
    """A digest of what the outcome depends on: pictures, and the tokenizer's sizes and weights."""
    made_by = f"{tokenizer.config} {weights_digest(tokenizer)}"
    return text_digest(f"{made_by} {pictures_digest(data, times=True)} {views}")
