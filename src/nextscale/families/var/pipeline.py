"""VAR as a pipeline: classes in, pictures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nextscale import __version__
from nextscale.errors import CheckpointError, InvalidArgumentError
from nextscale.families.pipeline import Pipeline
from nextscale.families.var import checkpoint
from nextscale.families.var.classes import checked_class_names, imagenet_classes, resolve_labels
from nextscale.families.var.memory import estimate_memory
from nextscale.families.var.session import VARSession
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig
from nextscale.generation.finite import check_likelihoods
from nextscale.generation.given import given_codes, resolve_steps
from nextscale.generation.loop import StepCallback
from nextscale.generation.memory import MemoryEstimate
from nextscale.generation.noise import Noise
from nextscale.generation.request import (
    Drawn,
    GenerationOutput,
    OutputType,
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
from nextscale.generation.strengths import check_pictures, of_pictures, per_picture
from nextscale.generation.tokens import Drawer, Filters, Sampler
from nextscale.generation.version import VERSION
from nextscale.guidance.base import GuidanceChain
from nextscale.guidance.cfg import ClassifierFreeGuidance
from nextscale.guidance.schedules import StrengthLike
from nextscale.guidance.ssg import ScaledSpatialGuidance
from nextscale.nn.placement import place
from nextscale.recording import Recordings
from nextscale.scales import Grid, ScaleSchedule
from nextscale.weights.layout import load_module, locate, read_config, save_module, write_json

FAMILY = "var"
# The settings VAR's authors publish figures for, at every depth.
OFFICIAL_DEFAULTS = {"guidance_scale": 1.5, "top_k": 900, "top_p": 0.96, "temperature": 1.0}

Label = int | str


class VARPipeline(Pipeline):
    """Class-conditional next-scale generation (VAR, arXiv 2404.02905).

    Make one with :meth:`from_pretrained` or :meth:`from_official`.

    transformer, tokenizer: the two models; their schedules and code widths must agree.
    class_names: one per class, for labels given by name; may be empty.
    defaults: ``guidance_scale``, ``top_k``, ``top_p`` and ``temperature`` for calls that do not name them,
        and ``ssg``, a mapping with the settings of a :class:`ScaledSpatialGuidance` that names no strength.
    """

    def __init__(
        self,
        transformer: VARTransformer,
        tokenizer: VARTokenizer,
        *,
        class_names: Sequence[str] = (),
        defaults: Mapping[str, Any] | None = None,
        name: str = "",
    ) -> None:
        check_pair(transformer, tokenizer)
        self.transformer, self.tokenizer, self.name = transformer, tokenizer, name
        self.class_names = tuple(class_names)
        self.defaults: dict[str, Any] = {**OFFICIAL_DEFAULTS, **(defaults or {})}
        self.recordings = Recordings()
        self.defaults["top_k"] = min(self.defaults["top_k"], transformer.config.vocab_size)

    # ------------------------------------------------------------------ loading and saving

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        class_names: Sequence[str] | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
    ) -> VARPipeline:
        """A model in the library's layout: an embedded name (``"cifar10"``), a folder, or a hub id.

        class_names: others than the layout has, one per class in the order of their numbers.

        Raises ModelNotFoundError or CheckpointError, naming what is wrong.
        """
        placement, folder = place(device, dtype), locate(name)
        config = read_config(folder)
        if config.get("family") != FAMILY:
            raise CheckpointError(
                f"{str(name)!r} is a model of the family {config.get('family')!r}, not {FAMILY!r}"
            )
        transformer = load_module(
            lambda c: VARTransformer(VARTransformerConfig(**c)), folder / "transformer", placement
        )
        tokenizer = load_module(
            lambda c: VARTokenizer(VARTokenizerConfig(**c)), folder / "tokenizer", placement
        )
        names = checked_class_names(class_names, transformer.config.num_classes)
        return cls(
            transformer,
            tokenizer,
            class_names=config.get("class_names", ()) if names is None else names,
            defaults=config.get("defaults"),
            name=str(name),
        )

    @classmethod
    def from_official(
        cls,
        transformer: str | Path,
        tokenizer: str | Path | None = None,
        *,
        depth: int | None = None,
        patch_nums: Sequence[int | Grid] | None = None,
        averaged: bool | None = None,
        settings: Mapping[str, Any] | None = None,
        class_names: Sequence[str] | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
    ) -> VARPipeline:
        """The official files ``var_d*.pth`` and ``vae_ch160v4096z32.pth``, or any file with their tensors.

        transformer: a file, a folder that holds both files, or a hub id (``"FoundationVision/var"``).
        tokenizer: its file; looked for beside the transformer, and in its file, when left out.
        depth: which transformer, for a hub id or a folder with several.
        patch_nums: side of every scale, or ``(height, width)``, only where the tensors cannot tell.
        averaged: whether to take averaged weights (EMA) of files that hold both; ``None`` takes them where
            there are any.
        settings: what else tensors cannot tell, such as ``{"num_heads": 8}`` of plain attention; also
            ``norm_eps``, and of the tokenizer ``quant_resi``, ``using_znorm``, ``beta`` and ``norm_groups``.
        class_names: one per class, in the order of their numbers; left out, a model of 1,000 classes has
            ImageNet's.

        Depth, width, heads and flags are read from the tensors. Raises CheckpointError for files that do not
        fit, before anything is allocated, and ModelNotFoundError if a download fails.
        """
        placement = place(device, dtype)
        transformer_file, tokenizer_file = checkpoint.find_files(transformer, tokenizer, depth)
        told: dict[str, Any] = {"settings": settings, "averaged": averaged}
        model = checkpoint.load_transformer(transformer_file, placement, patch_nums, **told)
        names = checked_class_names(class_names, model.config.num_classes)
        if names is None:
            names = imagenet_classes() if model.config.num_classes == 1000 else ()
        return cls(
            model,
            checkpoint.load_tokenizer(tokenizer_file, placement, model.config.patch_nums, **told),
            class_names=names,
            name=str(transformer) if depth is None else f"{transformer} d{depth}",
        )

    def save_pretrained(self, folder: str | Path, *, dtype: str | torch.dtype | None = None) -> None:
        """Write the library's layout into a folder; ``dtype`` rounds the weights on the way."""
        folder = Path(folder)
        dtype = None if dtype is None else place("cpu", dtype).dtype
        save_module(self.transformer, self.transformer.config.to_dict(), folder / "transformer", dtype=dtype)
        save_module(self.tokenizer, self.tokenizer.config.to_dict(), folder / "tokenizer", dtype=dtype)
        config = {"family": FAMILY, "class_names": list(self.class_names), "defaults": self.defaults}
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
        labels: Label | Sequence[Label],
        *,
        guidance_scale: StrengthLike | ClassifierFreeGuidance | None = None,
        ssg: StrengthLike | ScaledSpatialGuidance | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float = 0.0,
        temperature: float | Sequence[float] | None = None,
        more_smooth: bool = False,
        given_tokens: Sequence[Tensor] = (),
        stop_after: int | None = None,
        seed: int | Sequence[int] | None = None,
        sampler: Sampler = "paired",
        batch_size: int = 16,
        on_step: StepCallback | None = None,
        output_type: OutputType = "pil",
    ) -> GenerationOutput:
        """One picture per label.

        labels: class numbers or names, mixed as you like; -1 is "no class".
        guidance_scale: t at the last step of ``(1 + t) cond - t uncond``; it rises linearly from 0. A list
            gives t for every step. 0 turns classifier-free guidance off, and its cost with it.
        ssg: strength of Scaled Spatial Guidance, or a :class:`ScaledSpatialGuidance`; ``None`` is off. Both
            strengths can be one a picture, ``(B, 1)`` or ``(B, steps)``, as lists of lists or arrays.
        top_k, top_p, min_p, temperature: see :class:`~nextscale.generation.tokens.Filters`.
        more_smooth: mix codes instead of drawing them (VAR's option for looks; not for measuring).
        given_tokens: token maps ``(B, h, w)`` of the first scales, taken in place of drawn ones; one for all
            pictures or one each.
        stop_after: make this many scales only, and decode what there is.
        seed: a number (the images get it and the following ones), one per image, or ``None`` for fresh ones.
        sampler: ``"paired"`` (an image depends on its seed alone), ``"greedy"``, or ``"multinomial"`` (the
            official code's draws; depends on the batch).
        on_step: called with a :class:`~nextscale.generation.loop.StepInfo` after every step of every batch.
        output_type: ``"pil"``, ``"pt"`` or ``"np"``; see :class:`GenerationOutput`.

        ``None`` takes the model's default. Raises InvalidArgumentError naming the value and what is allowed.

        The settings that come back make the pictures again, but for given tokens, of which they hold no
        numbers.
        """
        check_output_type(output_type)
        steps = resolve_steps(stop_after, self.schedule)
        numbers = resolve_labels(labels, self.class_names, self.transformer.config.num_classes)
        seeds = resolve_seeds(seed, len(numbers))
        scale = self.defaults["guidance_scale"] if guidance_scale is None else guidance_scale
        cfg = with_values(resolve_cfg(scale, "extra"), self.schedule.grids)
        spatial = with_values(resolve_ssg(ssg, self.defaults), self.schedule.grids)
        drawn_from = {"top_k": top_k, "top_p": top_p, "temperature": temperature, "min_p": min_p}
        filters = self._filters(self.schedule, self.transformer.config.vocab_size, **drawn_from)
        check_pictures(len(numbers), guidance_scale=cfg, ssg=spatial)
        given = given_codes(self.tokenizer, given_tokens, self.schedule, steps, len(numbers))
        # A recording holds what it was made with, and so can take the usual case alone.
        recordable = on_step is None and not more_smooth and sampler != "multinomial" and not given
        recordable = recordable and steps == len(self.schedule)

        def draw_span(span: slice) -> Drawn:
            guidance = GuidanceChain([of_pictures(cfg, span), of_pictures(spatial, span)])
            wanted = torch.tensor(numbers[span], device=self.device)
            if recordable and not per_picture(cfg, spatial):
                return self._recorded(wanted, seeds[span], guidance, filters, sampler)
            maps = [tokens[span] for tokens in given]
            draw = Drawer(sampler, filters, seeds[span], self.device, given=maps)
            session = VARSession(
                self.transformer,
                self.tokenizer,
                wanted,
                guidance.branches,
                SoftCodes.of(draw) if more_smooth else None,
                given=len(given),
                stop_after=steps,
            )
            return draw_batch(session, draw, guidance, on_step)

        images, tokens = draw_batches(
            len(numbers), batch_size, draw_span, self.tokenizer.decode_latent, output_type, self.dtype
        )
        settings = {
            "nextscale": __version__,
            "family": FAMILY,
            "model": self.name,
            "labels": [-1 if n == self.transformer.null_label else n for n in numbers],
            "seeds": seeds,
            "guidance_scale": cfg.to_dict(),
            "ssg": spatial.to_dict() if spatial else None,
            "top_k": filters.top_k,
            "top_p": filters.top_p,
            "min_p": filters.min_p,
            "temperature": filters.temperature,
            "more_smooth": more_smooth,
            "given_tokens": len(given),
            "stop_after": stop_after,
            "sampler": sampler,
            "sampler_version": VERSION,
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        return GenerationOutput(images, tokens, seeds, settings)

    def _recorded(
        self,
        labels: Tensor,
        seeds: Sequence[int],
        guidance: GuidanceChain,
        filters: Filters,
        sampler: Sampler,
    ) -> Drawn:
        """One batch, which depends on nothing but labels and seeds; on a GPU it may be a recording."""

        def run(labels: Tensor, seeds: Tensor) -> list[Tensor]:
            draw = Drawer(sampler, filters, seeds, self.device)
            session = VARSession(self.transformer, self.tokenizer, labels, guidance.branches)
            drawn = draw_batch(session, draw, guidance)
            return [*drawn.tokens, drawn.latent, drawn.finite]

        def size() -> int:
            estimate = self.memory_estimate(len(labels), guided=len(guidance.branches) > 1, ssg=True)
            return estimate.cache + estimate.activations

        kind = (len(labels), guidance.methods, filters, sampler)
        models = [self.transformer, self.tokenizer.quantize]
        given = labels, Noise(seeds, self.device).seeds
        *tokens, latent, finite = self.recordings.run(models, kind, size, run, *given)
        return Drawn(tokens, latent, finite)

    def memory_estimate(
        self,
        batch: int = 1,
        dtype: str | torch.dtype | None = None,
        *,
        guided: bool = True,
        ssg: bool = False,
        top_k: int | Sequence[int] | None = None,
    ) -> MemoryEstimate:
        """Bytes for making ``batch`` pictures at once.

        dtype: of the weights; ``None`` is the pipeline's own. guided: with classifier-free guidance. ssg:
        with Scaled Spatial Guidance. top_k: as in a call.
        """
        return estimate_memory(
            self.transformer.config,
            self.tokenizer.config,
            batch=batch,
            dtype=self.dtype if dtype is None else place("cpu", dtype).dtype,
            device=self.device,
            guided=guided,
            ssg=ssg,
            top_k=self.defaults["top_k"] if top_k is None else top_k,
        )

    # ------------------------------------------------------------------ looking at real pictures

    def reconstruct(
        self, images: Tensor | Image.Image | Sequence[Image.Image], output_type: OutputType = "pil"
    ) -> Any:
        """Pictures through the tokenizer and back.

        images: a tensor ``(B, 3, H, W)`` in [-1, 1], or PIL images of the model's size.
        """
        check_output_type(output_type)
        return convert_images(
            self.tokenizer.decode(self.tokenizer.encode(image_tensor(images, self.image_size))), output_type
        )

    @torch.no_grad()
    def log_likelihood(
        self, images: Tensor | Image.Image | Sequence[Image.Image], labels: Label | Sequence[Label]
    ) -> Tensor:
        """Teacher-forced log-likelihood of the pictures' tokens given their classes, per scale.

        Returns float64 ``(B, K)`` in nats, summed over each scale's positions; its sum over K is that of the
        whole token sequence. Raises NotFiniteError where it would be none.
        """
        tokens = self.tokenizer.encode(image_tensor(images, self.image_size))
        numbers = resolve_labels(labels, self.class_names, self.transformer.config.num_classes)
        if len(numbers) != len(tokens[0]):
            raise InvalidArgumentError(f"{len(numbers)} labels for {len(tokens[0])} images")
        logits = self.transformer(torch.tensor(numbers), self.tokenizer.next_inputs(tokens))  # (B, L, V)
        targets = torch.cat([t.flatten(1) for t in tokens], 1)  # (B, L)
        losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").cpu().double()
        check_likelihoods(losses, self.dtype)
        return -torch.stack([losses[:, self.schedule.span(k)].sum(1) for k in range(len(tokens))], 1)


PIPELINE = VARPipeline
