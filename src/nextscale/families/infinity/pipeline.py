"""Infinity as a pipeline: prompts in, pictures out."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from nextscale.errors import CheckpointError
from nextscale.families.infinity import checkpoint
from nextscale.families.infinity.memory import TEXT_TOKENS, estimate_memory
from nextscale.families.infinity.request import (
    ON_LOGITS,
    Grids,
    given_bits,
    resolve_layers,
    resolve_schedule,
)
from nextscale.families.infinity.schedules import FULL
from nextscale.families.infinity.session import InfinitySession
from nextscale.families.infinity.text import PUBLISHED, PUBLISHED_WIDTH, as_encoder, encoder_name
from nextscale.families.infinity.tokenizer import InfinityTokenizer, InfinityTokenizerConfig
from nextscale.families.infinity.transformer import InfinityTransformer, InfinityTransformerConfig
from nextscale.families.pipeline import TextPipeline
from nextscale.families.text import Prompts, TextEncoder, encode_negative, encode_prompts
from nextscale.generation.given import check_number, resolve_steps
from nextscale.generation.loop import StepCallback
from nextscale.generation.memory import MemoryEstimate
from nextscale.generation.request import (
    Drawn,
    GenerationOutput,
    OutputType,
    call_settings,
    check_output_type,
    convert_images,
    draw_batch,
    draw_batches,
    image_tensor,
    resolve_cfg,
    resolve_seeds,
    resolve_ssg,
    with_values,
)
from nextscale.generation.strengths import check_pictures, in_convention, of_pictures
from nextscale.generation.tokens import Drawer, Sampler
from nextscale.guidance.base import GuidanceChain
from nextscale.guidance.cfg import ClassifierFreeGuidance
from nextscale.guidance.schedules import StrengthLike
from nextscale.guidance.ssg import ScaledSpatialGuidance
from nextscale.nn.placement import place
from nextscale.scales import Grid, ScaleSchedule
from nextscale.weights.layout import load_module, locate, read_config, save_module, write_json

FAMILY = "infinity"
# What the released models have in common; a release has its own guidance_scale, temperature and pixels.
OFFICIAL_DEFAULTS = {"guidance_scale": 3.0, "temperature": 1.0, "top_k": 0, "top_p": 0.97, "pixels": FULL}


class InfinityPipeline(TextPipeline):
    """Text-to-image generation with bitwise tokens (Infinity, arXiv 2412.04431).

    Make one with :meth:`from_pretrained` or :meth:`from_official`.

    transformer, tokenizer: the two models; the bits of a token must agree.
    text_encoder: makes features of prompts given as strings; without one, pass
        :class:`~nextscale.families.text.TextFeatures`.
    defaults: ``guidance_scale``, ``temperature``, ``top_k``, ``top_p`` and ``pixels`` for calls that do not
        name them, and ``ssg``, a mapping with the settings of a :class:`ScaledSpatialGuidance` that names no
        strength.
    class_prompts: of a model that was trained on captions of classes, the prompt of each class, by its number
        in the training data; so that such a model can be measured class by class.
    """

    def __init__(
        self,
        transformer: InfinityTransformer,
        tokenizer: InfinityTokenizer,
        *,
        text_encoder: TextEncoder | None = None,
        class_prompts: Sequence[str] = (),
        defaults: Mapping[str, Any] | None = None,
        name: str = "",
    ) -> None:
        checkpoint.check_pair(transformer, tokenizer)
        self.transformer, self.tokenizer, self.name = transformer, tokenizer, name
        self.text_encoder = text_encoder
        self.class_prompts = tuple(class_prompts)
        self.defaults: dict[str, Any] = {**OFFICIAL_DEFAULTS, **(defaults or {})}

    # ------------------------------------------------------------------ loading and saving

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        text_encoder: TextEncoder | str | Path | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
    ) -> InfinityPipeline:
        """A model in the library's layout: an embedded name, a folder, or a hub id.

        text_encoder: another one than the layout names: an encoder, or the hub id or folder of a T5 model.

        Raises ModelNotFoundError or CheckpointError, naming what is wrong.
        """
        placement, folder = place(device, dtype), locate(name)
        config = read_config(folder)
        if config.get("family") != FAMILY:
            raise CheckpointError(
                f"{str(name)!r} is a model of the family {config.get('family')!r}, not {FAMILY!r}"
            )
        transformer = load_module(
            lambda c: InfinityTransformer(InfinityTransformerConfig(**c)), folder / "transformer", placement
        )
        tokenizer = load_module(
            lambda c: InfinityTokenizer(InfinityTokenizerConfig(**c)), folder / "tokenizer", placement
        )
        chosen = config.get("text_encoder") if text_encoder is None else text_encoder
        return cls(
            transformer,
            tokenizer,
            text_encoder=as_encoder(chosen, transformer),
            class_prompts=config.get("class_prompts", ()),
            defaults=config.get("defaults"),
            name=str(name),
        )

    @classmethod
    def from_official(
        cls,
        transformer: str | Path,
        tokenizer: str | Path | None = None,
        *,
        text_encoder: TextEncoder | str | Path | None = None,
        model: str | None = None,
        patch_nums: Sequence[int | Grid] | None = None,
        averaged: bool | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
    ) -> InfinityPipeline:
        """The official files, or any with their tensors.

        transformer: a file, a folder (of shards, or with both files in it), or a hub id
            (``"FoundationVision/Infinity"``).
        tokenizer: its file; looked for beside the transformer when left out.
        text_encoder: an encoder, or the hub id or folder of a T5 model; left out, it is the published one, if
            the widths agree. It is loaded when the first prompt comes.
        model: which of the released models, for a hub id or a folder with several.
        patch_nums: side (or ``(height, width)``) of every scale of the transformer's grid, for a model with
            one schedule of its own.
        averaged: whether to take averaged weights (EMA) of files that hold both, as the official trainer's
            do; ``None`` takes them where there are any.

        Sizes are read from the tensors. Raises CheckpointError for files that do not fit, before anything is
        allocated, and ModelNotFoundError if a download fails.
        """
        placement = place(device, dtype)
        transformer_file, tokenizer_file = checkpoint.find_files(transformer, tokenizer, model)
        network = checkpoint.load_transformer(transformer_file, placement, averaged=averaged)
        vae = checkpoint.load_tokenizer(
            tokenizer_file,
            placement,
            token_bits=network.config.bits,
            patch_nums=patch_nums,
            averaged=averaged,
        )
        release = checkpoint.release_of(transformer_file)
        published = PUBLISHED if network.config.text_dim == PUBLISHED_WIDTH else None
        return cls(
            network,
            vae,
            text_encoder=as_encoder(published if text_encoder is None else text_encoder, network),
            defaults=release.defaults if release else None,
            name=str(transformer) if model is None else f"{transformer} {model}",
        )

    def save_pretrained(self, folder: str | Path, *, dtype: str | torch.dtype | None = None) -> None:
        """Write the library's layout into a folder; ``dtype`` rounds the weights on the way.

        Of the text encoder only the name is stored; one that was made from loaded models has none and must be
        given again when the folder is loaded.
        """
        folder = Path(folder)
        dtype = None if dtype is None else place("cpu", dtype).dtype
        save_module(self.transformer, self.transformer.config.to_dict(), folder / "transformer", dtype=dtype)
        save_module(self.tokenizer, self.tokenizer.config.to_dict(), folder / "tokenizer", dtype=dtype)
        config = {
            "family": FAMILY,
            "text_encoder": encoder_name(self.text_encoder),
            "class_prompts": list(self.class_prompts),
            "defaults": self.defaults,
        }
        write_json(config, folder / "config.json")  # last: a folder with it is complete

    # ------------------------------------------------------------------ properties

    @property
    def schedule(self) -> ScaleSchedule:
        """The grids of a call that does not name a size."""
        return self.schedule_for()

    @property
    def image_size(self) -> tuple[int, int]:
        """``(height, width)`` in pixels of a call that does not name a size."""
        return self.size_of(self.schedule)

    def size_of(self, schedule: ScaleSchedule) -> tuple[int, int]:
        """``(height, width)`` in pixels of the pictures of a schedule."""
        h, w = self.tokenizer.cells(schedule).final
        return h * self.tokenizer.config.reduction, w * self.tokenizer.config.reduction

    def schedule_for(self, **size: Any) -> ScaleSchedule:
        """The grids for ``aspect_ratio``, ``pixels``, ``height``, ``width`` or ``schedule``, as in a call.

        Raises InvalidArgumentError if they are mixed, or name what is not there.
        """
        grids = resolve_schedule(self.tokenizer.schedule or self.defaults["pixels"], **size)
        self.transformer.check_schedule(grids)
        return grids

    # ------------------------------------------------------------------ generation

    @torch.no_grad()
    def __call__(
        self,
        prompts: Prompts,
        *,
        negative_prompt: Prompts | None = None,
        aspect_ratio: float | str | None = None,
        pixels: str | None = None,
        height: int | None = None,
        width: int | None = None,
        schedule: Grids | None = None,
        guidance_scale: StrengthLike | ClassifierFreeGuidance | None = None,
        guidance_layer: int | Sequence[int] = ON_LOGITS,
        ssg: StrengthLike | ScaledSpatialGuidance | None = None,
        temperature: float | Sequence[float] | None = None,
        top_k: int | Sequence[int] | None = None,
        top_p: float | None = None,
        min_p: float = 0.0,
        given_tokens: Sequence[Tensor] = (),
        stop_after: int | None = None,
        seed: int | Sequence[int] | None = None,
        sampler: Sampler = "paired",
        batch_size: int = 1,
        on_step: StepCallback | None = None,
        output_type: OutputType = "pil",
        tile: int | None = None,
    ) -> GenerationOutput:
        """One picture per prompt.

        prompts: one, several, or their features. A prompt beyond the encoder's length is cut, with a warning.
        negative_prompt: what to steer away from, one for all pictures or one each; ``None`` is no text.
        aspect_ratio: ``"16:9"`` is width to height; a number is height divided by width. pixels: ``"0.06M"``,
            ``"0.25M"``, ``"0.60M"`` or ``"1M"``. The nearest published size is taken.
        height, width: in pixels; the nearest published size is taken, with a warning if it is another.
        schedule: the transformer's grids themselves.
        guidance_scale: s of ``s cond + (1 - s) uncond``; a list gives s for every step. 1 turns
            classifier-free guidance off, and its cost with it.
        guidance_layer: where it acts: 0 on the logits, -k on the output of the k-th last block; or several.
        ssg: strength of Scaled Spatial Guidance, or a :class:`ScaledSpatialGuidance`; ``None`` is off. Both
            strengths can be one a picture, ``(B, 1)`` or ``(B, steps)``, as lists of lists or arrays.
        temperature: tau, by which logits are divided after all guidance; a list gives one for every step.
        top_k, top_p, min_p: see :class:`~nextscale.generation.tokens.Filters`; they act on the two values of
            a bit, so that ``top_k`` of 2 and more has no effect, and 1 makes the draw greedy.
        given_tokens: bits of the first scales, taken instead of drawn ones: tokens ``(B, h, w, D)``, as they
            come out here, or cells as the tokenizer encodes them; one for all pictures or one each.
        stop_after: make this many scales only, and decode what there is.
        seed: a number (the images get it and the following ones), one per image, or ``None`` for fresh ones.
        sampler: ``"paired"`` (an image depends on its seed alone), ``"greedy"``, or ``"multinomial"`` (the
            official code's draws; depends on the batch).
        batch_size: pictures made at once; for what they take see :meth:`memory_estimate`.
        on_step: called with a :class:`~nextscale.generation.loop.StepInfo` after every step of every batch.
        output_type: ``"pil"``, ``"pt"`` or ``"np"``; see :class:`GenerationOutput`.
        tile: decode in strips of this many rows of cells, to save memory: slower, but the same picture.

        ``None`` takes the model's default. Raises InvalidArgumentError naming the value and what is allowed.

        The settings that come back make the pictures again, but for features and given tokens, of which they
        hold no numbers.
        """
        check_output_type(output_type)
        grids = self.schedule_for(
            aspect_ratio=aspect_ratio, pixels=pixels, height=height, width=width, schedule=schedule
        )
        steps = resolve_steps(stop_after, grids)
        layers = resolve_layers(guidance_layer, self.transformer.config.depth)
        scale = self.defaults["guidance_scale"] if guidance_scale is None else guidance_scale
        cfg = with_values(resolve_cfg(scale, "interpolate"), grids.grids)
        spatial = with_values(resolve_ssg(ssg, self.defaults), grids.grids)
        drawn_from = {"top_k": top_k, "top_p": top_p, "temperature": temperature, "min_p": min_p}
        # A bit has two values, so any top_k from 2 on keeps both, as the official default of 900 does.
        filters = self._filters(grids, sys.maxsize, **drawn_from)
        texts, features = encode_prompts(prompts, self.text_encoder)
        seeds = resolve_seeds(seed, len(features))
        unwanted, negative = encode_negative(negative_prompt, len(features), self.text_encoder)
        for name, part in (("text", features), ("negative text", negative)):
            if part is not None:
                self.transformer.check_text(part)
                part.check_finite(name)
        check_pictures(len(features), guidance_scale=cfg, ssg=spatial)
        check_number(given_tokens, grids, steps)
        given = given_bits(self.tokenizer, given_tokens, grids, len(features))

        def draw_span(span: slice) -> Drawn:
            draw = Drawer(
                sampler,
                filters,
                seeds[span],
                self.device,
                bits=True,
                given=[maps[span] for maps in given],
            )
            scale = of_pictures(cfg, span)
            chain = [scale if ON_LOGITS in layers else None, of_pictures(spatial, span)]
            session = InfinitySession(
                self.transformer,
                self.tokenizer,
                grids,
                features[span],
                negative=None if negative is None else negative[span],
                scales=[in_convention(s, scale.convention, "interpolate") for s in scale.scales(grids)],
                layers=layers,
                stop_after=steps,
            )
            return draw_batch(session, draw, GuidanceChain(chain), on_step)

        images, tokens = draw_batches(
            len(features), batch_size, draw_span, partial(self._decode, tile=tile), output_type, self.dtype
        )
        settings = call_settings(
            family=FAMILY,
            model=self.name,
            prompts=texts,
            negative_prompt=unwanted,
            schedule=[list(g) for g in grids],
            seeds=seeds,
            cfg=cfg,
            guidance_layer=list(layers),
            ssg=spatial,
            filters=filters,
            given_tokens=len(given),
            stop_after=stop_after,
            tile=tile,
            sampler=sampler,
            dtype=self.dtype,
        )
        return GenerationOutput(images, tokens, seeds, settings)

    # ------------------------------------------------------------------ further uses

    @torch.no_grad()
    def reconstruct(
        self,
        images: Tensor | Image.Image | Sequence[Image.Image],
        *,
        schedule: Grids | None = None,
        output_type: OutputType = "pil",
        tile: int | None = None,
    ) -> Any:
        """Pictures through the tokenizer and back.

        images: a tensor ``(B, 3, H, W)`` in [-1, 1], or PIL images, all of one size.
        schedule: the transformer's grids; left out, the model's own, or the published ones for this size.
        """
        check_output_type(output_type)
        grids = None if schedule is None else self.schedule_for(schedule=schedule)
        pictures = image_tensor(images)
        latent = self.tokenizer.partial_sums(self.tokenizer.encode(pictures, grids), grids)[-1]
        return convert_images(self._decode(latent, tile=tile), output_type)

    def memory_estimate(
        self,
        batch: int = 1,
        dtype: str | torch.dtype | None = None,
        *,
        guided: bool = True,
        text_tokens: int = TEXT_TOKENS,
        tile: int | None = None,
        **size: Any,
    ) -> MemoryEstimate:
        """Bytes for making ``batch`` pictures at once; the text encoder is not counted.

        dtype: of the weights; ``None`` is the pipeline's own. guided: with classifier-free guidance.
        text_tokens: of the longest prompt. tile: as in a call.
        size: ``aspect_ratio``, ``pixels``, ``height``, ``width`` or ``schedule``, as in a call.
        """
        return estimate_memory(
            self.transformer.config,
            self.tokenizer.config,
            self.schedule_for(**size),
            batch=batch,
            dtype=self.dtype if dtype is None else place("cpu", dtype).dtype,
            device=self.device,
            guided=guided,
            text_tokens=text_tokens,
            tile=tile,
        )


PIPELINE = InfinityPipeline
