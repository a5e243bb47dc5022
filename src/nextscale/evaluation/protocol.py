"""What exactly is measured: a frozen description with a hash that goes into every result.

Two results with the same ``ruler`` were measured alike and can be compared; with the same ``hash`` they are
the same measurement.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from nextscale.errors import InvalidArgumentError
from nextscale.evaluation.metrics import ADM_BLOCK
from nextscale.evaluation.recognition import CLASSIFIER
from nextscale.evaluation.rows import check_finite
from nextscale.generation.request import SEED_LIMIT
from nextscale.weights.digest import text_digest

Rounding = Literal["round", "truncate"]
FORMAT = 1  # raised when a figure of the same name would come out differently


@dataclass(frozen=True)
class Rules:
    """How figures are computed from features; see the functions named.

    k, density_k: :func:`~nextscale.evaluation.neighbours.manifold_scores`, in float64.
    kernel_subsets, kernel_size, kernel_seed:
        :func:`~nextscale.evaluation.metrics.kernel_distance_subsets`.
    score_block, shuffle_seed: :func:`~nextscale.evaluation.metrics.inception_score`; the same permutation
        makes the ``groups`` of the jackknife and the nested sets of the extrapolation.
    smallest, points: sizes of :func:`~nextscale.evaluation.metrics.frechet_infinity`, evenly spaced.
    """

    k: int = 3
    density_k: int = 5
    kernel_subsets: int = 100
    kernel_size: int = 1000
    kernel_seed: int = 2020
    score_block: int = ADM_BLOCK
    shuffle_seed: int = 0
    groups: int = 10
    smallest: int = 5000
    points: int = 15
    distances: str = "float64"

    def fitted(self, images: int, reference: int) -> Rules:
        """With subsets and sizes that so many pictures allow."""
        sizes = {
            "kernel_size": min(self.kernel_size, images, reference or images),
            "smallest": min(self.smallest, images // 2),
        }
        return Rules(**{**asdict(self), **sizes})


@dataclass(frozen=True)
class Protocol:
    """Everything that the figures depend on, in terms JSON can hold.

    images: how many. size: ``(height, width)`` in pixels.
    model: ``name``, ``family``, ``depth`` and ``sha256`` of the weights; or of a file of samples.
    features, reference: descriptions of the feature space and of the real pictures (``None`` without any).
    sampling: settings of the pipeline as it reports them, CFG, SSG, filters, dtype; ``None`` for samples.
    classes, seed: picture i has class ``i % classes`` and seed ``seed + i``, so every class has as many, the
        first n of a longer run are the n of a shorter one, and a class and a number give the seed.
    rounding: from floats to 8 bit: ``"round"`` is ``floor(255 x + 0.5)``, ``"truncate"`` is ``floor(255 x)``.
    batch: pictures drawn at once, where they depend on it (``sampler="multinomial"``), else ``None``.
    """

    images: int
    size: tuple[int, int]
    model: Mapping[str, Any]
    features: Mapping[str, Any]
    reference: Mapping[str, Any] | None = None
    sampling: Mapping[str, Any] | None = None
    classes: int | None = None
    seed: int = 0
    rounding: Rounding = "round"
    batch: int | None = None
    rules: Rules = field(default_factory=Rules)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))
        if self.images < 2:
            raise InvalidArgumentError(
                f"at least 2 pictures are needed to measure anything, got {self.images}"
            )
        if self.rounding not in get_args(Rounding):
            raise InvalidArgumentError(
                f"unknown rounding {self.rounding!r}; known: {', '.join(get_args(Rounding))}"
            )
        if self.seed < 0 or self.seed + self.images > SEED_LIMIT:
            raise InvalidArgumentError(f"seeds are from 0 up to 2^64; {self.images} from {self.seed} are not")

    def label(self, index: int) -> int:
        """The class of a picture."""
        if self.classes is None:
            raise InvalidArgumentError("these pictures have no known classes")
        return index % self.classes

    @property
    def per_class(self) -> float | None:
        """Pictures of each class; not whole where classes differ by one."""
        return None if self.classes is None else self.images / self.classes

    @property
    def hash(self) -> str:
        """SHA-256 of everything but names, in hexadecimal."""
        return _digest(self.to_dict())

    @property
    def ruler(self) -> str:
        """The hash without model, sampling and seeds: equal for results that can be compared."""
        return _digest(_without(self.to_dict(), "model", "sampling", "seed", "batch"))

    @property
    def pictures(self) -> str:
        """The hash of what decides the features of picture i: neither how many there are, nor the figures."""
        return _digest(_without(self.to_dict(), "images", "reference", "rules"))

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it; :meth:`from_dict` is the inverse."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain |= {"size": list(self.size), "rules": asdict(self.rules), "format": FORMAT}
        return {k: dict(v) if isinstance(v, Mapping) else v for k, v in plain.items()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Protocol:
        """Raises InvalidArgumentError for what another version wrote."""
        values = dict(stored)
        if values.pop("format", None) != FORMAT:
            raise InvalidArgumentError(
                f"this protocol has the format {stored.get('format')!r}, expected {FORMAT}"
            )
        try:
            return cls(**{**values, "rules": Rules(**values.get("rules", {}))})
        except TypeError as error:
            raise InvalidArgumentError(f"this is no protocol of this version: {error}") from None


def _without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k not in names}


def _digest(values: Mapping[str, Any]) -> str:
    """Of canonical JSON. Names of models and files are left out: moving them changes no figure."""
    known = {k: _without(v, "name") if k in ("model", "reference") and v else v for k, v in values.items()}
    text = json.dumps(known, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text_digest(text)


def to_uint8(images: Tensor, rounding: Rounding = "round") -> Tensor:
    """Pictures in [0, 1] as 8 bit; see :class:`Protocol`.

    Raises InvalidArgumentError for pictures that are NaN or infinite, which have no such values.
    """
    check_finite(images, "pictures")
    scaled = images.float() * 255 + (0.5 if rounding == "round" else 0.0)
    return scaled.floor().clamp(0, 255).to(torch.uint8)


# ---------------------------------------------------------------------------- presets


@dataclass(frozen=True)
class Preset:
    """A named protocol, complete but for the model.

    images: how many. size, classes: what a model must make; ``None`` is anything.
    space: the feature space. reference: an embedded name or the address of a file; ``None`` where one must be
        given. sampling: arguments of the pipeline; the model's defaults where there are none.
    batch_size: pictures drawn at once, unless said otherwise.
    """

    name: str
    images: int
    space: str
    batch_size: int
    size: tuple[int, int] | None = None
    classes: int | None = None
    reference: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)


_ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet"
_VAR_README = {"guidance_scale": 1.5, "top_k": 900, "top_p": 0.96, "min_p": 0.0, "temperature": 1.0}

PRESETS = {
    preset.name: preset
    for preset in (
        Preset("cifar10", 10_000, CLASSIFIER, 100, size=(32, 32), classes=10, reference="cifar10-test"),
        Preset(
            "imagenet256-adm",
            50_000,
            "inception",
            50,
            size=(256, 256),
            classes=1000,
            reference=f"{_ADM}/256/VIRTUAL_imagenet256_labeled.npz",
            sampling=_VAR_README,
        ),
        Preset(
            "imagenet512-adm",
            50_000,
            "inception",
            8,
            size=(512, 512),
            classes=1000,
            reference=f"{_ADM}/512/VIRTUAL_imagenet512.npz",
            sampling=_VAR_README,
        ),
        Preset("custom", 10_000, "inception", 16),
    )
}
