"""The settings of a page as one immutable value, which a URL can hold and a picture can give back.

In the URL they go by the names of the command line's options, so that a link reads like a command::

    ?model=cifar10&label=horse&count=2&seed=0&guidance-scale=4&ssg=0.6&ssg-schedule=linear
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any
from urllib.parse import parse_qsl, quote

from nextscale.demo import bounds
from nextscale.errors import InvalidArgumentError
from nextscale.generation.request import SEED_LIMIT, resolve_seeds
from nextscale.guidance.prior import Norm, PriorKind
from nextscale.guidance.schedules import SCHEDULES, ScheduleName
from nextscale.guidance.ssg import REMEMBER, Remember, ScaledSpatialGuidance

PRIORS: tuple[str, ...] = ("dse", "dct", "bilinear", "nearest")
NORMS: tuple[str, ...] = ("ortho", "forward", "backward")
SAMPLERS: tuple[str, ...] = ("paired", "greedy")
"""Of the library's samplers those that draw a picture again from its seed, whatever is drawn beside it."""
RATIOS: tuple[str, ...] = ("1:1", "4:3", "3:4", "3:2", "2:3", "16:9", "9:16", "2:1", "1:2")
BUDGETS: tuple[str, ...] = ("0.06M", "0.25M", "0.60M", "1M")
SHAPE: Mapping[str, Any] = {
    "ssg_schedule": "constant",
    "prior": "dse",
    "norm": "ortho",
    "remember": "unguided",
}
"""What a strength is shaped by where nothing else is said."""
OFF, DEFAULT = ("off", "none"), "default"
"""The words for a strength that the command line has, too: no guidance, and the model's own."""


@dataclass(frozen=True)
class Settings:
    """What a page shows. Texts and numbers are within the bounds of :mod:`nextscale.demo.bounds`.

    subjects: classes, by name or number as text, or prompts; each is drawn ``count`` times.
    seed: one number, which the pictures count up from, or one for each.
    ssg: one strength, which the schedule spreads over the steps, or one per step; with it, schedule, prior,
        norm and remember are those of the library where nothing else is said.
    ``None``: what the model has as its default.
    """

    model: str
    subjects: tuple[str, ...] = ()
    count: int | None = None
    seed: tuple[int, ...] = (0,)
    ssg: tuple[float, ...] | None = None
    ssg_schedule: ScheduleName | None = None
    prior: PriorKind | None = None
    norm: Norm | None = None
    remember: Remember | None = None
    guidance_scale: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float = 0.0
    sampler: str = "paired"
    more_smooth: bool | None = None
    residual: bool = True
    negative_prompt: str = ""
    aspect_ratio: str = ""
    pixels: str = ""

    def __post_init__(self) -> None:
        pictures = len(self.wanted)
        if pictures > bounds.PICTURES:
            raise InvalidArgumentError(
                f"{pictures} pictures are more than the {bounds.PICTURES} that one page draws; "
                f"take fewer subjects or fewer pictures of each"
            )
        if self.ssg is None:
            return
        for name, usual in SHAPE.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, usual)
        if len(self.ssg) > 1 and self.ssg_schedule != "constant":
            raise InvalidArgumentError("ssg-schedule shapes a single strength, but ssg is given per step")

    @property
    def wanted(self) -> list[str]:
        """What every picture shows, in order."""
        return [subject for subject in self.subjects for _ in range(self.count or 1)]

    @property
    def seeds(self) -> list[int]:
        """One per picture. Raises InvalidArgumentError if they do not fit the number of pictures."""
        return resolve_seeds(self.seed if len(self.seed) > 1 else self.seed[0], len(self.wanted))

    @property
    def shape(self) -> dict[str, Any]:
        """Give what shapes the strength, by name; nothing is open."""
        return {name: getattr(self, name) or usual for name, usual in SHAPE.items()}

    def guidance(self) -> ScaledSpatialGuidance:
        """SSG as set here; where no strength is, what is open is the model's own."""
        ssg = self.ssg
        return ScaledSpatialGuidance(
            ssg if ssg is None or len(ssg) > 1 else ssg[0],
            schedule=self.ssg_schedule,
            prior=self.prior,
            norm=self.norm,
            remember=self.remember,
        )

    # ------------------------------------------------------------------ the URL

    def to_query(self, key: str) -> str:
        """``"?model=…&label=…"``, without what is as usual. key: ``"label"`` or ``"prompt"``."""
        pairs = [("model", self.model), *((key, subject) for subject in self.subjects)]
        usual = {field.name: field.default for field in fields(self)}
        usual |= SHAPE if self.ssg is not None else {}
        for name in _READ:
            value = getattr(self, name)
            if value is not None and (name in _ALWAYS or value != usual[name]):
                pairs.append((name.replace("_", "-"), _as_text(value)))
        return "?" + "&".join(
            f"{name}={quote(value, safe=',:/ ').replace(' ', '+')}" for name, value in pairs
        )

    @classmethod
    def from_query(cls, query: str, model: str) -> Settings:
        """The inverse of :meth:`to_query`. model: the one that is meant where the query names none.

        Raises InvalidArgumentError for unknown names and for values out of bounds.
        """
        query = bounds.text(query, "the list of settings", bounds.QUERY).partition("#")[0].lstrip("?")
        try:
            pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=100, errors="strict")
        except (ValueError, UnicodeDecodeError):
            raise InvalidArgumentError(f"these are no settings: {bounds.shown(query)}") from None
        subjects: list[str] = []
        found: dict[str, Any] = {}
        for key, value in pairs:
            name = key.replace("-", "_")
            if key in ("label", "prompt"):
                subjects.append(subject(value))
            elif name in found or (name not in _READ and name != "model" and not key.startswith("__")):
                what = "appears twice" if name in found else "is unknown"
                raise InvalidArgumentError(f"the setting {bounds.shown(key)} {what}")
            elif not key.startswith("__"):  # gradio's own, as __theme
                found[name] = bounds.text(value, "model") if name == "model" else _READ[name](value)
        return cls(**{"model": model, "subjects": tuple(subjects), **found})

    def changed(self, **values: Any) -> Settings:
        """The same settings but for some, given as a URL has them or in their own types; all are checked."""
        open_ = {field.name for field in fields(self) if field.default is None}
        read: dict[str, Any] = {n: v if v is None and n in open_ else _READ[n](v) for n, v in values.items()}
        return replace(self, **read)


