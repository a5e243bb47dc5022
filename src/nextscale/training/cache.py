"""What a tokenizer makes of a whole data set, made once and kept."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from nextscale.families.infinity.tokenizer import InfinityTokenizer
from nextscale.families.var.tokenizer import VARTokenizer
from nextscale.training.data import ImageSource, to_float
from nextscale.training.trainer import Reporter
from nextscale.training.views import TURNS, turned

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
    """What ``encode`` makes of a whole data set, seen in every way: ``(views, N, ...)``.

    flip: also mirrored. turn: also turned by one, two and three quarters; with both there are eight views.
    The first view is the picture as it is.
    """
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

    tokenizer: what ``encode`` works with. The file also says what it was made from; with another tokenizer or
    other data it is made anew.
    """
    origin = _fingerprint(tokenizer, data, f"{flip} turned" if turn else str(flip))
    if path.exists():
        with contextlib.suppress(pickle.UnpicklingError, RuntimeError, EOFError, ValueError):
            kept = torch.load(path, weights_only=True)
            if isinstance(kept, dict) and kept.get("origin") == origin:
                tokens: Tensor = kept["tokens"]
                return tokens
    tokens = encode_dataset(encode, data, flip=flip, turn=turn, report=report)
    partial = path.with_suffix(f".{os.getpid()}.partial")  # several processes may be at it
    torch.save({"origin": origin, "tokens": tokens}, partial)
    os.replace(partial, path)
    return tokens


def _fingerprint(tokenizer: AnyTokenizer, data: ImageSource, views: str) -> str:
    """A hash of what the outcome depends on: the tokenizer's weights, the labels, some of the pictures."""
    digest = hashlib.sha256(f"{len(data)} {views} {tokenizer.schedule}".encode())
    parts = [*tokenizer.state_dict().values(), data.labels]
    parts.append(data.batch(torch.linspace(0, len(data) - 1, 16).long()))
    for tensor in parts:
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
