"""Recipes by name: what to train and for how long, as plain functions of nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from nextscale.errors import InvalidArgumentError
from nextscale.families.infinity.tokenizer import InfinityTokenizerConfig
from nextscale.families.infinity.transformer import InfinityTransformerConfig
from nextscale.families.var.tokenizer import VARTokenizerConfig
from nextscale.families.var.transformer import VARTransformerConfig
from nextscale.nn.classifier import ClassifierConfig
from nextscale.scales import PRESETS
from nextscale.training.adversarial import AdversarySettings
from nextscale.training.captions import TEMPLATES
from nextscale.training.judges import JudgeSettings
from nextscale.training.settings import TrainSettings

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class TokenizerRecipe:
    """flip: mirror half of the pictures. turn: turn them by random quarter turns, where no side is up.

    judges: the perceptual and the adversarial term.
    """

    config: VARTokenizerConfig
    settings: TrainSettings
    flip: bool = True
    revive_every: int = 100
    turn: bool = False
    judges: JudgeSettings = field(default_factory=JudgeSettings)


@dataclass(frozen=True)
class BitTokenizerRecipe:
    """flip, turn, judges: as in :class:`TokenizerRecipe`."""

    config: InfinityTokenizerConfig
    settings: TrainSettings
    flip: bool = True
    turn: bool = False
    judges: JudgeSettings = field(default_factory=JudgeSettings)


@dataclass(frozen=True)
class TransformerRecipe:
    """``config`` gets its vocabulary, code width, scales and classes from the tokenizer and the data.

    flip, turn: also train on the token maps of mirrored and of turned pictures.
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
    turn: bool = False


@dataclass(frozen=True)
class BitTransformerRecipe:
    """``config`` gets its bits and its number of scales from the tokenizer.

    class_names, defaults: as in :class:`TransformerRecipe`. templates: of the captions, see
        :mod:`nextscale.training.captions`; the text encoder is a :class:`WordEncoder`.
    """

    config: InfinityTransformerConfig
    settings: TrainSettings
    flip: bool = True
    text_dropout: float = 0.1
    max_flips: float = 0.3
    reweight: bool = False
    templates: tuple[str, ...] = TEMPLATES
    class_names: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[tuple[float, int], ...] = ()


@dataclass(frozen=True)
class ClassifierRecipe:
    """``config`` gets its number of classes from the data, and its size where one is asked for.

    turn, shift, cutout: see :class:`~nextscale.training.classifier.ClassifierTask`.
    """

    config: ClassifierConfig
    settings: TrainSettings
    shift: int = 2
    cutout: int = 0
    label_smoothing: float = 0.1
    turn: bool = False


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


