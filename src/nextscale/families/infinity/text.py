"""Infinity's text encoder: the encoder half of FLAN-T5-XL, through transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from nextscale.errors import InvalidArgumentError
from nextscale.families.infinity.transformer import InfinityTransformer
from nextscale.families.text import TextEncoder, TextFeatures
from nextscale.families.text_models import PretrainedEncoder
from nextscale.families.words import WordEncoder

PUBLISHED = "google/flan-t5-xl"
PUBLISHED_WIDTH = 2048
MAX_TOKENS = 512
WORDS = "words"  # how the layout names the encoder that needs no weights


class T5TextEncoder(PretrainedEncoder):
    """Prompts to the last hidden states of a T5 encoder.

    name: a hub id or a folder that holds a T5 model and its tokenizer.
    max_length: tokens of a prompt, the end token included; what is longer is cut, with a warning.
    device, dtype: of the weights. ``"auto"`` takes float16 on CUDA, as the official code does, and float32
        elsewhere.

    Nothing is loaded before the first call. Prompts go through the model one at a time, so that features do
    not depend on neighbours, and come back in float32.
    """

    MODEL = "T5EncoderModel"
    TOKENIZER_OPTIONS: ClassVar[Mapping[str, Any]] = {"legacy": True}  # how the official code splits the text

    def __init__(
        self,
        name: str | Path = PUBLISHED,
        *,
        max_length: int = MAX_TOKENS,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
    ) -> None:
        super().__init__(name, device, dtype)
        if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 2:
            raise InvalidArgumentError(
                f"max_length must be a whole number of at least 2 (a token and the end), got {max_length!r}"
            )
        self.max_length = max_length

    @classmethod
    def from_models(cls, model: Any, tokenizer: Any, *, max_length: int = MAX_TOKENS) -> T5TextEncoder:
        """From a ``T5EncoderModel`` and a tokenizer that are loaded already; they stay where they are."""
        self = cls("", max_length=max_length, device="cpu")
        self.adopt(model, tokenizer)
        return self

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """float16 on CUDA where nothing was asked for, as in the official code."""
        on_cuda = self._asked == "auto" and device.type == "cuda"
        return torch.float16 if on_cuda else super().dtype_on(device)

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> TextFeatures:
        """Features ``(B, T, width)`` in float32 on the encoder's device."""
        rows = []
        for index, prompt in enumerate(prompts):
            ids = torch.tensor([self._tokens(prompt, index)], device=self.device)
            rows.append(self.model(input_ids=ids).last_hidden_state[0].float())
        return TextFeatures.from_packed(torch.cat(rows), [len(r) for r in rows])

    def _tokens(self, prompt: str, index: int) -> list[int]:
        """A prompt's tokens and the end token, at most ``max_length``."""
        words = self.tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
        self.warn_of_cut(words, self.max_length - self.tokenizer.num_special_tokens_to_add(), index)
        ids = self.tokenizer(prompt, truncation=True, max_length=self.max_length, verbose=False).input_ids
        return list(ids)


def as_encoder(given: Any, transformer: InfinityTransformer) -> TextEncoder | None:
    """An encoder as it is, or one by the name of its model."""
    if isinstance(given, (str, Path)):
        config = transformer.config
        if given == WORDS:
            return WordEncoder(config.text_dim)
        return T5TextEncoder(given, max_length=config.text_length, device=transformer.device)
    encoder: TextEncoder | None = given
    return encoder


def encoder_name(encoder: TextEncoder | None) -> str | None:
    """What :func:`as_encoder` makes the encoder from; ``None`` for one without a name."""
    return WORDS if isinstance(encoder, WordEncoder) else getattr(encoder, "name", None)
