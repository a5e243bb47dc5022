"""Training by recipe: every entry point takes one, or its name, and its settings can be overridden.

The command line calls the three ``train_*`` functions. The recipes themselves are in
:mod:`nextscale.training.presets` and can be had from here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nextscale.errors import CheckpointError
from nextscale.families.infinity.tokenizer import InfinityTokenizer
from nextscale.families.infinity.transformer import InfinityTransformer
from nextscale.families.var.tokenizer import VARTokenizer
from nextscale.families.var.transformer import VARTransformer
from nextscale.families.words import WordEncoder
from nextscale.nn.classifier import SmallClassifier
from nextscale.nn.placement import Placement, place
from nextscale.scales import Grid, ScaleSchedule
from nextscale.training.bit_tokenizer import BitTokenizerTask
from nextscale.training.bit_transformer import BitTransformerTask, init_bit_transformer, latents
from nextscale.training.cache import AnyTokenizer, Encode, cached
from nextscale.training.checkpoint import CHECKPOINT, Origin, check_resumable
from nextscale.training.classifier import ClassifierTask
from nextscale.training.data import Check, ImageSource, check_classes, open_splits, to_float
from nextscale.training.digest import pictures_digest
from nextscale.training.initial import Initial, open_initial_infinity, open_initial_var
from nextscale.training.next_scale import Transformer
from nextscale.training.presets import (
    CIFAR10_CLASSES,
    RECIPES,
    BitTokenizerRecipe,
    BitTransformerRecipe,
    ClassifierRecipe,
    TokenizerRecipe,
    TransformerRecipe,
    cifar10_bit_tokenizer,
    cifar10_bit_transformer,
    cifar10_classifier,
    cifar10_tokenizer,
    cifar10_transformer,
    eurosat_classifier,
    eurosat_tokenizer,
    eurosat_transformer,
    find_recipe,
    tiny_bit_tokenizer,
    tiny_bit_transformer,
    tiny_classifier,
    tiny_tokenizer,
    tiny_transformer,
)
from nextscale.training.sizes import Sides, Size, as_text, check_first_scale, fit_scales, height_width
from nextscale.training.tokenizer import TokenizerTask
from nextscale.training.tokenizers import load_tokenizer, open_tokenizer, stride_of
from nextscale.training.trainer import Reporter, TrainSettings, print_report, train
from nextscale.training.transformer import TransformerTask, init_transformer, token_maps
from nextscale.training.views import check_square
from nextscale.usual import with_usual_defaults
from nextscale.weights.digest import weights_digest

__all__ = [
    "CIFAR10_CLASSES",
    "RECIPES",
    "BitTokenizerRecipe",
    "BitTransformerRecipe",
    "ClassifierRecipe",
    "TokenizerRecipe",
    "TransformerRecipe",
    "cifar10_bit_tokenizer",
    "cifar10_bit_transformer",
    "cifar10_classifier",
    "cifar10_tokenizer",
    "cifar10_transformer",
    "eurosat_classifier",
    "eurosat_tokenizer",
    "eurosat_transformer",
    "load_tokenizer",
    "tiny_bit_tokenizer",
    "tiny_bit_transformer",
    "tiny_classifier",
    "tiny_tokenizer",
    "tiny_transformer",
    "train_classifier",
    "train_tokenizer",
    "train_transformer",
]

HELD_OUT_IMAGES = 1000  # that the transformer's held-out loss is measured on
SHOWN_DIGEST = 16  # characters


@with_usual_defaults
def train_tokenizer(
    data: str | Path,
    output: str | Path,
    *,
    size: Size | None = None,
    scales: Sequence[int | Grid] | None = None,
    recipe: str | TokenizerRecipe | BitTokenizerRecipe = "cifar10",
    perceptual: str | Path | None = None,
    adversarial: float | None = None,
    held_out: str | Path | None = None,
    check: Check = "headers",
    skip_broken: bool = False,
    resume: bool = True,
    report: Reporter = print_report,
    device: str = "auto",
    **overrides: Any,
) -> VARTokenizer | InfinityTokenizer:
    """Train a tokenizer on pictures; see :func:`open_images` for what ``data`` can be.

    size: pixels per side, or ``(height, width)``; multiples of the tokenizer's stride. ``None`` is what the
        scales end at, or the recipe's.
    scales: sides of square grids, or ``(height, width)`` pairs, in cells of the latent, which is the last.
        ``None`` is the known list that ends at the latent of this size, or one like it; see
        :func:`~nextscale.training.sizes.scales_for`.
    recipe: a name from :data:`RECIPES`, or a recipe.
    perceptual, adversarial: features to compare and weight of the adversarial term instead of the recipe's;
        see :class:`~nextscale.training.judges.JudgeSettings`.
    held_out: other data to measure on; by default the ``test`` split of ``data`` where there is one, else one
        picture in twenty, at most 2,000, which are then not trained on.
    check: look at all pictures before, ``"headers"`` or ``"full"``; skip_broken: leave out those that cannot
        be read, instead of an error. See :func:`open_images`.
    output: gets ``tokenizer/`` (weights), ``log.jsonl``, ``checkpoint.pt`` and sample pictures. A checkpoint
        in it that was made from other data, or with another size, recipe or seed, is refused.
    overrides: fields of :class:`TrainSettings`; ``None`` keeps the recipe's.
    """
    chosen: TokenizerRecipe | BitTokenizerRecipe = find_recipe("tokenizer", recipe, overrides)
    settings, where = chosen.settings, place(device).device
    patch = chosen.config.patch if isinstance(chosen, BitTokenizerRecipe) else 1
    if size is None and scales is None:
        scales = chosen.config.patch_nums
    size, sides = fit_scales(size, scales, chosen.config.reduction * patch)
    judges = chosen.judges.changed(perceptual, adversarial)
    training, held = open_splits(
        data, size=size, held_out=held_out, labels=False, check=check, skip_broken=skip_broken
    )
    if chosen.turn:
        check_square(height_width(size))
    origin = _origin("tokenizer", recipe, training, sides) | judges.origin
    torch.manual_seed(settings.seed)
    if isinstance(chosen, BitTokenizerRecipe):
        check_first_scale(sides)
        bitwise = InfinityTokenizer(replace(chosen.config, patch_nums=sides)).to(where)
        judged: dict[str, Any] = dict(flip=chosen.flip, turn=chosen.turn, judges=judges.open(where))
        bit_task = BitTokenizerTask(bitwise, training, held, **judged)
        return train(bit_task, settings, Path(output), origin=origin, resume=resume, report=report)
    model = VARTokenizer(replace(chosen.config, patch_nums=sides)).to(where)
    judged = dict(flip=chosen.flip, turn=chosen.turn, judges=judges.open(where))
    task = TokenizerTask(model, training, held, revive_every=chosen.revive_every, **judged)
    return train(task, settings, Path(output), origin=origin, resume=resume, report=report)


def _origin(
    kind: str, recipe: object, pictures: ImageSource, sides: Sides = (), **weights: nn.Module | None
) -> dict[str, str]:
    """What a run is made of, for its checkpoint: an entry per argument, in the words of a message."""
    origin = {"kind": kind, "size": as_text(pictures.size)}
    if isinstance(recipe, str):
        origin["recipe"] = recipe
    for name, model in weights.items():
        origin[name] = f"of the digest {weights_digest(model)[:SHOWN_DIGEST]}" if model else "not given"
    if sides:
        origin["scales"] = str(ScaleSchedule.from_sides(sides))
    digest = pictures_digest(pictures)[:SHOWN_DIGEST]
    return origin | {"data": f"of {len(pictures)} pictures and the digest {digest}"}


@with_usual_defaults
def train_transformer(
    data: str | Path,
    output: str | Path,
    *,
    tokenizer: str | Path,
    initial: str | Path | None = None,
    size: Size | None = None,
    scales: Sequence[int | Grid] | None = None,
    recipe: str | TransformerRecipe | BitTransformerRecipe = "cifar10",
    held_out: str | Path | None = None,
    check: Check = "full",
    skip_broken: bool = False,
    resume: bool = True,
    report: Reporter = print_report,
    device: str = "auto",
    **overrides: Any,
) -> VARTransformer | InfinityTransformer:
    """Train a transformer on what a trained tokenizer makes of the pictures.

    tokenizer: the ``tokenizer`` folder of a run, the run's folder, a model's name, or an official file; of
        the recipe's kind.
    initial: a run's folder, a model's name, or an official file or folder to take the first weights from, for
        fine-tuning. With a recipe's name the model gets its sizes; a recipe of your own must have them.
        Everything is taken over but the table of classes, where their number is another, and VAR's tables of
        positions are resized where the scales are others; ``report`` gets a line that says so. ``None``
        starts from random weights.
    size, scales: as for :func:`train_tokenizer`, where they are not to be the tokenizer's own. An official
        tokenizer has none; then they are those of ``initial``.
    check: as for :func:`train_tokenizer`; every pixel by default, because a picture that breaks while all of
        them are encoded costs the encoding.
    output: becomes a complete model folder for :meth:`VARPipeline.from_pretrained`, or, with a recipe for
        bits, :meth:`InfinityPipeline.from_pretrained`; with log and checkpoint. See :func:`train_tokenizer`.
    """
    chosen: TransformerRecipe | BitTransformerRecipe = find_recipe("transformer", recipe, overrides)
    where = place(device, "float32")
    run = _Transformers(data, held_out, check, skip_broken, Path(output), recipe, resume, report, where)
    if isinstance(chosen, BitTransformerRecipe):
        bit_first = open_initial_infinity(initial, place("cpu", "float32")) if initial is not None else None
        bits = open_tokenizer(
            InfinityTokenizer,
            tokenizer,
            where,
            size=size,
            scales=scales,
            token_bits=None if bit_first is None else bit_first.model.config.bits,
        )
        bit_task, origin = run.bit_task(chosen, bits, bit_first)
        return train(bit_task, chosen.settings, run.output, origin=origin, resume=resume, report=report)
    sides = None if scales is None else tuple(ScaleSchedule.from_sides(scales).sides)
    first = open_initial_var(initial, place("cpu", "float32"), sides) if initial is not None else None
    grids = None if first is None else first.model.schedule
    vae = open_tokenizer(VARTokenizer, tokenizer, where, size=size, scales=scales, initial=grids)
    task, origin = run.task(chosen, vae, first)
    return train(task, chosen.settings, run.output, origin=origin, resume=resume, report=report)


@dataclass(frozen=True)
class _Transformers:
    """What the runs of transformers have in common."""

    data: str | Path
    held_out: str | Path | None
    check: Check
    skip_broken: bool
    output: Path
    recipe: object
    resume: bool
    report: Reporter
    where: Placement

    def task(
        self, chosen: TransformerRecipe, vae: VARTokenizer, first: Initial[VARTransformer] | None
    ) -> tuple[TransformerTask, Origin]:
        sizes = chosen.config
        if first is not None:
            theirs = first.model.config
            codes = (theirs.vocab_size, theirs.z_channels), (vae.config.vocab_size, vae.config.z_channels)
            if codes[0] != codes[1]:
                raise CheckpointError(
                    f"{first.source!r} predicts {codes[0][0]} codes of {codes[0][1]} channels, and the "
                    f"tokenizer has {codes[1][0]} of {codes[1][1]}; they do not belong together"
                )
            if isinstance(self.recipe, str):
                sizes = replace(theirs, drop_path=chosen.config.drop_path)
        training, held = self.pictures(vae)
        origin = self.origin(chosen.settings, vae, first, training)
        config = replace(
            sizes,
            vocab_size=vae.config.vocab_size,
            z_channels=vae.config.z_channels,
            patch_nums=vae.config.patch_nums,
            num_classes=training.num_classes,
        )
        model = VARTransformer(config)
        init_transformer(model, seed=chosen.settings.seed)
        self.start(model, first)
        views = {"flip": chosen.flip, "turn": chosen.turn}
        tokens = self.encoded(vae, partial(token_maps, vae), (training, held), "tokens", **views)
        return TransformerTask(
            model.to(self.where.device),
            vae,
            tokens[0],
            training.labels,
            tokens[1],
            held.labels,
            class_names=_class_names(training, chosen.class_names),
            defaults=chosen.defaults,
            label_dropout=chosen.label_dropout,
            stages=_stages(chosen.stages, model.schedule),
        ), origin

    def bit_task(
        self, chosen: BitTransformerRecipe, vae: InfinityTokenizer, first: Initial[InfinityTransformer] | None
    ) -> tuple[BitTransformerTask, Origin]:
        sizes = chosen.config
        schedule = ScaleSchedule.from_sides(vae.config.patch_nums or ())
        if first is not None and first.model.config.bits != vae.config.token_bits:
            raise CheckpointError(
                f"{first.source!r} predicts {first.model.config.bits} bits per token, and the tokenizer has "
                f"{vae.config.token_bits}; they do not belong together"
            )
        if first is not None and isinstance(self.recipe, str):
            sizes = replace(first.model.config, drop_path=chosen.config.drop_path)
        elif first is None:
            sizes = replace(sizes, levels=max(sizes.levels, schedule.num_steps))
        model = InfinityTransformer(replace(sizes, bits=vae.config.token_bits))
        model.check_schedule(schedule)
        training, held = self.pictures(vae)
        origin = self.origin(chosen.settings, vae, first, training)
        init_bit_transformer(model, seed=chosen.settings.seed)
        self.start(model, first)
        features = self.encoded(vae, partial(latents, vae), (training, held), "features", flip=chosen.flip)
        names = _class_names(training, chosen.class_names)
        return BitTransformerTask(
            model.to(self.where.device),
            vae,
            features[0],
            training.labels,
            features[1],
            held.labels,
            class_names=names or [f"class {i}" for i in range(training.num_classes)],
            text_encoder=WordEncoder(model.config.text_dim),
            templates=chosen.templates,
            defaults=chosen.defaults,
            text_dropout=chosen.text_dropout,
            max_flips=chosen.max_flips,
            reweight=chosen.reweight,
            stages=_stages(chosen.stages, schedule),
        ), origin

    def pictures(self, vae: AnyTokenizer) -> tuple[ImageSource, ImageSource]:
        """Pictures to train on and held-out ones, of the tokenizer's size."""
        h, w = ScaleSchedule.from_sides(vae.config.patch_nums or ()).final
        stride = stride_of(vae)
        training, held = open_splits(
            self.data,
            size=(h * stride, w * stride),
            held_out=self.held_out,
            check=self.check,
            skip_broken=self.skip_broken,
        )
        check_classes(training, held)
        return training, held.subset(torch.arange(min(HELD_OUT_IMAGES, len(held))))  # encoding costs time too

    def origin(
        self, settings: TrainSettings, vae: AnyTokenizer, first: Initial[Any] | None, training: ImageSource
    ) -> Origin:
        """What the run is made of; a checkpoint of another is refused here, before pictures are encoded."""
        weights = {"tokenizer": vae, "initial": None if first is None else first.model}
        origin = _origin("transformer", self.recipe, training, vae.config.patch_nums or (), **weights)
        if self.resume:
            check_resumable(self.output, origin, asdict(settings))
        self.output.mkdir(parents=True, exist_ok=True)
        return origin

    def start(self, model: Transformer, first: Initial[Transformer] | None) -> None:
        """Take over first weights, if there are any, and say so where they are not a checkpoint's."""
        if first is not None:
            done = first.fill(model, "Does the recipe have its sizes?")
            if not (self.resume and (self.output / CHECKPOINT).exists()):
                self.report({"note": done}, 0, 0)

    def encoded(
        self,
        vae: AnyTokenizer,
        encode: Encode,
        pictures: tuple[ImageSource, ImageSource],
        name: str,
        *,
        flip: bool,
        turn: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """What the tokenizer makes of both, kept in files of that name."""
        training, held = pictures
        path = self.output / f"{name}.pt"
        first = cached(vae, encode, training, path, flip=flip, turn=turn, report=self.report)
        return first, cached(vae, encode, held, self.output / f"{name}-held-out.pt", flip=False)


def _stages(stages: Sequence[tuple[float, int]], schedule: ScaleSchedule) -> list[tuple[float, int]]:
    """A recipe's stages on a list of scales that may be shorter than those it was made for."""
    return [(share, min(scales, schedule.num_steps)) for share, scales in stages if schedule.num_steps > 1]


def _class_names(data: ImageSource, known: Sequence[str]) -> Sequence[str]:
    """The data's own names, or the known ones if there are as many classes, or none."""
    return data.class_names or (known if len(known) == data.num_classes else ())


@with_usual_defaults
def train_classifier(
    data: str | Path,
    output: str | Path,
    *,
    size: Size | None = None,
    recipe: str | ClassifierRecipe = "cifar10",
    held_out: str | Path | None = None,
    check: Check = "headers",
    skip_broken: bool = False,
    resume: bool = True,
    report: Reporter = print_report,
    device: str = "auto",
    **overrides: Any,
) -> SmallClassifier:
    """Train the small classifier.

    size: pixels per side of the pictures, or ``(height, width)``, by default the recipe's. Everything
        else is as for tokenizers.
    """
    chosen: ClassifierRecipe = find_recipe("classifier", recipe, overrides)
    config = chosen.config if size is None else replace(chosen.config, size=height_width(size))
    sides = SmallClassifier(config).size
    if chosen.turn:
        check_square(sides)
    training, held = open_splits(data, size=sides, held_out=held_out, check=check, skip_broken=skip_broken)
    check_classes(training, held)
    torch.manual_seed(chosen.settings.seed)
    model = SmallClassifier(replace(config, num_classes=training.num_classes))
    model.start_as_identity()
    model.set_whitening(to_float(training.batch(torch.arange(min(5000, len(training))))))
    task = ClassifierTask(
        model.to(place(device).device),
        training,
        held,
        shift=chosen.shift,
        cutout=chosen.cutout,
        turn=chosen.turn,
        label_smoothing=chosen.label_smoothing,
    )
    origin = _origin("classifier", recipe, training)
    return train(task, chosen.settings, Path(output), origin=origin, resume=resume, report=report)
