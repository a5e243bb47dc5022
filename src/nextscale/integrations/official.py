"""Where the official loops keep what SSG needs to know, without a change of their code.

The repositories of VAR, HART and Infinity, and their forks, have in common a method
``autoregressive_infer_cfg`` that runs the whole loop, and a sampling function that gets every step's logits
after classifier-free guidance. The method finds that function in its module's globals, which is where
:mod:`nextscale.integrations.context` puts itself. The rest is read from the running method's own frame: the
model, the grids, Infinity's temperatures, and the cells HART draws at its last scale.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from types import FrameType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nextscale.errors import GridError, InvalidArgumentError
from nextscale.guidance.base import Grid
from nextscale.integrations.hook import read_grids

METHOD = "autoregressive_infer_cfg"
SAMPLERS = (
    "sample_with_top_k_top_p_",  # VAR, HART
    "sample_with_top_k_top_p_also_inplace_modifying_logits_",  # Infinity
)
# An argument of the method in Infinity, an attribute of the model in VAR and HART.
SCHEDULES = ("scale_schedule", "patch_nums")
TEMPERATURES = "tau_list"
CELLS = "mask_to_pred"


class SamplingLoop(NamedTuple):
    """A definition of the method: the module globals it runs in, the sampling functions there, its name."""

    namespace: dict[str, Any]
    samplers: tuple[str, ...]
    name: str


def find_loops(model: Any) -> tuple[Any, tuple[SamplingLoop, ...]]:
    """The object that ``autoregressive_infer_cfg`` runs on, and every definition of it that draws tokens.

    The object is the model itself, or what it wraps, as ``torch.compile(model)`` does. All definitions along
    the MRO count: a subclass may override the method in a module without a sampling function and call the
    original one.

    Raises:
        InvalidArgumentError: if there is none; the message says what was looked for.
    """
    if isinstance(model, type):
        raise InvalidArgumentError(f"guide() needs a model, but got the class {model.__name__}")
    owner = getattr(getattr(model, METHOD, None), "__self__", model)
    functions = tuple(_definitions(owner))
    if not functions:
        raise _refusal(model, f"it has no method {METHOD}, in whose module they would be")
    loops = tuple(_loops(functions))
    if not loops:
        modules = ", ".join(sorted({str(function.__module__) for function in functions}))
        raise _refusal(model, f"it has {METHOD}, but no such function is among the globals of {modules}")
    known = {name for function in functions for name in function.__code__.co_varnames}
    if not any(name in known or hasattr(owner, name) for name in SCHEDULES):
        raise _refusal(
            model,
            f"it has both, but neither an argument nor an attribute {' or '.join(SCHEDULES)} that says the "
            f"grids of the steps",
        )
    return owner, loops


def _refusal(model: Any, found: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"guide() looked for what the models of VAR, HART and Infinity have: a method {METHOD} that draws "
        f"with {SAMPLERS[0]} or {SAMPLERS[1]}. It was given an object of type "
        f"{type(model).__name__}: {found}. In a sampling loop of your own, use "
        f"nextscale.integrations.SpatialGuidanceHook, see docs/integrations.md; the pipelines of nextscale "
        f"take ssg=... themselves."
    )


def _definitions(owner: Any) -> Iterator[FunctionType]:
    """Every ``autoregressive_infer_cfg`` of an object, its own first, then along the MRO, unwrapped."""
    for place in (owner, *type(owner).__mro__):
        function = _unwrap(getattr(place, "__dict__", {}).get(METHOD))
        if function is not None:
            yield function


def _unwrap(value: Any) -> FunctionType | None:
    """The function under decorators such as ``torch.no_grad()``, ``partial`` or a bound method."""
    seen: set[int] = set()
    while value is not None and id(value) not in seen:
        seen.add(id(value))
        if isinstance(value, functools.partial | functools.partialmethod):
            value = value.func
        elif inspect.ismethod(value) or isinstance(value, staticmethod | classmethod):
            value = value.__func__
        elif hasattr(value, "__wrapped__"):
            value = value.__wrapped__
        else:
            break
    return value if isinstance(value, FunctionType) else None


def _loops(functions: Iterable[FunctionType]) -> Iterator[SamplingLoop]:
    for function in functions:
        namespace = function.__globals__
        samplers = tuple(name for name in SAMPLERS if callable(namespace.get(name)))
        if samplers:
            yield SamplingLoop(namespace, samplers, function.__code__.co_name)


def find_frames(frame: FrameType | None, namespace: Mapping[str, Any], names: set[str]) -> list[FrameType]:
    """The frames from a draw up to the loop that asked for it, innermost first; none if no loop did.

    Between the two there may be someone else's wrapper of the sampling function, or a helper of a fork. A
    training pass that draws tokens has no loop above it.
    """
    frames = []
    while frame is not None:
        frames.append(frame)
        if frame.f_code.co_name in names and frame.f_globals is namespace:
            return frames
        frame = frame.f_back
    return []


def read_model(frame: FrameType) -> Any:
    """The object a loop's frame runs on: its first argument."""
    names = frame.f_code.co_varnames
    return frame.f_locals.get(names[0]) if names else None


