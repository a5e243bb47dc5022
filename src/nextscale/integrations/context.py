"""``guide(model, ssg)``: Scaled Spatial Guidance on the official code of VAR, HART and Infinity.

While a guide is active, a function stands in for the sampling function in the globals of the model's
module. Every model of that module shares it, so at each draw it looks at who is asking: the nearest frame of
the stack that runs ``autoregressive_infer_cfg``, and the model it runs on. Draws of other models, and draws
outside of a generation, pass through untouched; those of a guided model are guided in place.

What a generation remembers is kept in that frame. So a generation is exactly one call of the method: nothing
of it is left once it returned or failed, and threads, generators and generations inside of one another cannot
be mixed up.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from functools import update_wrapper
from threading import RLock
from types import FrameType, TracebackType
from typing import Any, NoReturn

import torch
from torch import Tensor

from nextscale.errors import GridError, InvalidArgumentError
from nextscale.guidance import ScaledSpatialGuidance
from nextscale.guidance.base import compute_dtype
from nextscale.guidance.schedules import StrengthLike
from nextscale.integrations.hook import SpatialGuidanceHook, check_ssg
from nextscale.integrations.official import (
    METHOD,
    SamplingLoop,
    by_cell,
    find_frames,
    find_loops,
    read_model,
    read_positions,
    read_schedule,
    read_temperatures,
)

_LOCK = RLock()
# The guides of every model, in the order they were entered, by the id of the model, which they keep alive.
# Tuples, so that a draw in another thread never sees one half changed.
_ACTIVE: dict[int, tuple[ModelGuide, ...]] = {}
# No identifier, so that it cannot be a variable of the loop.
_GENERATION = "nextscale: generation"


def guide(model: Any, ssg: ScaledSpatialGuidance | StrengthLike) -> ModelGuide:
    """Guide every generation of an official model inside of a ``with`` block::

        with guide(var, ScaledSpatialGuidance(0.6)):
            images = var.autoregressive_infer_cfg(B=8, label_B=labels, cfg=1.5, top_k=900, top_p=0.96)

    Between classifier-free guidance and the draw, the logits are replaced by guided ones, in the tensor that
    the official code goes on with. Neither code nor weights change, no random number is drawn, and at the end
    everything is as it was found. Guides of different models may overlap in any order and in any threads; of
    several on the same model the one entered last acts.

    Args:
        model: a model of FoundationVision/VAR, mit-han-lab/hart or FoundationVision/Infinity, or a fork that
            kept the names: it has a method ``autoregressive_infer_cfg``, whose module holds
            ``sample_with_top_k_top_p_`` or ``sample_with_top_k_top_p_also_inplace_modifying_logits_``.
        ssg: the settings, or just the strength.

    Returns:
        A context manager for a single use.

    Raises:
        InvalidArgumentError: if the object is no such model, which the message explains, or ``ssg`` is
            neither settings nor a strength. While the model generates also GridError and
            InvalidArgumentError, if a draw does not fit the grids or the strengths are not one per step.
    """
    return ModelGuide(model, check_ssg(ssg))


class ModelGuide:
    """What :func:`guide` returns; ``ssg`` are its settings."""

    def __init__(self, model: Any, ssg: ScaledSpatialGuidance) -> None:
        self.ssg = ssg
        self._model, self._loops = find_loops(model)
        self._samplers: list[_Sampler] = []

    def __enter__(self) -> ModelGuide:
        with _LOCK:
            if self._model is None or self._samplers:
                raise InvalidArgumentError("this guide was entered before; call guide(model, ssg) again")
            self._samplers = [
                _Sampler.join(self, loop, name) for loop in self._loops for name in loop.samplers
            ]
            _ACTIVE[id(self._model)] = (*_ACTIVE.get(id(self._model), ()), self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _LOCK:
            others = tuple(guide for guide in _ACTIVE[id(self._model)] if guide is not self)
            if others:
                _ACTIVE[id(self._model)] = others
            else:
                del _ACTIVE[id(self._model)]
            for sampler in self._samplers:
                sampler.leave(self)
            self._model, self._loops, self._samplers = None, (), []


class _Sampler:
    """Stands in for one sampling function, in one module, for as long as guides need it there."""

    def __init__(self, namespace: dict[str, Any], name: str) -> None:
        self.namespace, self.name = namespace, name
        self.found: Callable[..., Any] = namespace[name]
        self.guides: list[ModelGuide] = []
        self.methods = {METHOD}
        # What looks at the stack must not be traced; where nobody compiles, the compiler is not even loaded.
        compiling = "torch._dynamo" in sys.modules
        self.guide_draw = torch.compiler.disable(_guide_draw) if compiling else _guide_draw
        # Name and documentation, but not the attributes: a wrapper of another stand-in carries copies of its.
        update_wrapper(self, self.found, updated=())

    @classmethod
    def join(cls, guide: ModelGuide, loop: SamplingLoop, name: str) -> _Sampler:
        """The stand-in that is there already, or a new one over whatever is."""
        current = loop.namespace[name]
        sampler = current if isinstance(current, cls) else cls(loop.namespace, name)
        sampler.guides.append(guide)
        sampler.methods.add(loop.name)
        loop.namespace[name] = sampler
        return sampler

    def leave(self, guide: ModelGuide) -> None:
        """One guide less; the last one puts back what the first one found."""
        self.guides.remove(guide)
        current = self.namespace.get(self.name)
        covered = current is not self and isinstance(current, _Sampler)
        if not self.guides and not covered:
            self.namespace[self.name] = self.found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.guide_draw(self, args, kwargs)
        return self.found(*args, **kwargs)

    @property
    def __defaults__(self) -> NoReturn:
        # Code that torch 2.1 compiled with the original function in it looks here, and nowhere else, before
        # it goes on with the original.
        raise AttributeError(
            f"a compiled {METHOD} ran before guide() was entered, and this version of torch would go on as "
            f"if there were no guide; call torch.compiler.reset() once inside of the guide"
        )


def _guide_draw(sampler: _Sampler, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Guide what a sampling function was called with, if a guided model generates."""
    frames = find_frames(sys._getframe(1), sampler.namespace, sampler.methods)
    if not frames:
        return
    loop = frames[-1]
    model = read_model(loop)
    guides = _ACTIVE.get(id(model))
    # Where someone put a wrapper between two stand-ins both are asked; only the one may act that the guide
    # entered last has joined.
    if not guides or guides[-1] not in sampler.guides:
        return
    acting, memory = guides[-1], loop.f_locals
    generation = memory.get(_GENERATION)
    if generation is None or generation.guide is not acting:
        generation = memory[_GENERATION] = _Generation(acting, model, memory)
    logits = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
    if logits is None:
        raise InvalidArgumentError(f"{sampler.name} was called without a tensor of logits")
    generation.guide_in_place(logits, frames)