def cifar10_bit_tokenizer() -> BitTokenizerRecipe:
    """A bitwise tokenizer of the size, the scales and the training of :func:`cifar10_tokenizer`.

    The quantizer's terms are a tenth of the usual: relative errors are small numbers, and with the usual
    weights, 0.25 and 0.1, the reconstruction was 1.2 dB worse after 9,600 pictures (at 12 bits).
    """
    return BitTokenizerRecipe(
        InfinityTokenizerConfig(
            bits=16,
            ch=16,
            encoder_ch_mult=(1, 2, 4),
            decoder_ch_mult=(1, 2, 4),
            num_res_blocks=1,
            norm_groups=(8,),
            patch_nums=PRESETS["cifar10"],
            beta=0.02,
            entropy=0.01,
        ),
        cifar10_tokenizer().settings,
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


def cifar10_bit_transformer() -> BitTransformerRecipe:
    """A small text-to-image model: captions made from the ten class names, else as the embedded one."""
    like = cifar10_transformer()
    return BitTransformerRecipe(
        InfinityTransformerConfig(
            bits=16,
            depth=6,
            embed_dim=192,
            num_heads=6,
            ffn_dim=768,
            text_dim=64,
            text_length=16,
            pool_heads=6,
        ),
        like.settings,
        flip=False,
        class_names=CIFAR10_CLASSES,
        defaults={"guidance_scale": 3.0, "temperature": 1.0, "top_p": 0.97},
        stages=like.stages,
    )


def cifar10_classifier() -> ClassifierRecipe:
    """The classifier whose features are the offline feature space."""
    return ClassifierRecipe(
        ClassifierConfig(num_classes=10, widths=(64, 192, 192)),
        TrainSettings(
            batch_size=512,
            images=1_150_000,
            lr=0.4,
            optimizer="sgd",
            betas=(0.9, 0.99),
            warmup=0.15,
            weight_decay=1.5e-3,
            clip=5.0,
            ema=0.995,
        ),
        cutout=6,
    )


def eurosat_tokenizer() -> TokenizerRecipe:
    """64 pixels, 16x16 latents and VAR's own ten scales, for satellite tiles, in which no side is up.

    The features it is judged by are the embedded classifier's for CIFAR-10 on purpose, and not those of
    :func:`eurosat_classifier`, by which figures are measured: no model should be trained on its own ruler.
    """
    return TokenizerRecipe(
        VARTokenizerConfig(
            vocab_size=2048,
            z_channels=16,
            ch=16,
            ch_mult=(1, 2, 4),
            num_res_blocks=1,
            norm_groups=8,
            patch_nums=PRESETS["var-256"],
        ),
        replace(
            cifar10_tokenizer().settings, images=300_000, end=0.0, eval_minutes=60.0, checkpoint_minutes=10.0
        ),
        turn=True,
        judges=JudgeSettings(
            "cifar10-classifier", 0.5, AdversarySettings(weight=0.5, start=0.4, channels=24)
        ),
    )


def eurosat_transformer() -> TransformerRecipe:
    """4.6 million parameters on the tokens of :func:`eurosat_tokenizer`, every tile seen in eight ways.

    Truncated sequences first: on six scales a picture has 91 tokens, on eight 255, on nine 424, on all 680.
    Batches are computed four pictures at a time, which then fit a processor's caches.
    """
    return TransformerRecipe(
        VARTransformerConfig(depth=6, embed_dim=192, num_heads=6, drop_path=0.0),
        TrainSettings(
            batch_size=32,
            accumulate=8,
            images=500_000,
            lr=1.5e-3,
            end=0.0,
            warmup=0.02,
            optimizer="muon",
            betas=(0.9, 0.95),
            clip=1.0,
            ema=0.999,
            eval_minutes=60.0,
            checkpoint_minutes=10.0,
        ),
        flip=True,
        turn=True,
        defaults={"guidance_scale": 3.0, "top_k": 200},
        stages=((0.4, 6), (0.2, 8), (0.15, 9)),
    )


def eurosat_classifier() -> ClassifierRecipe:
    """The ruler for satellite tiles of 64 pixels."""
    return ClassifierRecipe(
        ClassifierConfig(num_classes=10, widths=(32, 64, 128, 192), size=(64, 64)),
        replace(cifar10_classifier().settings, batch_size=256, images=400_000, lr=0.2, eval_minutes=15.0),
        turn=True,
        shift=4,
        cutout=12,
    )


def tiny_tokenizer() -> TokenizerRecipe:
    """Seconds instead of hours: for trying out the machinery."""
    recipe = cifar10_tokenizer()
    config = replace(recipe.config, vocab_size=64, z_channels=8, ch=8)
    return replace(recipe, config=config, settings=replace(recipe.settings, batch_size=16, images=320))


def tiny_bit_tokenizer() -> BitTokenizerRecipe:
    """Seconds instead of hours: for trying out the machinery."""
    recipe = cifar10_bit_tokenizer()
    config = replace(recipe.config, bits=8, ch=8)
    return replace(recipe, config=config, settings=replace(recipe.settings, batch_size=16, images=320))


def tiny_transformer() -> TransformerRecipe:
    """Seconds instead of hours: for trying out the machinery."""
    recipe = cifar10_transformer()
    config = replace(recipe.config, depth=2, embed_dim=32, num_heads=2)
    return replace(recipe, config=config, settings=replace(recipe.settings, batch_size=16, images=320))


def tiny_bit_transformer() -> BitTransformerRecipe:
    """Seconds instead of hours: for trying out the machinery."""
    recipe = cifar10_bit_transformer()
    config = replace(recipe.config, depth=2, embed_dim=32, num_heads=2, ffn_dim=64, text_dim=16, pool_heads=2)
    return replace(recipe, config=config, settings=replace(recipe.settings, batch_size=16, images=320))


def tiny_classifier() -> ClassifierRecipe:
    """Seconds instead of hours: for trying out the machinery."""
    recipe = cifar10_classifier()
    config = replace(recipe.config, widths=(8, 8, 8))
    # In so few iterations, covered pictures and averaged weights only hold it back.
    settings = replace(recipe.settings, batch_size=16, images=320, ema=0.0)
    return replace(recipe, config=config, settings=settings, cutout=0)


RECIPES: Mapping[str, Mapping[str, Callable[[], Any]]] = {
    "tokenizer": {
        "cifar10": cifar10_tokenizer,
        "tiny": tiny_tokenizer,
        "cifar10-bits": cifar10_bit_tokenizer,
        "tiny-bits": tiny_bit_tokenizer,
        "eurosat": eurosat_tokenizer,
    },
    "transformer": {
        "cifar10": cifar10_transformer,
        "eurosat": eurosat_transformer,
        "tiny": tiny_transformer,
        "cifar10-bits": cifar10_bit_transformer,
        "tiny-bits": tiny_bit_transformer,
    },
    "classifier": {"cifar10": cifar10_classifier, "tiny": tiny_classifier, "eurosat": eurosat_classifier},
}


def find_recipe(kind: str, recipe: Any, overrides: Mapping[str, Any]) -> Any:
    """The recipe of a kind by name, or a given one, with some of its settings replaced where not ``None``.

    Raises InvalidArgumentError for unknown names.
    """
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
