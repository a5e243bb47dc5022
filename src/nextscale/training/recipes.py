"""Training by recipe: every entry point takes one, or its name, and its settings can be overridden.

The command line calls the three ``train_*`` functions. The recipes themselves are in
:mod:`nextscale.training.presets` and can be had from here too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextscale.errors import CheckpointError, InvalidArgumentError
from nextscale.families.infinity.tokenizer import InfinityTokenizer, InfinityTokenizerConfig
from nextscale.families.infinity.transformer import InfinityTransformer, InfinityTransformerConfig
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig
from nextscale.families.words import WordEncoder
from nextscale.nn.classifier import SmallClassifier
from nextscale.nn.placement import Placement, place
from nextscale.scales import PRESETS
from nextscale.training.bit_tokenizer import BitTokenizerTask
from nextscale.training.bit_transformer import BitTransformerTask, init_bit_transformer, latents
from nextscale.training.cache import AnyTokenizer, Encode, cached
from nextscale.training.classifier import ClassifierTask
from nextscale.training.data import ImageSource, open_splits, to_float
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
from nextscale.training.reconstruction import Tokenizer
from nextscale.training.tokenizer import TokenizerTask
from nextscale.training.trainer import Reporter, print_report, train
from nextscale.training.transformer import TransformerTask, init_transformer, token_maps
from nextscale.weights.files import Module, check_shapes
from nextscale.weights.layout import load_module, locate

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


def train_tokenizer(
    data: str | Path,
    output: str | Path,
    *,
    size: int | None = None,
    recipe: str | TokenizerRecipe | BitTokenizerRecipe = "cifar10",
    perceptual: str | Path | None = None,
    adversarial: float | None = None,
    held_out: str | Path | None = None,
    resume: bool = True,
    report: Reporter = print_report,
    device: str = "auto",
    **overrides: Any,
) -> VARTokenizer | InfinityTokenizer:
    """Train a tokenizer on pictures; see :func:`open_images` for what ``data`` can be.

    size: pixels per side, by default the recipe's; the scales are the known list that ends at the latent of
        this size.
    recipe: a name from :data:`RECIPES`, or a recipe.
    perceptual, adversarial: features to compare and weight of the adversarial term instead of the recipe's;
        see :class:`~nextscale.training.judges.JudgeSettings`.
    held_out: other data to measure on; by default the ``test`` split of ``data`` where there is one, else one
        picture in twenty, at most 2,000, which are then not trained on.
    output: gets ``tokenizer/`` (weights), ``log.jsonl``, ``checkpoint.pt`` and sample pictures.
    overrides: fields of :class:`TrainSettings`; ``None`` keeps the recipe's.
    """
    chosen: TokenizerRecipe | BitTokenizerRecipe = find_recipe("tokenizer", recipe, overrides)
    settings, where = chosen.settings, place(device).device
    patch = chosen.config.patch if isinstance(chosen, BitTokenizerRecipe) else 1
    reduction = chosen.config.reduction * patch
    if size is None:
        schedule = chosen.config.schedule
        size = 32 if schedule is None else schedule.final[0] * reduction
    sides = _sides(size, reduction)
    judges = chosen.judges.changed(perceptual, adversarial)
    training, held = open_splits(data, size=size, held_out=held_out)
    torch.manual_seed(settings.seed)
    if isinstance(chosen, BitTokenizerRecipe):
        bitwise = InfinityTokenizer(replace(chosen.config, patch_nums=sides)).to(where)
        common: dict[str, Any] = dict(flip=chosen.flip, turn=chosen.turn, judges=judges.open(where))
        bit_task = BitTokenizerTask(bitwise, training, held, **common)
        return train(bit_task, settings, Path(output), resume=resume, report=report)
    model = VARTokenizer(replace(chosen.config, patch_nums=sides)).to(where)
    common = dict(flip=chosen.flip, turn=chosen.turn, judges=judges.open(where))
    task = TokenizerTask(model, training, held, revive_every=chosen.revive_every, **common)
    return train(task, settings, Path(output), resume=resume, report=report)


def train_transformer(
    data: str | Path,
    output: str | Path,
    *,
    tokenizer: str | Path,
    initial: str | Path | None = None,
    recipe: str | TransformerRecipe | BitTransformerRecipe = "cifar10",
    held_out: str | Path | None = None,
    resume: bool = True,
    report: Reporter = print_report,
    device: str = "auto",
    **overrides: Any,
) -> VARTransformer | InfinityTransformer:
    """Train a transformer on what a trained tokenizer makes of the pictures.

    tokenizer: the ``tokenizer`` folder of a run, the run's folder, or a model's name; of the recipe's kind.
    initial: a run's folder or a model's name to take the first weights from, for fine-tuning; its transformer
        must have the recipe's sizes. ``None`` starts from random ones.
    output: becomes a complete model folder for :meth:`VARPipeline.from_pretrained`, or, with a recipe for
        bits, :meth:`InfinityPipeline.from_pretrained`; with log and checkpoint.
    """
    chosen: TransformerRecipe | BitTransformerRecipe = find_recipe("transformer", recipe, overrides)
    vae = load_tokenizer(tokenizer, place(device, "float32"))
    folders = _Folders(data, held_out, Path(output), tokenizer, initial)
    if isinstance(chosen, BitTransformerRecipe):
        bit_task = _bit_transformer_task(chosen, _of_kind(InfinityTokenizer, vae, tokenizer), folders, report)
        return train(bit_task, chosen.settings, folders.output, resume=resume, report=report)
    task = _transformer_task(chosen, _of_kind(VARTokenizer, vae, tokenizer), folders, report)
    return train(task, chosen.settings, folders.output, resume=resume, report=report)


@dataclass(frozen=True)
class _Folders:
    """What the run of a transformer reads and writes."""

    data: str | Path
    held_out: str | Path | None
    output: Path
    tokenizer: str | Path
    initial: str | Path | None

    def pictures(self, vae: AnyTokenizer) -> tuple[ImageSource, ImageSource]:
        """Pictures to train on and held-out ones, of the tokenizer's size."""
        if vae.schedule is None:
            raise InvalidArgumentError(
                f"the tokenizer {str(self.tokenizer)!r} has no scales of its own; train one, which has"
            )
        cells = vae.cells(vae.schedule) if isinstance(vae, InfinityTokenizer) else vae.schedule
        size = cells.final[0] * vae.config.reduction
        training, held = open_splits(self.data, size=size, held_out=self.held_out)
        self.output.mkdir(parents=True, exist_ok=True)
        return training, held.subset(torch.arange(min(HELD_OUT_IMAGES, len(held))))  # encoding costs time too

    def encoded(
        self,
        vae: AnyTokenizer,
        encode: Encode,
        pictures: tuple[ImageSource, ImageSource],
        name: str,
        report: Reporter,
        *,
        flip: bool,
        turn: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """What the tokenizer makes of both, kept in files of that name."""
        training, held = pictures
        path = self.output / f"{name}.pt"
        first = cached(vae, encode, training, path, flip=flip, turn=turn, report=report)
        return first, cached(vae, encode, held, self.output / f"{name}-held-out.pt", flip=False)


def _transformer_task(
    chosen: TransformerRecipe, vae: VARTokenizer, folders: _Folders, report: Reporter
) -> TransformerTask:
    training, held = pictures = folders.pictures(vae)
    config = replace(
        chosen.config,
        vocab_size=vae.config.vocab_size,
        z_channels=vae.config.z_channels,
        patch_nums=vae.config.patch_nums,
        num_classes=training.num_classes,
    )
    model = VARTransformer(config)
    init_transformer(model, seed=chosen.settings.seed)
    if folders.initial is not None:
        trained = _trained(folders.initial, lambda c: VARTransformer(VARTransformerConfig(**c)))
        if trained.schedule != model.schedule:
            raise CheckpointError(
                f"{str(folders.initial)!r} has the grids {trained.schedule}, this run has {model.schedule}"
            )
        _copy_weights(trained, model, folders.initial)
    encode = partial(token_maps, vae)
    tokens = folders.encoded(vae, encode, pictures, "tokens", report, flip=chosen.flip, turn=chosen.turn)
    return TransformerTask(
        model.to(vae.device),
        vae,
        tokens[0],
        training.labels,
        tokens[1],
        held.labels,
        class_names=_class_names(training, chosen.class_names),
        defaults=chosen.defaults,
        label_dropout=chosen.label_dropout,
        stages=chosen.stages,
    )


def _bit_transformer_task(
    chosen: BitTransformerRecipe, vae: InfinityTokenizer, folders: _Folders, report: Reporter
) -> BitTransformerTask:
    training, held = pictures = folders.pictures(vae)
    model = InfinityTransformer(replace(chosen.config, bits=vae.config.token_bits))
    init_bit_transformer(model, seed=chosen.settings.seed)
    if folders.initial is not None:
        first = _trained(folders.initial, lambda c: InfinityTransformer(InfinityTransformerConfig(**c)))
        _copy_weights(first, model, folders.initial)
    features = folders.encoded(vae, partial(latents, vae), pictures, "features", report, flip=chosen.flip)
    names = _class_names(training, chosen.class_names)
    return BitTransformerTask(
        model.to(vae.device),
        vae,
        features[0],
        training.labels,
        features[1],
        held.labels,
        class_names=names or [f"class {i}" for i in range(training.num_classes)],
        text_encoder=WordEncoder(chosen.config.text_dim),
        templates=chosen.templates,
        defaults=chosen.defaults,
        text_dropout=chosen.text_dropout,
        max_flips=chosen.max_flips,
        reweight=chosen.reweight,
        stages=chosen.stages,
    )


def _class_names(data: ImageSource, known: Sequence[str]) -> Sequence[str]:
    """The data's own names, or the known ones if there are as many classes, or none."""
    return data.class_names or (known if len(known) == data.num_classes else ())


def train_classifier(
    data: str | Path,
    output: str | Path,
    *,
    size: int | None = None,
    recipe: str | ClassifierRecipe = "cifar10",
    held_out: str | Path | None = None,
    resume: bool = True,
    report: Reporter = print_report,
    device: str = "auto",
    **overrides: Any,
) -> SmallClassifier:
    """Train the small classifier.

    size: pixels per side of the pictures, by default the recipe's. Everything else is as for tokenizers.
    """
    chosen: ClassifierRecipe = find_recipe("classifier", recipe, overrides)
    config = chosen.config if size is None else replace(chosen.config, size=size)
    side = SmallClassifier(config).size[0]
    training, held = open_splits(data, size=side, held_out=held_out)
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
    return train(task, chosen.settings, Path(output), resume=resume, report=report)


def load_tokenizer(source: str | Path, placement: Placement) -> AnyTokenizer:
    """A trained tokenizer from its folder, a run or model folder that has one, or a model's name."""
    folder = Path(source)
    if not (folder / "model.safetensors").is_file():
        folder = folder / "tokenizer" if (folder / "tokenizer").is_dir() else locate(source) / "tokenizer"

    def make(config: Mapping[str, Any]) -> AnyTokenizer:
        if "bits" in config:
            return InfinityTokenizer(InfinityTokenizerConfig(**config))
        return VARTokenizer(VARTokenizerConfig(**config))

    return load_module(make, folder, placement)


def _of_kind(kind: type[Tokenizer], tokenizer: AnyTokenizer, source: str | Path) -> Tokenizer:
    """The tokenizer, if it is of the recipe's kind."""
    if isinstance(tokenizer, kind):
        return tokenizer
    needs = "bits" if kind is InfinityTokenizer else "a codebook"
    other = "without" if kind is InfinityTokenizer else "with"
    raise CheckpointError(
        f"the recipe needs a tokenizer of {needs}, and {str(source)!r} is of the other kind; take a recipe "
        f"{other} '-bits' in its name"
    )


def _trained(source: str | Path, make: Callable[[Mapping[str, Any]], Module]) -> Module:
    """The transformer of a trained model."""
    return load_module(make, locate(source) / "transformer", place("cpu", "float32"))


def _copy_weights(trained: Module, model: Module, source: str | Path) -> None:
    """Copy weights from one transformer to another; raises CheckpointError where they differ in a size."""
    check_shapes(model, trained.state_dict(), source=str(source), hint="Does the recipe have its sizes?")
    model.load_state_dict(trained.state_dict())


def _sides(size: int, reduction: int) -> tuple[int, ...]:
    """The known list of scales whose last one is the latent of pictures of this size."""
    known = {sides[-1] * reduction: sides for sides in PRESETS.values()}
    if size not in known:
        raise InvalidArgumentError(
            f"size must be one of {', '.join(map(str, sorted(known)))} pixels, got {size}"
        )
    return known[size]
