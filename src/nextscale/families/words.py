"""A text encoder without weights: every word is a fixed random vector.

It knows nothing of language, only which words a prompt has and in which order. That is all a small model
needs whose captions are made from class names, and it makes such a model free of downloads.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.families.text import TextFeatures, warn_of_cut
from nextscale.usual import with_usual_defaults
from nextscale.whole import as_whole

END = "</s>"  # closes every prompt, so that none is without a token
MAX_WORDS = 64


class WordEncoder:
    """Prompts to one row per word and one for the end.

    width: channels of a row. length: the most rows of a prompt; what is longer is cut, with a warning.

    A row is standard normal, from a generator seeded with the SHA-256 of the lower-case word, plus the same
    for its place in the prompt at a third of the size; so the encoder is the same everywhere and there is
    nothing to store.
    """

    def __init__(self, width: int, *, length: int = MAX_WORDS + 1) -> None:
        channels = as_whole(width)
        if channels is None or channels < 1:
            raise InvalidArgumentError(f"width must be a positive whole number, got {width!r}")
        rows = as_whole(length)
        if rows is None or rows < 2:
            raise InvalidArgumentError(
                f"length must be a whole number of at least 2 (a word and the end), got {length!r}"
            )
        self._width, self._words = channels, rows - 1

    @property
    def width(self) -> int:
        return self._width

    @with_usual_defaults
    def __call__(self, prompts: Sequence[str]) -> TextFeatures:
        rows = [self._rows(prompt, index) for index, prompt in enumerate(prompts)]
        return TextFeatures.from_packed(torch.cat(rows), [len(r) for r in rows])

    def release(self) -> None:
        """Nothing to free."""

    def _rows(self, prompt: str, index: int) -> Tensor:  # (words + 1, width)
        # Composed first: a letter and its accent apart would be two words.
        words = re.findall(r"\w+", unicodedata.normalize("NFC", prompt).lower())
        if len(words) > self._words:
            warn_of_cut(index, len(words), self._words, "words", " ".join(words[self._words :]))
            words = words[: self._words]
        return torch.stack([self._vector(w) + self._vector(f"#{i}") / 3 for i, w in enumerate([*words, END])])

    def _vector(self, text: str) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
        return torch.randn(self._width, generator=torch.Generator().manual_seed(seed))
