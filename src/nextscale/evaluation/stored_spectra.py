"""Radial amplitudes and detail of real pictures: computed, or stored in the package as a few numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nextscale.evaluation.blur import DETAIL_SIGMAS, detail_fractions
from nextscale.evaluation.images import Advance, Images, pieces, read_arrays, unheard, write_npz
from nextscale.evaluation.moments import Gaussian, Moments
from nextscale.evaluation.resampling import Profiles
from nextscale.evaluation.spectra import AmplitudeRule
from nextscale.usual import with_usual_defaults

DETAIL = "detail"
RULES = (AmplitudeRule(), AmplitudeRule(window="none"), AmplitudeRule("dct"))


@with_usual_defaults
def measure_pictures(
    images: Images, rule: AmplitudeRule, advance: Advance = unheard
) -> tuple[Profiles, Profiles]:
    """Amplitudes and detail fractions of pictures, read a few at a time.

    The second has a column for every sigma of :data:`~nextscale.evaluation.blur.DETAIL_SIGMAS`.
    """
    amplitudes, details = [], []
    for piece in pieces(images):
        amplitudes.append(rule(piece))
        details.append(detail_fractions(piece))
        advance(len(piece))
    return Profiles(torch.cat(amplitudes)), Profiles(torch.cat(details))


@with_usual_defaults
def stored_spectra(sha256: str) -> dict[str, Profiles]:
    """Spectra in the package that belong to a reference, by its digest; empty if there are none.

    By the name of an :class:`AmplitudeRule`, and ``"detail"`` for detail fractions.
    """
    folder = Path(str(resources.files("nextscale.evaluation"))) / "references"
    for path in sorted(folder.glob("*-spectra.npz")):
        arrays = read_arrays(path)
        about = json.loads(str(arrays["about"]))
        if about["reference"] == sha256:
            return {
                name: Profiles(gaussian=_gaussian(arrays, name, about["count"])) for name in about["names"]
            }
    return {}


def _gaussian(arrays: Mapping[str, Any], name: str, count: int) -> Gaussian:
    mean, covariance = (torch.from_numpy(arrays[f"{name}-{what}"]) for what in ("mean", "covariance"))
    return Gaussian(mean, covariance, count)


def write_spectra(path: Path, images: Images, reference: str) -> None:
    """Mean and covariance of all profiles of the pictures that a reference with this digest was made from."""
    arrays: dict[str, Any] = {}
    names = []
    for name, profiles in _all_profiles(images).items():
        gaussian = profiles.gaussian()
        names.append(name)
        arrays |= {f"{name}-mean": gaussian.mean.numpy(), f"{name}-covariance": gaussian.covariance.numpy()}
    about = {"reference": reference, "count": len(images), "names": names, "sigmas": DETAIL_SIGMAS}
    write_npz(path, None, {**arrays, "about": np.array(json.dumps(about))}, compress=True)


def _all_profiles(images: Images) -> dict[str, Moments]:
    found: dict[str, Moments] = {}
    for piece in pieces(images):
        rows = {rule.name: rule(piece) for rule in RULES} | {DETAIL: detail_fractions(piece)}
        for name, values in rows.items():
            found.setdefault(name, Moments(values.shape[1])).update(values)
    return found