def subject(value: Any) -> str:
    """A class or a prompt. Raises InvalidArgumentError if it is empty or too long."""
    found = _line(bounds.text(value, "a class or prompt"))
    if not found:
        raise InvalidArgumentError("a class or prompt is empty; write what to draw")
    return found


def _line(value: str) -> str:
    """A text in one line, without what cannot be seen."""
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())


def _strengths(value: Any) -> tuple[float, ...] | None:
    if value == DEFAULT:
        return None
    if value in OFF:
        return (0.0,)
    parts = value.split(",") if isinstance(value, str) else value
    if isinstance(parts, int | float):
        parts = [parts]
    if not isinstance(parts, Sequence) or not 1 <= len(parts) <= bounds.STEPS:
        raise InvalidArgumentError(
            f"ssg is a number, one per step with commas between, {DEFAULT} or {OFF[0]}; "
            f"got {bounds.shown(value)}"
        )
    words = f", {DEFAULT} or {OFF[0]}" if isinstance(value, str) and len(parts) == 1 else ""
    return tuple(bounds.number(part, "ssg", 0.0, bounds.BETA, words) for part in parts)


def _seeds(value: Any) -> tuple[int, ...]:
    # 7, 3 and 7,3 and 7 3 are two seeds; no reading makes 73 of them.
    parts = re.split(r"\s*,\s*|\s+", value.strip()) if isinstance(value, str) else value
    if isinstance(parts, int | float):
        parts = [parts]
    if not isinstance(parts, Sequence) or not 1 <= len(parts) <= bounds.PICTURES:
        raise InvalidArgumentError(
            f"seed is a number, or one for each of at most {bounds.PICTURES} pictures; "
            f"got {bounds.shown(value)}"
        )
    return tuple(bounds.whole(part, "seed", 0, SEED_LIMIT - 1) for part in parts)


def _switch(name: str) -> Callable[[Any], bool]:
    return lambda v: v if isinstance(v, bool) else bounds.one_of(v, name, ("on", "off")) == "on"


def _optional(known: tuple[str, ...], name: str) -> Callable[[Any], str]:
    return lambda value: bounds.one_of(value, name, ("", *known))


# How each setting is read, from a URL or from the page, in the order in which a URL has them.
_READ: Mapping[str, Callable[[Any], Any]] = {
    "count": lambda v: bounds.whole(v, "count", 1, bounds.PICTURES),
    "seed": _seeds,
    "guidance_scale": lambda v: bounds.number(v, "guidance-scale", 0.0, bounds.GUIDANCE_SCALE),
    "temperature": lambda v: bounds.number(v, "temperature", *bounds.TEMPERATURE),
    "top_k": lambda v: bounds.whole(v, "top-k", 0, bounds.TOP_K),
    "top_p": lambda v: bounds.number(v, "top-p", 0.0, 1.0),
    "min_p": lambda v: bounds.number(v, "min-p", 0.0, 1.0),
    "sampler": lambda v: bounds.one_of(v, "sampler", SAMPLERS),
    "more_smooth": _switch("more-smooth"),
    "residual": _switch("residual"),
    "negative_prompt": lambda v: _line(bounds.text(v, "negative-prompt")),
    "aspect_ratio": _optional(RATIOS, "aspect-ratio"),
    "pixels": _optional(BUDGETS, "pixels"),
    "ssg": _strengths,
    "ssg_schedule": lambda v: bounds.one_of(v, "ssg-schedule", SCHEDULES),
    "prior": lambda v: bounds.one_of(v, "prior", PRIORS),
    "norm": lambda v: bounds.one_of(v, "norm", NORMS),
    "remember": lambda v: bounds.one_of(v, "remember", REMEMBER),
}
# What a link says even where it is as usual, since a model's defaults may change.
_ALWAYS = ("count", "seed", "guidance_scale", "temperature", "top_k", "top_p", "ssg")


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(_as_text(part) for part in value)
    return repr(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def as_text(value: Any) -> str:
    """A value as the URL and the command line write it: exactly, and as short as that allows."""
    return _as_text(value)
