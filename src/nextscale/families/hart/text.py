"""HART's text encoder: the language model of Qwen2-VL, through transformers.

A prompt becomes a fixed number of tokens, without a chat template. During training, HART's authors put an
instruction (a "system prompt") in front of every prompt; its tokens colour the features and are then cut off.
Its text is not part of this library. It is the string ``llm_system_prompt`` in ``hart/utils/constants.py`` of
the repository ``mit-han-lab/hart``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError, warn
from nextscale.families.text import TextFeatures
from nextscale.families.text_models import PretrainedEncoder
from nextscale.usual import with_usual_defaults
from nextscale.whole import as_whole

PUBLISHED = "mit-han-lab/Qwen2-VL-1.5B-Instruct"
PUBLISHED_WIDTH = 1536
CONTEXT_TOKENS = 300
SYSTEM_PROMPT_LENGTH = 705
SYSTEM_PROMPT_SHA256 = "424f7aa7b1119f8ed1e329140e5941dfe308183bea0af59041dad5527a9b8f20"
SYSTEM_PROMPT_HOME = "the string llm_system_prompt in hart/utils/constants.py of github.com/mit-han-lab/hart"


class HARTTextEncoder(PretrainedEncoder):
    """Prompts to the last hidden states of a Qwen2 language model, padding included.

    name: a hub id or a folder that holds the model and its tokenizer.
    context_token: tokens of a prompt; shorter ones are padded on the side the tokenizer says, longer ones are
        cut, with a warning.
    system_prompt: the instruction in front of every prompt, as a string or the path of a text file; see
        :func:`read_system_prompt`. Without it a warning is issued, once.
    verify: whether the system prompt must be the published one.
    device, dtype: of the weights.

    Prompts go through the model one at a time, so that features do not depend on neighbours, and come back in
    float32. Nothing is loaded before the first call.
    """

    # Without a system prompt and with padding in front, padding has nothing to attend to. What comes out then
    # differs between attention kernels, and HART looks at it; plain attention is the same everywhere.
    MODEL_OPTIONS: ClassVar[dict[str, Any]] = {"attn_implementation": "eager"}

    def __init__(
        self,
        name: str | Path = PUBLISHED,
        *,
        context_token: int = CONTEXT_TOKENS,
        system_prompt: str | Path | None = None,
        verify: bool = True,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
    ) -> None:
        super().__init__(name, device, dtype)
        length = as_whole(context_token)
        if length is None or length < 1:
            raise InvalidArgumentError(
                f"context_token must be a positive whole number, got {context_token!r}"
            )
        self.context_token = length
        self.system_prompt = (
            None if system_prompt is None else read_system_prompt(system_prompt, verify=verify)
        )

    @classmethod
    def from_models(
        cls,
        model: Any,
        tokenizer: Any,
        *,
        context_token: int = CONTEXT_TOKENS,
        system_prompt: str | Path | None = None,
        verify: bool = True,
    ) -> HARTTextEncoder:
        """From a Qwen2 or Qwen2-VL model and its tokenizer, loaded already; they stay where they are."""
        self = cls("", context_token=context_token, system_prompt=system_prompt, verify=verify, device="cpu")
        self.adopt(model, tokenizer)
        return self

    @staticmethod
    def text_part(model: Any) -> Any:
        """The language model of one that takes pictures too, whose picture part is not needed."""
        return getattr(model, "language_model", model)

    @with_usual_defaults
    def __call__(self, prompts: Sequence[str]) -> TextFeatures:
        """Features ``(B, context_token, width)`` in float32 on the encoder's device."""
        if self.system_prompt is None:
            _warn_without_system_prompt()
        rows = [self._tokens(prompt, index) for index, prompt in enumerate(prompts)]
        ids = torch.stack(rows)
        mask = ids != self.tokenizer.pad_token_id
        features = [self.encode(i[None], m[None], self._prefix()) for i, m in zip(ids, mask, strict=True)]
        return TextFeatures(torch.cat(features), mask.to(self.device))

    @torch.no_grad()
    def encode(self, tokens: Tensor, mask: Tensor, prefix: Tensor | None = None) -> Tensor:
        """Hidden states after the final norm, float32 ``(B, T, width)``.

        tokens: int64 ``(B, T)``. mask: bool ``(B, T)``, false for padding. prefix: int64 ``(P,)``, tokens to
        put in front of all rows and cut off again. Positions count everything, padding included.
        """
        ahead = tokens.new_empty(0) if prefix is None else prefix
        both = torch.cat([ahead.expand(len(tokens), -1), tokens], 1).to(self.device)
        seen = torch.cat([torch.ones(len(tokens), len(ahead), dtype=torch.bool), mask.cpu()], 1)
        out = self.model(
            input_ids=both,
            attention_mask=seen.long().to(self.device),
            position_ids=torch.arange(both.shape[1], device=self.device)[None].expand_as(both),
            use_cache=False,
        )
        hidden: Tensor = out.last_hidden_state[:, len(ahead) :].float()
        return hidden

    def _tokens(self, prompt: str, index: int) -> Tensor:
        """A prompt's tokens, cut and padded, int64 ``(context_token,)``."""
        if self.tokenizer.pad_token_id is None:
            raise InvalidArgumentError(
                f"the tokenizer of the text encoder {self.name!r} has no padding token; set its pad_token"
            )
        whole = self.tokenizer(prompt, verbose=False).input_ids
        if not whole:
            raise InvalidArgumentError(f"prompt {index} has no text: {prompt!r}")
        self.warn_of_cut(whole, self.context_token, index)
        found = self.tokenizer(
            prompt, padding="max_length", truncation=True, max_length=self.context_token, verbose=False
        )
        return torch.tensor(found.input_ids)

    def _prefix(self) -> Tensor | None:
        if self.system_prompt is None:
            return None
        found = self.tokenizer(
            self.system_prompt, truncation=True, max_length=self.context_token, verbose=False
        )
        return torch.tensor(found.input_ids)


def read_system_prompt(prompt: str | Path, *, verify: bool = True) -> str:
    """The system prompt from a string, or from a UTF-8 text file of that name.

    verify: compare it with the length and SHA-256 of the published one.
    Raises InvalidArgumentError if it is another text, or the file cannot be read.
    """
    text = _read(Path(prompt)) if isinstance(prompt, Path) or _names_a_file(prompt) else prompt
    digest = hashlib.sha256(text.encode()).hexdigest()
    if verify and (len(text), digest) != (SYSTEM_PROMPT_LENGTH, SYSTEM_PROMPT_SHA256):
        raise InvalidArgumentError(
            f"this system prompt is not the published one: it has {len(text)} characters instead of "
            f"{SYSTEM_PROMPT_LENGTH} and the SHA-256 {digest[:8]}… instead of {SYSTEM_PROMPT_SHA256[:8]}…. "
            f"Take {SYSTEM_PROMPT_HOME}, with the line break at its end. To use another one on purpose, make "
            f"HARTTextEncoder(..., verify=False)"
        )
    return text


def _names_a_file(text: str) -> bool:
    return "\n" not in text and os.path.isfile(text)  # False, too, for what no file can be called


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"cannot read the system prompt {str(path)!r}: {error}") from None


@cache  # one warning per process
def _warn_without_system_prompt() -> None:
    warn(
        f"HART's weights were trained with a system prompt in front of every prompt; without it, text "
        f"features differ from those they know. Pass system_prompt=: a file of it, or {SYSTEM_PROMPT_HOME}"
    )
