"""From a picture that nextscale wrote back to the settings of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from nextscale.demo import bounds
from nextscale.demo.models import Model, Shelf, spread
from nextscale.demo.settings import BUDGETS, RATIOS, Settings
from nextscale.errors import InvalidArgumentError
from nextscale.generation.request import resolve_cfg
from nextscale.guidance.cfg import ClassifierFreeGuidance, Ramp
from nextscale.guidance.ssg import ScaledSpatialGuidance

_NO_CONTROL = "which the page has no control for; use nextscale generate --from"
# What the page has no control for, and what it is then.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "mask_iterations": (None, 1),
    "guidance_layer": (None, 0, [0], (0,)),
    "stop_after": (None,),
    "given_tokens": (None, 0, []),
    "tile": (None,),
}


def from_picture(stored: Mapping[str, Any], shelf: Shelf) -> tuple[Settings, int]:
    """The settings that a picture was made with, and which of the page's pictures it is.

    stored: what the picture holds, checked for its layout already. Loads the model it names.
    Raises InvalidArgumentError if the page cannot make it: another model, too many pictures, or settings it
    has no control for.
    """
    if stored["command"] != "generate":
        raise InvalidArgumentError(
            f"this picture was written by nextscale {stored['command']}; the page opens those of its own and "
            f"of nextscale generate"
        )
    for name, usual in _FIXED.items():
        if stored.get(name) not in usual:
            what = f"{name.replace('_', '-')} {bounds.shown(stored[name])}"
            raise InvalidArgumentError(f"this picture was made with {what}, {_NO_CONTROL}")
    strengths = ((stored["ssg"] or {}).get("beta"), stored["guidance_scale"].get("scale"))
    if any(isinstance(values, list) and values and isinstance(values[0], list) for values in strengths):
        raise InvalidArgumentError(f"this picture was made with a strength for each picture, {_NO_CONTROL}")
    model = shelf.get(shelf.by_source(stored["source"]))
    pictures = stored.get("batch", stored)
    key = "labels" if model.draws_classes else "prompts"
    subjects, count = _runs([_name(model, value) for value in pictures[key]])
    first = pictures["seeds"][0]
    counted = pictures["seeds"] == list(range(first, first + len(pictures["seeds"])))
    settings = Settings(model.offer.name, tuple(subjects), count)
    settings = settings.changed(seed=[first] if counted else pictures["seeds"], **_numbers(stored, model))
    if model.has_sizes:
        settings = settings.changed(**_size(stored, model))
    grids = model.schedule(settings).grids
    ssg = ScaledSpatialGuidance.from_dict(stored["ssg"] or {"beta": 0.0})
    settings = settings.changed(**spread(ssg, grids))
    _compare_guidance(stored)
    return model.complete(settings), pictures.get("index", 0)


def _numbers(stored: Mapping[str, Any], model: Model) -> dict[str, Any]:
    names = ("temperature", "top_k", "top_p", "min_p", "sampler", "more_smooth", "residual")
    found = {name: stored[name] for name in names if model.has(name) and stored.get(name) is not None}
    found["guidance_scale"] = stored["guidance_scale"].get("scale")
    for name, value in list(found.items()):
        if isinstance(value, Sequence) and not isinstance(value, str):
            if list(value) != list(_several(model.pipe.defaults.get(name))):
                what = f"one {name.replace('_', '-')} per step"
                raise InvalidArgumentError(f"this picture has {what}, {_NO_CONTROL}")
            del found[name]  # the model's own, which is what an empty control stands for
    unwanted = stored.get("negative_prompt")
    if unwanted and model.has("negative_prompt"):
        found["negative_prompt"] = unwanted[0] if isinstance(unwanted, list) else unwanted
    return found


def _several(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) else ()


def _runs(values: list[str]) -> tuple[list[str], int]:
    """``a a b b`` as a and b, twice each; anything less regular as it is, once each."""
    runs = [(value, len(list(same))) for value, same in groupby(values)]
    lengths = {length for _, length in runs}
    return ([value for value, _ in runs], lengths.pop()) if len(lengths) == 1 else (values, 1)


def _name(model: Model, value: Any) -> str:
    if not model.draws_classes:
        return str(value)
    names = model.class_names
    if not -1 <= value < len(names):
        raise InvalidArgumentError(
            f"this picture shows class {value}, which {model.offer.name} does not have"
        )
    return "none" if value < 0 else names[value]


def _size(stored: Mapping[str, Any], model: Model) -> dict[str, str]:
    wanted = [tuple(grid) for grid in stored.get("schedule") or []]
    for pixels in BUDGETS:
        for ratio in RATIOS:
            if list(model.pipe.schedule_for(aspect_ratio=ratio, pixels=pixels).grids) == wanted:
                return {"aspect_ratio": ratio, "pixels": pixels}
    raise InvalidArgumentError("this picture has a size that the page does not offer")


def _compare_guidance(stored: Mapping[str, Any]) -> None:
    """Raises InvalidArgumentError for classifier-free guidance of another kind than the model's usual one."""
    theirs = ClassifierFreeGuidance.from_dict(stored["guidance_scale"])
    ramp: Ramp | None = "linear-hold" if stored.get("family") == "hart" else None
    ours = resolve_cfg(theirs.scale, theirs.convention, ramp)
    if ours != theirs:
        what = f"the ramp {theirs.ramp!r} of classifier-free guidance"
        raise InvalidArgumentError(f"this picture was made with {what}, {_NO_CONTROL}")
