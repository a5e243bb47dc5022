"""Training by recipe: every entry point takes one, or its name, and its settings can be overridden.

The command line calls the three ``train_*`` functions. The recipes themselves are in
:mod:`nextscale.training.presets` and can be had from here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nextscale.families.infinity.tokenizer import InfinityTokenizer
from nextscale.families.infinity.transformer import InfinityTransformer
from nextscale.families.var.tokenizer import VARTokenizer
from nextscale.families.var.transformer import VARTransformer
from nextscale.nn.classifier import SmallClassifier
from nextscale.nn.placement import place
from nextscale.scales import Grid, ScaleSchedule
from nextscale.training.bit_tokenizer import BitTokenizerTask
from nextscale.training.classifier import ClassifierTask
from nextscale.training.data import Check, check_classes, open_splits, to_float
from nextscale.training.initial import open_initial_infinity, open_initial_var
from nextscale.training.origin import run_origin
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
from nextscale.training.sizes import Size, check_first_scale, fit_scales, height_width
from nextscale.training.task import Reporter, print_report
from nextscale.training.tokenizer import TokenizerTask
from nextscale.training.tokenizers import load_tokenizer, open_tokenizer
from nextscale.training.trainer import train
from nextscale.training.transformer_runs import TransformerRun
from nextscale.training.views import check_square
from nextscale.usual import with_usual_defaults

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
    origin = run_origin("tokenizer", recipe, training, sides) | judges.origin
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
    run = TransformerRun(data, held_out, check, skip_broken, Path(output), recipe, resume, report, where)
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
    origin = run_origin("classifier", recipe, training)
    return train(task, chosen.settings, Path(output), origin=origin, resume=resume, report=report)
