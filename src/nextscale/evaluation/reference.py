"""What generated pictures are compared with: pictures, or statistics of them, in the ADM layout or its own.

Keys of an ``.npz`` reference, all of them optional but not all at once:

``arr_0`` uint8 ``[M, H, W, 3]``: pictures, read in pieces;
``mu``, ``sigma``, ``mu_s``, ``sigma_s``: mean and covariance of the features and of the spatial features,
often of many more pictures than ``arr_0`` has;
``features`` ``[M, d]``, ``about`` (JSON): this library's additions, for feature spaces other than Inception
and for references without pictures. Other programs ignore them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nextscale.data.resizing import check_rule
from nextscale.errors import DataError, InvalidArgumentError
from nextscale.evaluation.features import FeatureSpace
from nextscale.evaluation.images import (
    Advance,
    Images,
    NpzImages,
    ResizedImages,
    images_digest,
    open_npz,
    read_arrays,
    unheard,
    write_npz,
)
from nextscale.evaluation.moments import Gaussian, Moments
from nextscale.evaluation.provenance import file_digest
from nextscale.evaluation.rows import check_rows
from nextscale.evaluation.shards import Shards
from nextscale.sampling.npz import IMAGES
from nextscale.usual import with_usual_defaults
from nextscale.weights.digest import text_digest

EMBEDDED = ("cifar10-test",)
STATISTICS = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
INCEPTION = {"name": "inception"}  # what statistics are of in files that do not say


@dataclass(frozen=True)
class Reference:
    """A set of real pictures, or what is known of one.

    name: of the file or folder. sha256: of the file, or of all pixels.
    images: the pictures, if there are any. features: ``(M, d)`` instead of pictures.
    statistics: ``"features"`` and perhaps ``"spatial"``; with ``features``, they belong to ``space``, the
        description of a feature space. resize: the rule by which its pictures were brought to their size.
    """

    name: str
    sha256: str
    images: Images | None = None
    features: Tensor | None = None
    statistics: Mapping[str, Gaussian] = field(default_factory=dict)
    space: Mapping[str, Any] | None = None
    resize: str | None = None

    @classmethod
    @with_usual_defaults
    def of_images(
        cls, name: str, images: Images, advance: Advance = unheard, *, resize: str | None = None
    ) -> Reference:
        """Open pictures that are not one npz file; they are read once for their digest.

        resize: the rule by which they were brought to their size, if one was named.
        """
        return cls(name, images_digest(images, advance), images, resize=resize)

    def resized(self, size: tuple[int, int], rule: str) -> Reference:
        """Its pictures brought to ``(height, width)`` by a rule of :data:`~nextscale.data.resizing.RULES`.

        What else is known of it was computed from pictures of their own size, and is dropped with them.
        Raises InvalidArgumentError for an unknown rule, or without pictures.
        """
        check_rule(rule)
        if self.images is None:
            raise InvalidArgumentError(f"the reference {self.name} holds no pictures that could be resized")
        if self.images.size == tuple(size):
            return replace(self, resize=rule)
        digest = text_digest(f"{self.sha256} {rule} {tuple(size)}")
        return Reference(self.name, digest, ResizedImages(self.images, size, rule), resize=rule)

    @property
    def count(self) -> int:
        """Pictures or features there are, for nearest neighbours; 0 for statistics alone."""
        if self.features is not None:
            return len(self.features)
        return 0 if self.images is None else len(self.images)

    def description(self) -> dict[str, Any]:
        """As JSON, for a protocol; with the rule by which pictures were resized, if one was named."""
        found = {"name": self.name, "sha256": self.sha256, "images": self.count}
        return found if self.resize is None else {**found, "resize": self.resize}

    def fits(self, space: FeatureSpace) -> bool:
        """Whether what is stored besides pictures was computed in this feature space."""
        if self.space is None:
            return False
        wanted = space.description()
        return all(wanted.get(key) == value for key, value in self.space.items())

    def to_compute(self, space: FeatureSpace) -> int:
        """Of how many pictures the features must be computed to compare with it in this space."""
        stored = self.fits(space) and self.features is not None
        return 0 if self.images is None or stored else len(self.images)

    def check(self, space: FeatureSpace, size: tuple[int, int]) -> None:
        """Raises InvalidArgumentError if pictures of this size cannot be compared with it in this space.

        Raises DataError for statistics that are used, and have negative variances.
        """
        if self.images is None and not self.fits(space):
            stored = (self.space or {}).get("name", "nothing")
            other = "other weights of it" if stored == space.name else str(stored)
            raise InvalidArgumentError(
                f"the reference {self.name} holds no pictures, and its statistics are of {other}, not of "
                f"{space.name} as it is used here; use those features or a reference with pictures"
            )
        if self.images is not None and self.images.size != size:
            (h, w), (height, width) = self.images.size, size
            raise InvalidArgumentError(
                f"the reference {self.name} has pictures of {w}x{h} pixels, and those to be measured have "
                f"{width}x{height}; a reference of the same size is needed"
            )
        if self.fits(space):
            for key, gaussian in self.statistics.items():
                try:
                    _ = gaussian.root  # which distances need later, and then have
                except InvalidArgumentError as error:
                    raise DataError(f"{self.name}: {' and '.join(STATISTICS[key])}: {error}") from None


@dataclass(frozen=True)
class MeasuredReference:
    """A reference in one feature space: Gaussians, and features ``(M, d)`` where there are any."""

    statistics: Mapping[str, Gaussian]
    features: Tensor | None


@with_usual_defaults
def measure_reference(
    reference: Reference, space: FeatureSpace, shards: Shards, advance: Advance = unheard
) -> MeasuredReference:
    """What a reference is in a feature space; features of its pictures are computed once, and kept.

    Statistics that the file stores are used as they are, because they may be of more pictures than it holds.
    """
    fits = reference.fits(space)
    features = reference.features if fits else None
    statistics = dict(reference.statistics) if fits else {}
    if reference.images is not None and reference.to_compute(space):
        shards.fill(reference.images, space, advance=advance)
        features = shards.tensor("features")
        if not statistics:
            statistics = {key: _gaussian(shards, key) for key in STATISTICS if shards.has(key)}
    if features is not None and not statistics:
        statistics = {"features": Moments.of(features).gaussian()}
    return MeasuredReference(statistics, features)


def _gaussian(shards: Shards, key: str) -> Gaussian:
    moments: Moments | None = None
    for rows in shards.parts(key):
        moments = Moments(rows.shape[1]) if moments is None else moments
        moments.update(rows)
    if moments is None:
        raise DataError(f"there are no {key} to take statistics of")
    return moments.gaussian()


# ---------------------------------------------------------------------------- files


@with_usual_defaults
def open_reference(path: str | Path) -> Reference:
    """A reference ``.npz``, or an embedded one by name.

    Raises DataError, naming what is missing, or what of it is no number or no covariance.
    """
    path = Path(path)
    if str(path) in EMBEDDED and not path.exists():
        path = Path(str(resources.files("nextscale.evaluation"))) / "references" / f"{path}.npz"
    arrays = read_arrays(path)
    with open_npz(path) as archive:
        has_images = f"{IMAGES}.npy" in archive.namelist()
    statistics = {
        key: _stored(path, arrays, *names) for key, names in STATISTICS.items() if names[0] in arrays
    }
    features = _features(path, arrays)
    if not (has_images or statistics or features is not None):
        raise DataError(
            f"{path.name} is no reference: it has neither {IMAGES} nor mu and sigma, but "
            f"{', '.join(arrays) or 'nothing'}"
        )
    if features is not None and "features" in statistics:
        width = len(statistics["features"].mean)
        if features.shape[1] != width:
            raise DataError(f"{path.name}: features have {features.shape[1]} columns, and mu has {width}")
    about = _about(path, arrays)
    count = about.get("count")
    if count is not None and (type(count) is not int or count < 2):
        raise DataError(f"{path.name}: its statistics are said to be of {count!r} pictures")
    return Reference(
        name=path.name,
        sha256=file_digest(path),
        images=NpzImages(path) if has_images else None,
        features=features,
        statistics={k: Gaussian(g.mean, g.covariance, count) for k, g in statistics.items()},
        space=about.get("space", INCEPTION) if statistics or features is not None else None,
    )


def _stored(path: Path, arrays: Mapping[str, Any], mean: str, covariance: str) -> Gaussian:
    if covariance not in arrays:
        raise DataError(f"{path.name} has {mean} but no {covariance}")
    shapes = [tuple(arrays[name].shape) for name in (mean, covariance)]
    if len(shapes[0]) != 1 or shapes[1] != shapes[0] * 2:
        raise DataError(
            f"{path.name}: {mean} and {covariance} do not fit each other: a mean (d,) and a covariance "
            f"(d, d) are needed, got {shapes[0]} and {shapes[1]}"
        )
    try:
        return Gaussian(torch.from_numpy(arrays[mean]), torch.from_numpy(arrays[covariance]))
    except (InvalidArgumentError, TypeError) as error:
        raise DataError(f"{path.name}: {mean} and {covariance} are no statistics: {error}") from None


def _features(path: Path, arrays: Mapping[str, Any]) -> Tensor | None:
    if "features" not in arrays:
        return None
    try:
        features = torch.from_numpy(arrays["features"]).float()
        check_rows(features)
    except (InvalidArgumentError, TypeError) as error:
        raise DataError(f"{path.name}: {error}") from None
    return features


def _about(path: Path, arrays: Mapping[str, Any]) -> dict[str, Any]:
    if "about" not in arrays:
        return {}
    try:
        about: dict[str, Any] = json.loads(str(arrays["about"]))
    except ValueError:
        raise DataError(f"{path.name}: about is not JSON") from None
    if not isinstance(about, dict):
        raise DataError(f"{path.name}: about is no JSON object")
    return about


def write_reference(
    path: str | Path,
    *,
    images: Images | None = None,
    measured: MeasuredReference | None = None,
    space: FeatureSpace | None = None,
    with_features: bool = False,
    compress: bool = False,
) -> None:
    """Write a reference: pictures, statistics, or both.

    measured: statistics to store, with the feature space they are of; Inception's have the keys and order
        that the ADM evaluator reads. with_features: store the features too, in half precision, so that
        nearest neighbours need no pictures.
    """
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    if measured is not None:
        if space is None:
            raise InvalidArgumentError("statistics are of a feature space; give the space they are of")
        for key, gaussian in measured.statistics.items():
            mean, covariance = STATISTICS[key]
            arrays |= {mean: gaussian.mean.numpy(), covariance: gaussian.covariance.numpy()}
        if with_features and measured.features is not None:
            arrays["features"] = measured.features.half().numpy()
        about = {"space": space.description(), "count": measured.statistics["features"].count}
        arrays["about"] = np.array(json.dumps(about))
    write_npz(Path(path), images, arrays, compress=compress)
