"""HART as a pipeline: prompts in, pictures out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from nextscale.errors import CheckpointError, InvalidArgumentError
from nextscale.families.hart import checkpoint
from nextscale.families.hart.memory import estimate_memory
from nextscale.families.hart.session import HARTNoise, HARTSession, masked_counts
from nextscale.families.hart.text import PUBLISHED, PUBLISHED_WIDTH, HARTTextEncoder
from nextscale.families.hart.tokenizer import HARTTokenizer, HARTTokenizerConfig
from nextscale.families.hart.transformer import HARTTransformer, HARTTransformerConfig
from nextscale.families.pipeline import TextPipeline
from nextscale.families.text import Prompts, TextEncoder, encode_prompts
from nextscale.generation.given import given_codes, resolve_steps
from nextscale.generation.loop import StepCallback
from nextscale.generation.memory import MemoryEstimate
from nextscale.generation.request import (
    Drawn,
    GenerationOutput,
    OutputType,
    call_settings,
    check_output_type,
    check_pair,
    convert_images,
    draw_batch,
    draw_batches,
    image_tensor,
    resolve_cfg,
    resolve_seeds,
    resolve_ssg,
    with_values,
)
from nextscale.generation.soft import SoftCodes
from nextscale.generation.strengths import check_pictures, in_convention, of_pictures
from nextscale.generation.tokens import Drawer, Sampler
from nextscale.guidance.base import GuidanceChain
from nextscale.guidance.cfg import ClassifierFreeGuidance
from nextscale.guidance.schedules import StrengthLike
from nextscale.guidance.ssg import ScaledSpatialGuidance
from nextscale.nn.placement import place
from nextscale.scales import ScaleSchedule
from nextscale.weights.layout import load_module, locate, read_config, save_module, write_json

FAMILY = "hart"
# What the published sampler and demo use. Its top-k is fixed: 600 before the scale of this index, then 300.
OFFICIAL_DEFAULTS = {"guidance_scale": 4.5, "top_p": 0.0, "temperature": 1.0, "more_smooth": True}
TOP_K_EARLY, TOP_K_LATE, TOP_K_CHANGES_AT = 600, 300, 7


class HARTPipeline(TextPipeline):
    """Text-to-image generation with hybrid tokens (HART, arXiv 2410.10812).

    Make one with :meth:`from_pretrained` or :meth:`from_official`.

    transformer, tokenizer: the two models; their schedules and code widths must agree.
    text_encoder: makes features of prompts given as strings; without one, pass
        :class:`~nextscale.families.text.TextFeatures`.
    defaults: ``guidance_scale``, ``top_k``, ``top_p``, ``temperature`` and ``more_smooth`` for calls that do
        not name them, and ``ssg``, a mapping with the settings of a :class:`ScaledSpatialGuidance` that names
        no strength.
    """

    def __init__(
        self,
        transformer: HARTTransformer,
        tokenizer: HARTTokenizer,
        *,
        text_encoder: TextEncoder | None = None,
        defaults: Mapping[str, Any] | None = None,
        name: str = "",
    ) -> None:
        check_pair(transformer, tokenizer)
        self.transformer, self.tokenizer, self.name = transformer, tokenizer, name
        self.text_encoder = text_encoder
        top_k = [TOP_K_EARLY if k < TOP_K_CHANGES_AT else TOP_K_LATE for k in range(len(self.schedule))]
        limit = transformer.config.vocab_size
        official = {**OFFICIAL_DEFAULTS, "top_k": [min(k, limit) for k in top_k]}
        self.defaults: dict[str, Any] = {**official, **(defaults or {})}

    # ------------------------------------------------------------------ loading and saving

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        text_encoder: TextEncoder | str | Path | None = None,
        system_prompt: str | Path | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
    ) -> HARTPipeline:
        """A model in the library's layout: a folder or a hub id.

        text_encoder: another one than the layout names: an encoder, or the hub id or folder of a Qwen2 model.
        system_prompt: the instruction the weights were trained with, as a string or a file; see
            :class:`~nextscale.families.hart.text.HARTTextEncoder`.

        Raises ModelNotFoundError or CheckpointError, naming what is wrong.
        """
        placement, folder = place(device, dtype), locate(name)
        config = read_config(folder)
        if config.get("family") != FAMILY:
            raise CheckpointError(
                f"{str(name)!r} is a model of the family {config.get('family')!r}, not {FAMILY!r}"
            )
        transformer = load_module(
            lambda c: HARTTransformer(HARTTransformerConfig(**c)), folder / "transformer", placement
        )
        tokenizer = load_module(
            lambda c: HARTTokenizer(HARTTokenizerConfig(**c)), folder / "tokenizer", placement
        )
        chosen = config.get("text_encoder") if text_encoder is None else text_encoder
        return cls(
            transformer,
            tokenizer,
            text_encoder=_as_encoder(chosen, transformer, system_prompt),
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
        system_prompt: str | Path | None = None,
        averaged: bool | None = None,
        ema: bool | None = None,
        settings: Mapping[str, Any] | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
    ) -> HARTPipeline:
        """The official files, or any with their tensors.

        transformer: a file, a folder with the folders ``llm`` and ``tokenizer``, or a hub id
            (``"mit-han-lab/hart-0.7b-1024px"``).
        tokenizer: its file or folder; looked for beside the transformer when left out.
        text_encoder: an encoder, or the hub id or folder of a Qwen2 model; left out, it is the published one,
            if the widths agree. It is loaded when the first prompt comes.
        system_prompt: the instruction the weights were trained with, as a string or a file; see
            :class:`~nextscale.families.hart.text.HARTTextEncoder`.
        averaged: whether to take averaged weights (EMA), of a folder or of a file that holds both; ``None``
            takes them where there are any. ema: an older name of the same.
        settings: values that neither tensors nor ``config.json`` tell, such as ``{"num_heads": 24}``.

        Raises CheckpointError for files that do not fit, before anything is allocated, and ModelNotFoundError
        if a download fails.
        """
        placement = place(device, dtype)
        averaged = ema if averaged is None else averaged
        transformer_file, tokenizer_file = checkpoint.find_files(transformer, tokenizer, averaged=averaged)
        model = checkpoint.load_transformer(transformer_file, placement, settings, averaged=averaged)
        codes = checkpoint.load_tokenizer(
            tokenizer_file, placement, model.config.patch_nums, settings, averaged=averaged
        )
        if text_encoder is None and model.config.context_dim == PUBLISHED_WIDTH:
            text_encoder = PUBLISHED
        encoder = _as_encoder(text_encoder, model, system_prompt)
        return cls(model, codes, text_encoder=encoder, name=str(transformer))

    def save_pretrained(self, folder: str | Path, *, dtype: str | torch.dtype | None = None) -> None:
        """Write the library's layout into a folder; ``dtype`` rounds the weights on the way.

        Of the text encoder only the name is stored; one that was made from loaded models has none and must be
        given again when the folder is loaded, as must the system prompt.
        """
        folder = Path(folder)
        dtype = None if dtype is None else place("cpu", dtype).dtype
        save_module(self.transformer, self.transformer.config.to_dict(), folder / "transformer", dtype=dtype)
        save_module(self.tokenizer, self.tokenizer.config.to_dict(), folder / "tokenizer", dtype=dtype)
        name = getattr(self.text_encoder, "name", None)
        config = {"family": FAMILY, "text_encoder": name, "defaults": self.defaults}
        write_json(config, folder / "config.json")  # last: a folder with it is complete

    # ------------------------------------------------------------------ properties

    @property
    def schedule(self) -> ScaleSchedule:
        return self.transformer.schedule

    @property
    def image_size(self) -> tuple[int, int]:
        """``(height, width)`` of the pictures, in pixels."""
        h, w = self.schedule.final
        return h * self.tokenizer.config.reduction, w * self.tokenizer.config.reduction

    # ------------------------------------------------------------------ generation

    @torch.no_grad()
    def __call__(
        self,
        prompts: Prompts,
        *,
        guidance_scale: StrengthLike | ClassifierFreeGuidance | None = None,
        ssg: StrengthLike | ScaledSpatialGuidance | None = None,
        more_smooth: bool | None = None,
        residual: bool = True,
        mask_iterations: int = 1,
        top_k: int | Sequence[int] | None = None,
        top_p: float | None = None,
        min_p: float = 0.0,
        temperature: float | Sequence[float] | None = None,
        given_tokens: Sequence[Tensor] = (),
        stop_after: int | None = None,
        seed: int | Sequence[int] | None = None,
        sampler: Sampler = "paired",
        batch_size: int = 1,
        on_step: StepCallback | None = None,
        output_type: OutputType = "pil",
    ) -> GenerationOutput:
        """One picture per prompt.

        prompts: one, several, or their features ``(B, context_token, context_dim)``. A prompt beyond the
            encoder's length is cut, with a warning.
        guidance_scale: t of ``(1 + t) cond - t uncond``. It rises linearly from 0, as if to reach this
            number at the last step, which however repeats the step before; so it is never quite reached. A
            list gives t for every step. The residual is drawn under the last step's. 0 turns classifier-free
            guidance off, and its cost with it.
        ssg: strength of Scaled Spatial Guidance, or a :class:`ScaledSpatialGuidance`; ``None`` is off. It
            guides the tokens, not the residual. Both strengths can be one a picture, ``(B, 1)`` or ``(B,
            steps)``, as lists of lists or arrays.
        more_smooth: show mixtures of codes instead of the drawn ones, sharper at finer scales.
        residual: draw what the codes leave out of the finest scale, by diffusion.
        mask_iterations: in how many parts the last scale is predicted; each sees those before.
        top_k, top_p, min_p, temperature: see :class:`~nextscale.generation.tokens.Filters`.
        given_tokens: token maps ``(B, h, w)`` of the first scales, taken in place of drawn ones; one for all
            pictures or one each.
        stop_after: make this many scales only, and decode what there is; the residual belongs to the last.
        seed: a number (the images get it and the following ones), one per image, or ``None`` for fresh ones.
        sampler: ``"paired"`` (an image depends on its seed alone), ``"greedy"`` (the likeliest tokens;
            mixtures and the residual are drawn all the same), or ``"multinomial"`` (the official code's draws
            of tokens and mixtures; depends on the batch).
        batch_size: pictures made at once; for what they take see :meth:`memory_estimate`.
        on_step: called with a :class:`~nextscale.generation.loop.StepInfo` after every step of every batch.
        output_type: ``"pil"``, ``"pt"`` or ``"np"``; see :class:`GenerationOutput`.

        ``None`` takes the model's default. Raises InvalidArgumentError naming the value and what is allowed.

        An image's seed makes the numbers of its tokens, the permutation behind ``mask_iterations``, the noise
        of the residual, and the mixtures, each independently of the others. The settings that come back make
        the pictures again, but for features and given tokens, of which they hold no numbers, and the system
        prompt, of which they hold the SHA-256.
        """
        check_output_type(output_type)
        grids = self.schedule.grids
        scale = self.defaults["guidance_scale"] if guidance_scale is None else guidance_scale
        cfg = with_values(resolve_cfg(scale, "extra", "linear-hold"), grids)
        spatial = with_values(resolve_ssg(ssg, self.defaults), grids)
        drawn_from = {"top_k": top_k, "top_p": top_p, "temperature": temperature, "min_p": min_p}
        filters = self._filters(self.schedule, self.transformer.config.vocab_size, **drawn_from)
        soft = bool(self.defaults["more_smooth"] if more_smooth is None else more_smooth)
        masked_counts(self.schedule.lengths[-1], mask_iterations)  # raises before prompts are encoded
        steps = resolve_steps(stop_after, self.schedule)
        texts, features = encode_prompts(prompts, self.text_encoder)
        self.transformer.check_text(features)
        features.check_finite(padding=True)  # which this model reads
        seeds = resolve_seeds(seed, len(features))
        check_pictures(len(features), guidance_scale=cfg, ssg=spatial)
        given = given_codes(self.tokenizer, given_tokens, self.schedule, steps, len(features))

        def draw_span(span: slice) -> Drawn:
            maps = [tokens[span] for tokens in given]
            draw = Drawer(sampler, filters, seeds[span], self.device, given=maps)
            scale = of_pictures(cfg, span)
            guidance = GuidanceChain([scale, of_pictures(spatial, span)])
            session = HARTSession(
                self.transformer,
                self.tokenizer,
                features[span],
                guidance.branches,
                noise=HARTNoise.draw(draw.noise, self.transformer),
                guidance=in_convention(scale.scales(grids)[-1], scale.convention, "extra"),
                smooth=SoftCodes.of(draw, hold_last=True) if soft else None,
                residual=residual,
                mask_iterations=mask_iterations,
                given=len(given),
                stop_after=steps,
            )
            return draw_batch(session, draw, guidance, on_step)

        images, tokens = draw_batches(
            len(features), batch_size, draw_span, self._decode, output_type, self.dtype
        )
        settings = call_settings(
            family=FAMILY,
            model=self.name,
            prompts=texts,
            system_prompt_sha256=self._system_prompt_digest() if texts else None,
            seeds=seeds,
            cfg=cfg,
            ssg=spatial,
            more_smooth=soft,
            residual=residual,
            mask_iterations=mask_iterations,
            given_tokens=len(given),
            stop_after=stop_after,
            filters=filters,
            sampler=sampler,
            dtype=self.dtype,
        )
        return GenerationOutput(images, tokens, seeds, settings)

    def _system_prompt_digest(self) -> str | None:
        prompt = getattr(self.text_encoder, "system_prompt", None)
        return None if prompt is None else hashlib.sha256(prompt.encode()).hexdigest()

    # ------------------------------------------------------------------ further uses

    @torch.no_grad()
    def reconstruct(
        self,
        images: Tensor | Image.Image | Sequence[Image.Image],
        *,
        residual: bool = True,
        output_type: OutputType = "pil",
    ) -> Any:
        """Pictures through the tokenizer and back.

        images: a tensor ``(B, 3, H, W)`` in [-1, 1], or PIL images of the model's size.
        residual: whether what the codes leave out is kept, or lost.
        """
        check_output_type(output_type)
        tokens, rest = self.tokenizer.encode_hybrid(image_tensor(images, self.image_size))
        left = self.tokenizer.residual(tokens[-1], rest) if residual else None
        return convert_images(self._decode(self.tokenizer.latent(tokens, left)), output_type)

    def memory_estimate(
        self,
        batch: int = 1,
        dtype: str | torch.dtype | None = None,
        *,
        guided: bool = True,
        ssg: bool = False,
        mask_iterations: int = 1,
        top_k: int | Sequence[int] | None = None,
    ) -> MemoryEstimate:
        """Bytes for making ``batch`` pictures at once; the text encoder is not counted.

        dtype: of the weights; ``None`` is the pipeline's own. guided: with classifier-free guidance. ssg:
        with Scaled Spatial Guidance. mask_iterations, top_k: as in a call.
        """
        return estimate_memory(
            self.transformer.config,
            self.tokenizer.config,
            batch=batch,
            dtype=self.dtype if dtype is None else place("cpu", dtype).dtype,
            device=self.device,
            guided=guided,
            ssg=ssg,
            mask_iterations=mask_iterations,
            top_k=self.defaults["top_k"] if top_k is None else top_k,
        )


def _as_encoder(
    given: TextEncoder | str | Path | None, transformer: HARTTransformer, system_prompt: str | Path | None
) -> TextEncoder | None:
    """An encoder as it is, or one by the name of its model."""
    if isinstance(given, (str, Path)):
        tokens = transformer.config.context_token
        return HARTTextEncoder(
            given, context_token=tokens, system_prompt=system_prompt, device=transformer.device
        )
    if system_prompt is not None:
        raise InvalidArgumentError(
            "a system prompt belongs to the text encoder; give it to that one, or name a model for it"
        )
    return given


PIPELINE = HARTPipeline
