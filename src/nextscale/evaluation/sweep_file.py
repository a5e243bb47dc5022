"""Sweep files: a small TOML file names settings and their values; every combination is a cell."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nextscale.errors import DataError, InvalidArgumentError
from nextscale.evaluation.protocol import PRESETS, Rounding
from nextscale.families.var.pipeline import VARPipeline
from nextscale.generation.request import resolve_ssg
from nextscale.guidance.ssg import ScaledSpatialGuidance

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SEED_STEP = 1_000_000  # between the first seeds of sets of pictures
DEFAULT_SETS = 3  # the least that says how large chance is

# ---------------------------------------------------------------------------- values in the file

Check = Callable[[str, Any], Any]


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidArgumentError(f"{name} must be a number, got {value!r}")
    return float(value)


def _numbers(name: str, value: Any) -> float | list[float]:
    """One number, or one per step."""
    return [_number(name, v) for v in value] if isinstance(value, list) else _number(name, value)


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgumentError(f"{name} must be a whole number, got {value!r}")
    return value


def _positive(name: str, value: Any) -> int:
    if _whole(name, value) < 1:
        raise InvalidArgumentError(f"{name} must be at least 1, got {value}")
    return int(value)


def _yes_or_no(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgumentError(f"{name} must be true or false, got {value!r}")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{name} must be a text, got {value!r}")
    return value


def _guidance(name: str, value: Any) -> Any:
    """``"off"``, ``"default"`` (the model's), a strength, or a table of settings."""
    if value in ("off", "default"):
        return value
    if isinstance(value, str):
        raise InvalidArgumentError(f"{name} is off, default, a strength or a table; got {value!r}")
    try:
        ScaledSpatialGuidance.from_dict(value if isinstance(value, dict) else {"beta": value})
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{name}: {error}") from None
    return value


def _part(name: str, value: Any) -> Any:
    """One of SSG's settings."""
    _guidance(name, {name.rpartition(".")[2]: value})
    return _numbers(name, value) if name.endswith("beta") else value


PARTS = ("beta", "schedule", "prior", "norm", "remember", "start", "stop")
"""The settings of SSG that can be axes of their own."""
SSG_AXES = ("ssg", *PARTS)
SETTINGS: Mapping[str, Check] = {
    "guidance_scale": _numbers,
    "top_k": _whole,
    "top_p": _number,
    "min_p": _number,
    "temperature": _numbers,
    "more_smooth": _yes_or_no,
    "ssg": _guidance,
    **dict.fromkeys(PARTS, _part),
}
"""What can be an axis, a fixed setting, or part of a cell, with the check of its values."""
MODEL: Mapping[str, Check] = {
    **dict.fromkeys(("name", "transformer", "tokenizer", "variant", "patch_nums"), _text),
    "depth": _whole,
}
RULER = ("reference", "split", "resize", "features", "feature_weights", "feature_sha256")
_TOP: Mapping[str, Check] = {
    **dict.fromkeys(("preset", "rounding", *RULER), _text),
    "images": _positive,
    "batch_size": _positive,
}


# ---------------------------------------------------------------------------- the file


@dataclass(frozen=True)
class Cell:
    """One combination of settings.

    name: for tables and plots. settings: by the names of :data:`SETTINGS`, as in the file.
    labels: the values of the axes; none for a cell that stands alone.
    """

    name: str
    settings: Mapping[str, Any]
    labels: Mapping[str, Any]

    def arguments(self, pipe: VARPipeline) -> dict[str, Any]:
        """For the pipeline's call. A strength of 0 is off: that makes the same pictures, bit for bit."""
        arguments = {k: v for k, v in self.settings.items() if k not in SSG_AXES}
        ssg = resolve_ssg(self._described(), pipe.defaults)
        return {**arguments, "ssg": None if ssg is None or ssg.beta == 0 else ssg}

    def _described(self) -> ScaledSpatialGuidance | None:
        parts = {name: self.settings[name] for name in PARTS if name in self.settings}
        whole = self.settings.get("ssg", "default" if parts else "off")
        if whole == "off":
            return None
        if whole == "default":
            return ScaledSpatialGuidance.from_dict(parts)
        return ScaledSpatialGuidance.from_dict(
            {**(whole if isinstance(whole, dict) else {"beta": whole}), **parts}
        )


@dataclass(frozen=True)
class Sweep:
    """What a sweep file says; ``None`` and missing entries are the preset's.

    model: by the names of :data:`MODEL`. seeds: the first of every set of pictures.
    ruler: by the names of :data:`RULER`. axes: settings and their values, in the order of the file.
    cells: every combination of the axes, then the cells of their own.
    """

    preset: str
    model: Mapping[str, Any]
    images: int | None
    seeds: tuple[int, ...]
    batch_size: int | None
    rounding: Rounding
    ruler: Mapping[str, str]
    axes: Mapping[str, tuple[Any, ...]]
    cells: tuple[Cell, ...]

    def with_sets(self, count: int) -> Sweep:
        """The same with so many sets, from seed 0 on."""
        return replace(self, seeds=_seeds(count))

    @classmethod
    def read(cls, path: Path) -> Sweep:
        """Raises InvalidArgumentError or DataError, naming the file and the entry that is wrong."""
        if not path.is_file():
            raise InvalidArgumentError(f"no such sweep file: {str(path)!r}")
        try:
            stored = tomllib.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # no TOML, or no text at all
            raise DataError(f"{path.name} is not TOML: {error}") from None
        try:
            return cls.from_dict(stored)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{path.name}: {error}") from None

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Sweep:
        """From the tables of a sweep file. Raises InvalidArgumentError, naming the entry that is wrong."""
        _check_names("", stored, (*_TOP, "model", "seeds", "settings", "axes", "cell"))
        plain = {name: check(name, stored[name]) for name, check in _TOP.items() if name in stored}
        preset = plain.get("preset", "cifar10")
        if preset not in PRESETS:
            raise InvalidArgumentError(f"unknown preset {preset!r}; known: {', '.join(PRESETS)}")
        model, seeds = _model(stored.get("model", {})), _seeds(stored.get("seeds", DEFAULT_SETS))
        axes, cells = _cells(stored)
        return cls(
            preset=preset,
            model=model,
            images=plain.get("images"),
            seeds=seeds,
            batch_size=plain.get("batch_size"),
            rounding=plain.get("rounding", "round"),
            ruler={name: plain[name] for name in RULER if name in plain},
            axes=axes,
            cells=cells,
        )


def _check_names(where: str, table: Any, known: Sequence[str]) -> None:
    if not isinstance(table, Mapping):
        raise InvalidArgumentError(f"{where} must be a table, got {table!r}")
    for name in table:
        if name not in known:
            place = f" in {where}" if where else ""
            raise InvalidArgumentError(f"unknown entry {name!r}{place}; known: {', '.join(known)}")


def _model(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"name": value}
    _check_names("model", value, tuple(MODEL))
    return {name: MODEL[name](f"model.{name}", entry) for name, entry in value.items()}


def _seeds(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        return tuple(range(0, _positive("seeds", value) * SEED_STEP, SEED_STEP))
    seeds = tuple(_whole("seeds", seed) for seed in value)
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise InvalidArgumentError(f"seeds must be a number of sets, or different first seeds; got {value!r}")
    return seeds


def _cells(stored: Mapping[str, Any]) -> tuple[dict[str, tuple[Any, ...]], tuple[Cell, ...]]:
    """The axes, and all cells."""
    common = _settings("settings", stored.get("settings", {}))
    _check_names("axes", stored.get("axes", {}), tuple(SETTINGS))
    axes = {name: _axis(name, values) for name, values in stored.get("axes", {}).items()}
    singles = stored.get("cell", [])
    if not isinstance(singles, list):
        raise InvalidArgumentError("cells of their own are written as [[cell]], with two brackets")
    cells = []
    if axes:
        for values in itertools.product(*axes.values()):
            labels = dict(zip(axes, values, strict=True))
            cells.append(_cell(None, common, labels, labels))
    for number, table in enumerate(singles, 1):
        _check_names(f"cell {number}", table, ("name", *SETTINGS))
        own = _settings(f"cell {number}", {k: v for k, v in table.items() if k != "name"})
        name = _text(f"cell {number}.name", table["name"]) if "name" in table else None
        cells.append(_cell(name, common, own, {}))
    if not cells:
        raise InvalidArgumentError("there is nothing to measure: give [axes], or cells as [[cell]]")
    return axes, tuple(cells)


def _settings(where: str, table: Any) -> dict[str, Any]:
    _check_names(where, table, tuple(SETTINGS))
    return {name: SETTINGS[name](f"{where}.{name}", value) for name, value in table.items()}


def _axis(name: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, list) or not values:
        raise InvalidArgumentError(f"axes.{name} must be a list of values, got {values!r}")
    checked = tuple(SETTINGS[name](f"axes.{name}", value) for value in values)
    if len({_plain(value) for value in checked}) < len(checked):
        raise InvalidArgumentError(f"axes.{name} has a value twice: {values!r}")
    return checked


def _cell(
    name: str | None, common: Mapping[str, Any], own: Mapping[str, Any], labels: Mapping[str, Any]
) -> Cell:
    idle = [part for part in PARTS if part in own]
    if common.get("ssg") == "off" and "ssg" not in own and idle:
        raise InvalidArgumentError(
            f"settings.ssg is off, so {idle[0]} changes nothing; leave one of them out"
        )
    settings = {**common, **own}
    described = describe(own) or "the model's settings"
    return Cell(described if name is None else name, settings, labels)


_WORDS = {
    "beta": "β",
    "guidance_scale": "CFG",
    "ssg": "SSG",
    "top_k": "top-k",
    "top_p": "top-p",
    "min_p": "min-p",
}
# Settings of SSG whose values say little alone, and numbers.
_LABELS = {"schedule": "{}", "prior": "{} prior", "norm": "{} norm", "remember": "remembers {}"}


def word(name: str) -> str:
    """A setting, for tables and plots."""
    return _WORDS.get(name, name.replace("_", " "))


def describe(settings: Mapping[str, Any]) -> str:
    """Settings in one line: ``"temperature 0.9, SSG off"``."""
    return ", ".join(f"{word(name)} {label(value)}" for name, value in settings.items())


def label(value: Any) -> str:
    """A value of a setting, for tables and plots: ``"0.9"``, ``"0.6 bandwidth, dct prior"``."""
    if isinstance(value, Mapping):
        beta = [label(value["beta"])] if "beta" in value else []
        named = [_LABELS.get(k, k + " {}").format(label(v)) for k, v in value.items() if k != "beta"]
        return " ".join([*beta, ", ".join(named)]).strip()
    if isinstance(value, (list, tuple)):
        return "/".join(label(v) for v in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
