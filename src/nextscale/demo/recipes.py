"""The pictures of a page as Python and as commands, which make exactly the same ones."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from nextscale.demo.models import Model
from nextscale.demo.settings import SHAPE, Settings, as_text
from nextscale.guidance.ssg import ScaledSpatialGuidance

WITHOUT, WITH = "without.png", "with.png"
# Options that need no saying, because they are so everywhere.
_USUAL: Mapping[str, Any] = {"min_p": 0.0, "sampler": "paired", "more_smooth": False, "residual": True}


def as_command(model: Model, settings: Settings) -> str:
    """Two lines of ``nextscale generate``, without and with SSG. settings: complete ones."""
    words = ["nextscale", "generate"]
    for subject in settings.subjects:
        words += [subject] if model.draws_classes else _option("prompt", subject)
    words += ["--count", str(settings.count), "--seed", as_text(settings.seed)]
    for name, value in {**model.offer.source, **model.offer.placement}.items():
        words += _option(name, str(value))
    for name, value in _said(model, settings).items():
        flag = name.replace("_", "-")
        is_switch = isinstance(value, bool)
        words += [f"--{'' if value else 'no-'}{flag}"] if is_switch else _option(flag, as_text(value))
    guided = ["--ssg", as_text(settings.guidance().beta)]
    for name, value in settings.shape.items():
        guided += _option(name.replace("_", "-"), value) if value != SHAPE[name] else []
    lines = [[*words, "--output", WITHOUT], [*words, *guided, "--output", WITH]]
    return "\n".join(shlex.join(line) for line in lines)


def _option(flag: str, value: str) -> list[str]:
    """An option and its value, which may begin with what would look like another option."""
    return [f"--{flag}={value}"] if value.startswith("-") else [f"--{flag}", value]


def as_python(model: Model, settings: Settings) -> str:
    """A script that leaves ``plain`` and ``guided``, the outcomes of two calls. settings: complete ones."""
    pipeline = type(model.pipe).__name__
    given = {"seed": settings.seeds, **_said(model, settings)}
    listed = "".join(f"    {name}={value!r},\n" for name, value in given.items())
    pictures = _folded(model, settings)
    return (
        f"from nextscale import ScaledSpatialGuidance, {pipeline}\n\n"
        f"pipe = {pipeline}.{_loading(model)}\n"
        f"pictures = {pictures}\n"
        f"settings = dict(\n{listed})\n"
        f"ssg = {_guidance(settings.guidance())}\n\n"
        f"plain = pipe(pictures, **settings)\n"
        f"guided = pipe(pictures, **settings, ssg=ssg)\n"
        f"for i, image in enumerate(guided.images):\n"
        f'    image.save(f"with-{{i}}.png")\n'
    )


def _said(model: Model, settings: Settings) -> dict[str, Any]:
    given = model.call_arguments(settings)
    return {name: value for name, value in given.items() if _USUAL.get(name) != value}


def _guidance(ssg: ScaledSpatialGuidance) -> str:
    beta = list(ssg.beta) if isinstance(ssg.beta, tuple) else ssg.beta
    shape = {"schedule": ssg.schedule, "prior": ssg.prior, "norm": ssg.norm, "remember": ssg.remember}
    usual = ScaledSpatialGuidance(1.0)
    named = [f", {name}={value!r}" for name, value in shape.items() if value != getattr(usual, name)]
    return f"ScaledSpatialGuidance({beta!r}{''.join(named)})"


def _loading(model: Model) -> str:
    source, where = dict(model.offer.source), dict(model.offer.placement)
    name = source.pop("model", None) or source.pop("transformer")
    options = {("model" if key == "variant" else key): value for key, value in {**source, **where}.items()}
    how = "from_official" if model.offer.official else "from_pretrained"
    return f"{how}({', '.join([repr(name), *(f'{k}={v!r}' for k, v in options.items())])})"


def _folded(model: Model, settings: Settings) -> str:
    """The list of subjects as one would write it: ``["horse"] * 4``."""
    subjects = [None if model.draws_classes and s == "none" else s for s in settings.subjects]
    count = settings.count or 1
    parts = [f"[{s!r}]{f' * {count}' if count > 1 else ''}" for s in subjects]
    return " + ".join(parts) if count > 1 else repr(subjects)