class _Generation:
    """One call of ``autoregressive_infer_cfg`` under one guide."""

    def __init__(self, guide: ModelGuide, model: Any, arguments: Mapping[str, Any]) -> None:
        self.guide = guide
        self._hook = SpatialGuidanceHook(guide.ssg)
        self._hook.begin(read_schedule(model, arguments))
        self._temperatures = read_temperatures(arguments, len(self._hook.grids))

    def guide_in_place(self, logits: Tensor, frames: list[FrameType]) -> None:
        """Overwrite a draw's logits, ``(B, l, C)`` or ``(B, l * bits, 2)``, with guided ones."""
        hook, grids = self._hook, self._hook.grids
        index, last = hook.index, len(grids) - 1
        if index > last:
            raise GridError(f"{METHOD} went on drawing after the last of its {len(grids)} grids")
        cells, tau = math.prod(grids[index]), self._temperatures[index]
        given = by_cell(logits, cells)
        drawn = given.shape[1]
        if drawn > cells or (drawn < cells and index < last):
            raise GridError(
                f"draw {index + 1} since guide() was entered has {drawn} cells, but grid {index + 1} is "
                f"{grids[index]}. A model must not be generating already when guide() is entered; for a loop "
                f"that does not draw every grid once, in order, use SpatialGuidanceHook"
            )
        positions = read_positions(frames, given, cells) if drawn < cells else None
        # The official code has divided by its temperature already.
        exact = given.to(compute_dtype(given))
        exact = exact if tau == 1.0 else exact * tau
        guided = hook(exact, positions=positions)
        if guided is not exact:
            guided = guided if tau == 1.0 else guided / tau
            logits.copy_(guided.reshape(logits.shape))
