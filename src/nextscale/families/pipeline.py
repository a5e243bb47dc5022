"""What the pipelines of the families have in common beyond the surface of their calls."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from nextscale.families.moving import move, resolve
from nextscale.families.text import Prompts, TextEncoder, TextFeatures, encode_prompts
from nextscale.generation.tokens import Filters
from nextscale.scales import ScaleSchedule

Own = TypeVar("Own", bound="Pipeline")


class Pipeline:
    """A pipeline is where its transformer is, in the transformer's dtype, and has defaults for its calls."""

    transformer: Any
    tokenizer: Any
    defaults: dict[str, Any]

    def to(
        self: Own,
        *where: str | int | torch.device | torch.dtype,
        device: str | int | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> Own:
        """Move the models to a device, round their weights to a dtype, or both, in place; returns itself.

        where: a device, a dtype, or both in any order, as torch objects or by name: ``to("cuda")``,
            ``to(torch.bfloat16)``, ``to("cpu", "float32")``. device, dtype: the same by name. ``"auto"`` is a
            device, and beside a device a dtype; see :func:`~nextscale.nn.placement.place`.

        A text encoder goes along to the device, and keeps a dtype of its own. Weights that were rounded stay
        so: going back to float32 does not bring digits back. Models that another pipeline shares move for
        both.

        Raises InvalidArgumentError for what is neither a device nor a dtype of those that models run in, and
        for a device that is not here. Then, and where another device has too little memory, nothing has
        moved.
        """
        target = resolve(where, device, dtype, self.device, self.dtype)
        move(self, target)
        return self

    @property
    def device(self) -> torch.device:
        device: torch.device = self.transformer.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.transformer.dtype
        return dtype

    def _filters(self, schedule: ScaleSchedule, vocab_size: int, **given: Any) -> Filters:
        """The filters of a call over these grids; what is ``None`` is the default. Raises what they raise."""
        filters = Filters(**{k: self.defaults[k] if v is None else v for k, v in given.items()})
        filters.check(vocab_size=vocab_size, num_steps=schedule.num_steps)
        return filters


class TextPipeline(Pipeline):
    """A pipeline that takes prompts."""

    text_encoder: TextEncoder | None

    def encode_prompts(self, prompts: Prompts) -> TextFeatures:
        """Features of prompts, to be passed instead of them; after that, ``text_encoder.release()`` frees the
        encoder's memory."""
        return encode_prompts(prompts, self.text_encoder)[1]

    def _decode(self, latent: Tensor, **options: Any) -> Tensor:
        """One picture at a time: a decoder takes much memory, and gains nothing from batches this large."""
        return torch.cat([self.tokenizer.decode_latent(one, **options) for one in latent.split(1)])
