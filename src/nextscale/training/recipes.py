"""What to train and how, by name: a recipe is a function of nothing, and every entry point takes one.

The command line calls the three ``train_*`` functions. A recipe's settings can be overridden one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from nextscale.errors import CheckpointError, InvalidArgumentError
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig
from nextscale.nn.classifier import ClassifierConfig, SmallClassifier
from nextscale.nn.placement import Placement, place
from nextscale.scales import PRESETS
from nextscale.training.classifier import ClassifierTask
from nextscale.training.data import open_splits, to_float
from nextscale.training.tokenizer import TokenizerTask
from nextscale.training.trainer import Reporter, TrainSettings, print_report, train
from nextscale.training.transformer import TransformerTask, cached_tokens, init_transformer
from nextscale.weights.files import check_shapes
from nextscale.weights.layout import load_module, locate

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HELD_OUT_IMAGES = 1000  # that the transformer's held-out loss is measured on


@dataclass(frozen=True)
class TokenizerRecipe:
    config: VARTokenizerConfig
    settings: TrainSettings
    flip: bool = True
    revive_every: int = 100


@dataclass(frozen=True)
class TransformerRecipe:
    """``config`` gets its vocabulary, code width, scales and classes from the tokenizer and the data.

    class_names: for data that do not name their classes, if there are as many.
    defaults: of the model for drawing, where they are not those of the official models.
    """

    config: VARTransformerConfig
    settings: TrainSettings
    flip: bool = True
    label_dropout: float = 0.1
    class_names: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[tuple[float, int], ...] = ()


@dataclass(frozen=True)
class ClassifierRecipe:
    config: ClassifierConfig
    settings: TrainSettings
    shift: int = 2
    cutout: int = 0
    label_smoothing: float = 0.1


def cifar10_tokenizer() -> TokenizerRecipe:
    """The tokenizer of the embedded model: 8x8 latents, six scales, for two CPU cores."""
    return TokenizerRecipe(
        VARTokenizerConfig(
            vocab_size=2048,
            z_channels=16,
            ch=16,
            ch_mult=(1, 2, 4),
            num_res_blocks=1,
            norm_groups=8,
            patch_nums=PRESETS["cifar10"],
        ),
        TrainSettings(
            batch_size=32,
            images=400_000,
            lr=2.5e-3,
            warmup=0.03,
            weight_decay=0.01,
            betas=(0.9, 0.99),
            clip=1.0,
            ema=0.998,
        ),
    )


def cifar10_transformer() -> TransformerRecipe:
    """The transformer of the embedded model; the coarse scales first, where the class is decided."""
    return TransformerRecipe(
        VARTransformerConfig(depth=6, embed_dim=192, num_heads=6, drop_path=0.0),
        TrainSettings(
            batch_size=32, images=120_000, lr=1.5e-3, warmup=0.02, betas=(0.9, 0.95), clip=1.0, ema=0.998
        ),
        flip=False,
        class_names=CIFAR10_CLASSES,
        defaults={"guidance_scale": 4.0, "top_k": 50},
        stages=((0.6, 4), (0.2, 5)),
    )


def cifar10_classifier() -> ClassifierRecipe:
    """The classifier whose features are the offline feature space."""
    return ClassifierRecipe(
        ClassifierConfig(num_classes=10, widths=(32, 128, 160)),
        TrainSettings(
            batch_size=128, images=900_000, lr=6e-3, warmup=0.2, weight_decay=0.05, clip=5.0, ema=0.999
        ),
        cutout=10,
    )


def tiny_tokenizer() -> TokenizerRecipe:
    """Seconds instead of hours: for trying out the machinery."""
    recipe = cifar10_tokenizer()
    config = replace(recipe.config, vocab_size=64, z_channels=8, ch=8)
    return replace(recipe, config=config, settings=replace(recipe.settings, batch_size=16, images=320))


def tiny_transformer() -> TransformerRecipe:
    """Seconds instead of hours: for trying out the machinery."""
    recipe = cifar10_transformer()
    config = replace(recipe.config, depth=2, embed_dim=32, num_heads=2)
    return replace(recipe, config=config, settings=replace(recipe.settings, batch_size=16, images=320))


def tiny_classifier() -> ClassifierRecipe:
    """Seconds instead of hours: for trying out the machinery."""
    recipe = cifar10_classifier()
    config = replace(recipe.config, widths=(8, 8, 8))
    # In so few iterations, covered pictures and averaged weights only hold it back.
    settings = replace(recipe.settings, batch_size=16, images=320, ema=0.0)
    return replace(recipe, config=config, settings=settings, cutout=0)


RECIPES: Mapping[str, Mapping[str, Callable[[], Any]]] = {
    "tokenizer": {"cifar10": cifar10_tokenizer, "tiny": tiny_tokenizer},
    "transformer": {"cifar10": cifar10_transformer, "tiny": tiny_transformer},
    "classifier": {"cifar10": cifar10_classifier, "tiny": tiny_classifier},
}


def train_tokenizer(
    data: str | Path,
    output: str | Path,
    *,
    size: int = 32,
    recipe: str | TokenizerRecipe = "cifar10",
    held_out: str | Path | None = None,
    resume: bool = True,
    report: Reporter = print_report,
    device: str = "auto",
    **overrides: Any,
) -> VARTokenizer:
    """Train a tokenizer on pictures; see :func:`open_images` for what ``data`` can be.

    size: pixels per side; the scales are the known list that ends at the latent of this size.
    recipe: a name from :data:`RECIPES`, or a recipe.
    held_out: other data to measure on; by default the ``test`` split of ``data`` where there is one, else one
        picture in twenty, at most 2,000, which are then not trained on.
    output: gets ``tokenizer/`` (weights), ``log.jsonl``, ``checkpoint.pt`` and sample pictures.
    overrides: fields of :class:`TrainSettings`; ``None`` keeps the recipe's.
    """
    chosen: TokenizerRecipe = _recipe("tokenizer", recipe, overrides)
    config = replace(chosen.config, patch_nums=_sides(size, chosen.config.reduction))
    training, held = open_splits(data, size=size, held_out=held_out)
    torch.manual_seed(chosen.settings.seed)
    model = VARTokenizer(config).to(place(device).device)
    task = TokenizerTask(model, training, held, flip=chosen.flip, revive_every=chosen.revive_every)
    return train(task, chosen.settings, Path(output), resume=resume, report=report)


def train_transformer(
    data: str | Path,
    output: str | Path,
    *,
    tokenizer: str | Path,
    initial: str | Path | None = None,
    recipe: str | TransformerRecipe = "cifar10",
    held_out: str | Path | None = None,
    resume: bool = True,
    report: Reporter = print_report,
    device: str = "auto",
    **overrides: Any,
) -> VARTransformer:
    """Train a transformer on the token maps of a trained tokenizer.

    tokenizer: the ``tokenizer`` folder of a run, the run's folder, or a model's name.
    initial: a run's folder or a model's name to take the first weights from, for fine-tuning; its transformer
        must have the recipe's sizes. ``None`` starts from random ones.
    output: becomes a complete model folder for :meth:`VARPipeline.from_pretrained`, with log and checkpoint.
    """
    chosen: TransformerRecipe = _recipe("transformer", recipe, overrides)
    placement = place(device, "float32")
    vae = load_tokenizer(tokenizer, placement)
    size = vae.schedule.final[0] * vae.config.reduction
    training, held = open_splits(data, size=size, held_out=held_out)
    held = held.subset(torch.arange(min(HELD_OUT_IMAGES, len(held))))  # encoding costs time too
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    config = replace(
        chosen.config,
        vocab_size=vae.config.vocab_size,
        z_channels=vae.config.z_channels,
        patch_nums=vae.config.patch_nums,
        num_classes=training.num_classes,
    )
    known = chosen.class_names if len(chosen.class_names) == config.num_classes else ()
    names = training.class_names or known
    model = VARTransformer(config)
    init_transformer(model, seed=chosen.settings.seed)
    if initial is not None:
        _copy_weights(initial, model)
    task = TransformerTask(
        model.to(placement.device),
        vae,
        cached_tokens(vae, training, output / "tokens.pt", flip=chosen.flip, report=report),
        training.labels,
        cached_tokens(vae, held, output / "tokens-held-out.pt", flip=False),
        held.labels,
        class_names=names,
        defaults=chosen.defaults,
        label_dropout=chosen.label_dropout,
        stages=chosen.stages,
    )
    return train(task, chosen.settings, output, resume=resume, report=report)


def train_classifier(
    data: str | Path,
    output: str | Path,
    *,
    recipe: str | ClassifierRecipe = "cifar10",
    held_out: str | Path | None = None,
    resume: bool = True,
    report: Reporter = print_report,
    device: str = "auto",
    **overrides: Any,
) -> SmallClassifier:
    """Train the small classifier on 32-pixel pictures."""
    chosen: ClassifierRecipe = _recipe("classifier", recipe, overrides)
    training, held = open_splits(data, size=32, held_out=held_out)
    torch.manual_seed(chosen.settings.seed)
    model = SmallClassifier(replace(chosen.config, num_classes=training.num_classes))
    model.set_whitening(to_float(training.batch(torch.arange(min(5000, len(training))))))
    task = ClassifierTask(
        model.to(place(device).device),
        training,
        held,
        shift=chosen.shift,
        cutout=chosen.cutout,
        label_smoothing=chosen.label_smoothing,
    )
    return train(task, chosen.settings, Path(output), resume=resume, report=report)


def load_tokenizer(source: str | Path, placement: Placement) -> VARTokenizer:
    """A trained tokenizer from its folder, a run or model folder that has one, or a model's name."""
    folder = Path(source)
    if not (folder / "model.safetensors").is_file():
        folder = folder / "tokenizer" if (folder / "tokenizer").is_dir() else locate(source) / "tokenizer"
    return load_module(lambda c: VARTokenizer(VARTokenizerConfig(**c)), folder, placement)


def _copy_weights(source: str | Path, model: VARTransformer) -> None:
    """The weights of another model's transformer; raises CheckpointError where it differs in a size."""
    folder = locate(source) / "transformer"
    trained = load_module(
        lambda c: VARTransformer(VARTransformerConfig(**c)), folder, place("cpu", "float32")
    )
    if trained.schedule != model.schedule:
        raise CheckpointError(
            f"{str(source)!r} has the grids {trained.schedule}, this run has {model.schedule}"
        )
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


def _recipe(kind: str, recipe: Any, overrides: Mapping[str, Any]) -> Any:
    if isinstance(recipe, str):
        if recipe not in RECIPES[kind]:
            raise InvalidArgumentError(f"no {kind} recipe {recipe!r}; known: {', '.join(RECIPES[kind])}")
        recipe = RECIPES[kind][recipe]()
    known = {f.name for f in fields(TrainSettings)}
    unknown = set(overrides) - known
    if unknown:
        raise InvalidArgumentError(
            f"unknown settings {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}"
        )
    given = {k: v for k, v in overrides.items() if v is not None}
    return replace(recipe, settings=replace(recipe.settings, **given))