def read_schedule(model: Any, arguments: Mapping[str, Any]) -> tuple[Grid, ...]:
    """The grids of a running loop: what the call was given, else what the model has.

    Raises:
        GridError: if they are no grids.
        InvalidArgumentError: if there are none.
    """
    for name in SCHEDULES:
        value = arguments.get(name)
        value = getattr(model, name, None) if value is None else value
        if value is not None:
            return read_grids(value)
    raise InvalidArgumentError(
        f"{METHOD} was called without {' or '.join(SCHEDULES)}, and {type(model).__name__} has none either"
    )


def read_temperatures(arguments: Mapping[str, Any], steps: int) -> tuple[float, ...]:
    """What every step's logits were divided by already: Infinity's ``tau_list``, else 1."""
    value = arguments.get(TEMPERATURES)
    if value is None:
        return (1.0,) * steps
    values = [value] * steps if isinstance(value, Real) else list(value)
    return tuple(float(tau) for tau in values[:steps])


def by_cell(logits: Tensor, cells: int) -> Tensor:
    """Logits ``(B, l, C)`` as they are, Infinity's ``(B, l * bits, 2)`` as ``(B, l, bits, 2)``.

    Raises:
        GridError: if they have other than three axes.
    """
    if logits.ndim != 3:
        raise GridError(f"{METHOD} draws from logits of shape {tuple(logits.shape)}; expected (B, l, C)")
    batch, rows, choices = logits.shape
    if choices == 2 and rows > cells and rows % cells == 0:
        return logits.reshape(batch, cells, rows // cells, 2)
    return logits


def read_positions(frames: Iterable[FrameType], logits: Tensor, cells: int) -> Tensor:
    """Which cells of the grid a masked draw predicts, int64 ``(B, l)``, ascending per sample.

    The loop has them as a mask ``(B, cells)``: by its official name, or else the only one that marks as many.

    Args:
        frames: where to look, in this order.
        logits: of the draw, ``(B, l, C)`` with ``l < cells``.
        cells: of the whole grid.

    Raises:
        GridError: if there is no such mask, or several.
    """
    batch, drawn = logits.shape[:2]
    for frame in frames:
        masks = {
            name: value
            for name, value in frame.f_locals.items()
            if isinstance(value, Tensor)
            and value.dtype == torch.bool
            and value.shape == (batch, cells)
            and bool((value.sum(1) == drawn).all())
        }
        if CELLS in masks:
            return _marked(masks[CELLS], drawn)
        if len({id(mask) for mask in masks.values()}) == 1:
            return _marked(next(iter(masks.values())), drawn)
        if masks:
            raise GridError(
                f"{drawn} of {cells} cells are drawn, and {', '.join(sorted(masks))} all mark as many; call "
                f"the right one {CELLS}"
            )
    raise GridError(
        f"{drawn} of {cells} cells are drawn, and no mask of shape {(batch, cells)} in the loop, such as "
        f"HART's {CELLS}, says which"
    )


def _marked(mask: Tensor, drawn: int) -> Tensor:
    return mask.nonzero()[:, 1].reshape(len(mask), drawn)
