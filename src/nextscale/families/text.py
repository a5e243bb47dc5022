"""Text as the text-to-image families share it: features of prompts, and what makes them.

The encoders themselves (``families/*/text.py``) go through transformers; whoever has the features already
needs neither an encoder nor transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError, NotFiniteError


@dataclass(frozen=True)
class TextFeatures:
    """Features of a batch of prompts.

    features: float ``(B, T, W)``, one row per token. mask: bool ``(B, T)``, true for the prompt's own tokens
    and false for padding. The padding rows of the features may hold anything where a model masks them; HART
    does not, and takes what its encoder makes of padding.

    Raises InvalidArgumentError if the two do not fit each other or a prompt has no token.
    """

    features: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        if (
            self.features.ndim != 3
            or not self.features.is_floating_point()
            or self.mask.dtype != torch.bool
            or self.mask.shape != self.features.shape[:2]
        ):
            raise InvalidArgumentError(
                f"text features are floats (B, T, W) with a bool mask (B, T), got "
                f"{self.features.dtype} {tuple(self.features.shape)} and "
                f"{self.mask.dtype} {tuple(self.mask.shape)}"
            )
        empty = (~self.mask.any(1)).nonzero().flatten().tolist()
        if empty:
            raise InvalidArgumentError(f"prompt {empty[0]} has no text token; its mask is all false")

    @classmethod
    def from_packed(cls, features: Tensor, lengths: Sequence[int] | Tensor) -> TextFeatures:
        """From one row per real token, ``(sum(lengths), W)``, and the number of tokens of every prompt."""
        counts = [int(n) for n in lengths]
        if features.ndim != 2 or sum(counts) != len(features):
            raise InvalidArgumentError(
                f"packed text features are (sum of lengths, W); got {tuple(features.shape)} "
                f"for lengths {counts}"
            )
        padded = torch.nn.utils.rnn.pad_sequence(list(features.split(counts)), batch_first=True)
        own = torch.arange(padded.shape[1]) < torch.tensor(counts)[:, None]
        return cls(padded, own.to(features.device))

    @classmethod
    def cat(cls, parts: Sequence[TextFeatures]) -> TextFeatures:
        """One batch out of several; shorter ones are padded behind."""
        longest = max(p.features.shape[1] for p in parts)
        features = [_pad(p.features, longest) for p in parts]
        return cls(torch.cat(features), torch.cat([_pad(p.mask, longest) for p in parts]))

    @property
    def lengths(self) -> list[int]:
        """Tokens of every prompt."""
        return [int(n) for n in self.mask.sum(1)]

    @property
    def width(self) -> int:
        return self.features.shape[2]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: slice | Sequence[int]) -> TextFeatures:
        index = torch.arange(len(self))[rows] if isinstance(rows, slice) else torch.tensor(list(rows))
        return TextFeatures(self.features[index], self.mask[index])

    def trim(self) -> TextFeatures:
        """Without the columns that are padding for every prompt."""
        used = self.mask.any(0)
        return self if bool(used.all()) else TextFeatures(self.features[:, used], self.mask[:, used])

    def check_finite(self, name: str = "text", *, padding: bool = False) -> None:
        """Raises NotFiniteError, naming picture and token, for features that are NaN or infinite.

        name: how messages call the text. padding: whether what is no token counts too.
        """
        wrong = ~self.features.isfinite().all(2)
        wrong = wrong if padding else wrong & self.mask
        if bool(wrong.any()):
            picture, token = wrong.nonzero()[0].tolist()
            raise NotFiniteError(
                f"{name} features are NaN or infinite at token {token} for",
                picture,
                "the text encoder's weights may be damaged, or its dtype too small for it: try float32",
            )

    def to(self, device: torch.device) -> TextFeatures:
        return TextFeatures(self.features.to(device), self.mask.to(device))


def _pad(x: Tensor, length: int) -> Tensor:
    padding = x.new_zeros(x.shape[0], length - x.shape[1], *x.shape[2:])
    return torch.cat([x, padding], 1)


class TextEncoder(Protocol):
    """Prompts to features."""

    @property
    def width(self) -> int:
        """Channels of the features."""
        ...

    def __call__(self, prompts: Sequence[str]) -> TextFeatures:
        """Features in float32, on the encoder's device."""
        ...

    def release(self) -> None:
        """Free the weights; the encoder loads them again when it is called again."""
        ...


Prompts = str | Sequence[str] | TextFeatures


def encode_prompts(
    prompts: Prompts, encoder: TextEncoder | None, *, name: str = "prompts"
) -> tuple[list[str] | None, TextFeatures]:
    """What a caller gave as text: the prompts, ``None`` where they came as features, and their features.

    encoder: what makes features of strings. name: how messages call the prompts.
    Raises InvalidArgumentError if there is nothing, something else, or no encoder for strings.
    """
    if isinstance(prompts, TextFeatures):
        return None, prompts
    texts = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(texts, Sequence) or not texts:
        raise InvalidArgumentError(f"{name} must be a text, several, or TextFeatures; got {prompts!r}")
    wrong = [t for t in texts if not isinstance(t, str)]
    if wrong:
        raise InvalidArgumentError(f"{name} must be texts, but one is {wrong[0]!r}")
    if encoder is None:
        raise InvalidArgumentError(
            f"this pipeline has no text encoder, so {name} cannot be strings: give it one with "
            f"text_encoder=, or pass TextFeatures"
        )
    texts = list(texts)
    return texts, encoder(texts)


def encode_negative(
    prompts: Prompts | None, count: int, encoder: TextEncoder | None
) -> tuple[list[str] | None, TextFeatures | None]:
    """As :func:`encode_prompts`, for negative prompts: none, one for all ``count`` images, or one each."""
    if prompts is None:
        return None, None
    texts, features = encode_prompts(prompts, encoder, name="negative_prompt")
    if len(features) not in (1, count):
        raise InvalidArgumentError(
            f"{len(features)} negative prompts for {count} images; give one for all or one per image"
        )
    return texts, features[[0] * count] if len(features) == 1 else features
