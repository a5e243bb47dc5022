"""The controls of the page and the settings they stand for, in both directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nextscale.demo import bounds
from nextscale.demo.models import Model
from nextscale.demo.settings import Settings, as_text, subject
from nextscale.demo.views import grid_names
from nextscale.errors import InvalidArgumentError

LIVE = "Draw at every change"
PER_STEP = "per step"
"""Among the schedules of the β editor: strengths that were set one by one."""

NUMBERS = ("count", "guidance_scale", "temperature", "top_k", "top_p", "min_p")
CHOICES = ("sampler", "prior", "norm", "remember", "aspect_ratio", "pixels")
SWITCHES = ("more_smooth", "residual")
NAMES = ("model", "classes", "prompts", "negative_prompt", "seed", "beta", *NUMBERS, *CHOICES, *SWITCHES)
"""All controls whose values are settings, in the order in which handlers get them."""


class Update(dict[str, Any]):
    """What changes about a control: ``value``, ``choices``, ``visible``, ``interactive``."""


def settings_of(values: Mapping[str, Any], model: Model) -> Settings:
    """What the controls say, checked. values: by their :data:`NAMES`.

    Raises InvalidArgumentError for what is out of bounds, whatever the page in the browser allows.
    """
    given = {name: values[name] for name in NUMBERS if values[name] not in (None, "")}
    given |= {n: values[n] for n in (*CHOICES, *SWITCHES) if values[n] is not None and _applies(n, model)}
    if model.has("negative_prompt"):
        given["negative_prompt"] = values["negative_prompt"] or ""
    given["seed"] = values["seed"]
    given |= _strength(values["beta"])
    return _with_subjects(values, model, given)


def _with_subjects(values: Mapping[str, Any], model: Model, given: Mapping[str, Any]) -> Settings:
    if model.draws_classes:
        names = values["classes"]
    else:
        text = bounds.text(values["prompts"], "the list of prompts", bounds.PICTURES * (bounds.PROMPT + 1))
        names = [line for line in text.splitlines() if line.strip()]
    if not isinstance(names, list) or not names:
        what = "a class" if model.draws_classes else "a prompt"
        raise InvalidArgumentError(f"there is nothing to draw; give {what}")
    if len(names) > bounds.PICTURES:
        raise InvalidArgumentError(
            f"{len(names)} classes or prompts are more than the {bounds.PICTURES} pictures of one page"
        )
    return Settings(model.offer.name, tuple(subject(name) for name in names), 1).changed(**given)


def _applies(name: str, model: Model) -> bool:
    return name not in (*SWITCHES, "aspect_ratio", "pixels") or model.has(name)


def _strength(value: Any) -> dict[str, Any]:
    """What the β editor says."""
    if not isinstance(value, Mapping):
        raise InvalidArgumentError(f"the β editor sent {bounds.shown(value)}")
    schedule = value.get("schedule")
    strength = value.get("curve" if schedule == PER_STEP else "beta")
    if strength is None:
        raise InvalidArgumentError("the β editor sent no strength")
    return {"ssg": strength, "ssg_schedule": "constant" if schedule == PER_STEP else schedule}


def beta_value(model: Model, settings: Settings) -> dict[str, Any]:
    """What the β editor shows: the strength, its schedule, and the curve that the two make."""
    grids = model.schedule(settings).grids
    ssg = settings.ssg or (0.0,)
    several = len(ssg) > 1
    weights = model.weights(grids)
    schedule = settings.shape["ssg_schedule"]
    curve = list(ssg) if several else [ssg[0] * weight for weight in weights[schedule]]
    return {
        "beta": max(ssg),
        "schedule": PER_STEP if several else schedule,
        "curve": curve,
        "weights": weights,
        "steps": grid_names(grids),
    }


def controls_of(model: Model, settings: Settings, models: Sequence[str]) -> dict[str, Update]:
    """All controls as these settings, which are complete, are with this model."""
    classes = model.draws_classes
    found = {
        "model": Update(value=model.offer.name, choices=list(models)),
        "classes": Update(
            value=list(settings.subjects) if classes else [],
            choices=[*model.class_names, "none"] if classes else [],
            visible=classes,
        ),
        "prompts": Update(value="" if classes else "\n".join(settings.subjects), visible=not classes),
        "negative_prompt": Update(value=settings.negative_prompt, visible=model.has("negative_prompt")),
        "seed": Update(value=as_text(settings.seed).replace(",", ", ")),
        "beta": Update(value=beta_value(model, settings)),
    }
    found |= {name: Update(value=getattr(settings, name)) for name in ("count", "min_p", *_OPEN)}
    found |= {
        name: Update(value=getattr(settings, name)) for name in ("sampler", "prior", "norm", "remember")
    }
    for name in (*SWITCHES, "aspect_ratio", "pixels"):
        shown = model.has(name)
        found[name] = Update(value=getattr(settings, name) if shown else None, visible=shown)
    return found


_OPEN = ("guidance_scale", "temperature", "top_k", "top_p")  # empty where the model has its own per step
