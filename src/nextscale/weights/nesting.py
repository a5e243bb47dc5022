"""A network's tensors in files as trainers leave them: nested, wrapped, averaged, and beside other things.

A *state dict* is a mapping that holds tensors by name; trainers nest it under a word of their own, in which
there may be another. Names in it may have a prefix, where the network is a part of something larger, and the
words of wrappers anywhere. So nothing here goes by where tensors lie: a network is known by some of its own
names, and what surrounds them is taken off.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextscale.errors import CheckpointError, warn
from nextscale.weights.files import some
from nextscale.weights.official import read_content

DEPTH = 6  # levels of nesting that are looked into

# What DDP, FSDP, torch.compile, activation checkpointing, Lightning and DeepSpeed put into names.
_WRAPPER = re.compile(
    r"(?:^|(?<=\.))(?:module|_module|_orig_mod|_forward_module|_fpw_module|_\w*wrapped_module)\."
)
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
_AVERAGED = {"ema", "shadow", "average", "averaged", "averages", "avg", "swa", "polyak"}
_ASIDE = {"teacher", "reference", "initial", "frozen"}  # other networks of the kind that is wanted
_OPTIMISER = {"optimizer", "optimizers", "optim", "optimiser", "opt", "exp", "momentum", "grad", "grads"}
_COUNTERS = {"n_averaged", "initted", "step", "num_updates", "decay"}  # that averages keep beside weights
_LIST = "shadow_params"  # averages as a list, in the order of the parameters
_GLUED = re.compile(r"(?:^|\.)(?:ema|shadow|averaged|avg|swa)_$")  # a prefix that no dot ends


@dataclass(frozen=True)
class Part:
    """How the tensors of one kind of network are known.

    telling: names that a file of it has, each in as many ``spellings`` as there are. spare: names that a file
        may lack, being no parameters.
    usual: the word that the published files nest it under; what lies there is taken unless averages are asked
        for.
    """

    telling: frozenset[str]
    spare: re.Pattern[str]
    usual: str = ""
    spellings: int = 1


@dataclass(frozen=True)
class Found:
    """One set of tensors that may be the network's.

    where: the words it lies under, and its prefix. tensors: by the network's own names. full: the same
    tensors' names in the state dict, wrappers taken off. hits: how many of the telling names it has.
    """

    where: tuple[str, ...]
    tensors: dict[str, Tensor]
    full: dict[str, str]
    averaged: bool
    hits: int

    @property
    def place(self) -> str:
        return repr(".".join(w.strip(".") for w in self.where if w)) if any(self.where) else "the top level"


def read_part(
    path: Path, part: Part, *, averaged: bool | None = None, strict: bool = True, meta: bool = False
) -> dict[str, Tensor]:
    """The tensors of a network by its own names, from a weight file or a folder of several with an index.

    averaged: True takes averaged weights (EMA), False others, ``None`` averaged ones where there are any.
        What averages leave out (buffers, and parameters that were not trained) comes from beside them.
    strict: whether it is an error if there are only the others.
    meta: shapes and dtypes only, as tensors on the meta device.

    Where nothing looks like the network, the largest state dict there is. Raises CheckpointError for files
    that cannot be read, hold no tensors, several such networks, or not what was asked for.
    """
    content = read_content(path, meta=meta)
    states = list(_states(content, (), False, set()))
    if not states:
        raise CheckpointError(
            f"{path.name} holds no tensors at its top level or below; its keys are {some(content)}"
        )
    found = [one for state in states for one in _networks(state, part, path)]
    if not found:
        return _unrecognised(states, path)
    most = max(one.hits for one in found)
    found = [one for one in found if 2 * one.hits > most]
    found += [one for state in states for one in _by_order(state, found, part)]
    if "ema" in _words([path.name]) and not any(one.averaged for one in found):
        found = [replace(one, averaged=True) for one in found]  # HART's ema_model.bin, NeMo's -EMA.ckpt
    chosen = _choose(found, part, averaged, strict, path)
    return _completed(chosen, found, part, path, told=not meta) if chosen.averaged else chosen.tensors


def holds(path: Path, part: Part) -> bool:
    """Whether a weight file, or a folder of several with an index, has the telling names of a network."""
    try:
        found = part.telling & read_part(path, part, meta=True).keys()
        return len(found) * part.spellings >= len(part.telling)
    except CheckpointError:
        return False


# ------------------------------------------------------------------ state dicts


@dataclass(frozen=True)
class _State:
    """A state dict: where it lies, its tensors without wrappers in their names, and lists of averages."""

    where: tuple[str, ...]
    tensors: dict[str, Tensor]
    averaged: bool
    lists: list[Sequence[Tensor]] = field(default_factory=list)


def _states(
    node: Mapping[Any, Any], where: tuple[str, ...], averaged: bool, seen: set[tuple[int, bool]]
) -> Iterator[_State]:
    """Every mapping with tensors, from the outside in; what optimisers keep is passed over.

    seen: what was visited already, so that a file cannot make it many by pointing to the same again.
    """
    tensors = {k: v for k, v in node.items() if isinstance(k, str) and isinstance(v, Tensor)}
    found = node.get(_LIST)
    lists: list[Sequence[Tensor]] = []
    if isinstance(found, list | tuple) and found and all(isinstance(value, Tensor) for value in found):
        lists = [found]
    if tensors or lists:
        yield _State(where, _unwrapped(tensors, where), averaged or "n_averaged" in tensors, lists)
    if len(where) == DEPTH:
        return
    # Lightning's WeightAveraging puts the averages under the usual word, and the others under this one.
    swapped = "current_model_state" in node
    for key, value in node.items():
        if not isinstance(key, str) or not isinstance(value, Mapping) or _words([key]) & _OPTIMISER:
            continue
        own = averaged or _is_averaged([key]) or (swapped and key == "state_dict")
        if (id(value), own) not in seen:
            seen.add((id(value), own))
            yield from _states(value, (*where, key), own, seen)


def _unwrapped(tensors: Mapping[str, Tensor], where: tuple[str, ...]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    before: dict[str, str] = {}
    for name, tensor in tensors.items():
        bare = _WRAPPER.sub("", name)
        if bare in named:
            raise CheckpointError(
                f"the names {before[bare]} and {name} are both {bare} without their wrappers; "
                f"save the state dict of the one that you want alone"
            )
        named[bare], before[bare] = tensor, name
    return named


def _unrecognised(states: Sequence[_State], path: Path) -> dict[str, Tensor]:
    largest = max(states, key=lambda state: len(state.tensors)).tensors
    if any("flat_param" in name for name in largest):
        raise CheckpointError(
            f"the parameters in {path.name} are flattened ({some(largest)}), as FSDP has them on one rank; "
            f"save its full state dict (StateDictType.FULL_STATE_DICT) and load that"
        )
    return largest


def _words(names: Iterable[str]) -> set[str]:
    return {word.lower() for name in names for word in _WORD.findall(name)}


def _is_averaged(names: Iterable[str]) -> bool:
    return bool(_words(names) & _AVERAGED)


# ------------------------------------------------------------------ networks in a state dict


def _networks(state: _State, part: Part, path: Path) -> list[Found]:
    """Every set of names under one prefix that has some of the telling ones."""
    hits: dict[str, int] = {}
    for name in state.tensors:
        for telling in part.telling:
            prefix = name.removesuffix(telling)
            if prefix != name and (prefix == "" or prefix.endswith(".") or _GLUED.search(prefix)):
                hits[prefix] = hits.get(prefix, 0) + 1
    groups: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in hits}
    for name, tensor in state.tensors.items():
        around = [prefix for prefix in hits if name.startswith(prefix)]
        if around:
            prefix = max(around, key=len)
            own = name.removeprefix(prefix)
            if not (own in _COUNTERS and tensor.ndim < 2):
                groups[prefix][own] = tensor
    found = [
        Found(
            (*state.where, prefix),
            tensors,
            {name: prefix + name for name in tensors},
            state.averaged or _is_averaged(prefix.split(".")),
            hits[prefix],
        )
        for prefix, tensors in groups.items()
    ]
    return [*found, *_without_dots(state, found)]


def _without_dots(state: _State, found: Sequence[Found]) -> Iterator[Found]:
    """Averages under the same names but for their dots, which buffers cannot have (LitEma)."""
    under: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.tensors.items():
        first, dot, rest = name.partition(".")
        if dot and _is_averaged([first]):
            under.setdefault(first, {})[rest] = tensor
    under = {first: tensors for first, tensors in under.items() if not any("." in name for name in tensors)}
    for plain in [one for one in found if not one.averaged]:
        known: dict[str, str] = {}
        for own, full in plain.full.items():
            pieces = full.split(".")
            for start in range(len(pieces) - own.count(".")):  # what held the average may be any part outside
                known["".join(pieces[start:])] = own
        for first, tensors in under.items():
            named = {known[name]: tensor for name, tensor in tensors.items() if name in known}
            if 2 * len(named) > len(tensors):
                where = (*state.where, first)
                yield Found(where, named, {name: name for name in named}, True, plain.hits)


def _by_order(state: _State, found: Sequence[Found], part: Part) -> Iterator[Found]:
    """Averages as a list, if there is a network with as many parameters, of the same shapes in order."""
    for values in state.lists:
        for plain in found:
            names = [name for name in plain.tensors if not part.spare.search(name)]
            shapes = [plain.tensors[name].shape for name in names]
            if not plain.averaged and shapes == [value.shape for value in values]:
                tensors = dict(zip(names, values, strict=True))
                yield Found((*state.where, _LIST), tensors, {n: n for n in names}, True, plain.hits)


# ------------------------------------------------------------------ choosing


def _choose(found: Sequence[Found], part: Part, averaged: bool | None, strict: bool, path: Path) -> Found:
    averages = [one for one in found if one.averaged]
    others = [one for one in found if not one.averaged]
    usual = [one for one in others if part.usual and part.usual in one.where]
    if averaged is None and usual:
        chosen = usual
    elif averaged is None or not strict:
        chosen = (others or averages) if averaged is False else (averages or others)
    else:
        chosen = averages if averaged else others
    if not chosen:
        have, want = ("other", "averaged") if averaged else ("averaged", "other")
        raise CheckpointError(
            f"{path.name} holds no {want} weights of this network, only {have} ones (at "
            f"{some([one.place for one in found])}); averaged={not averaged} takes those"
        )
    if len(chosen) > 1:
        foremost = [one for one in chosen if not _words(one.where) & _ASIDE]
        chosen = foremost or chosen
        most = max(one.hits for one in chosen)
        chosen = [one for one in chosen if one.hits == most]
    if len(chosen) > 1 and not _are_one(chosen):
        raise CheckpointError(
            f"{path.name} holds several such networks (at {some([one.place for one in chosen])}); save the "
            f"state dict of the one that you want alone"
        )
    return chosen[0]


def _are_one(found: Sequence[Found]) -> bool:
    """Whether they are the same numbers in memory, as of a module that has two names."""
    places = [{name: _place(tensor) for name, tensor in one.tensors.items()} for one in found]
    return all(place == places[0] for place in places)


def _place(tensor: Tensor) -> tuple[int, int]:
    if tensor.layout != torch.strided:
        return id(tensor), 0
    return tensor.untyped_storage()._cdata, int(tensor.storage_offset())


def _completed(
    chosen: Found, found: Sequence[Found], part: Part, path: Path, *, told: bool
) -> dict[str, Tensor]:
    """Averages, with what they leave out from the weights that they are averages of."""
    beside = [one for one in found if not one.averaged and not _words(one.where) & _ASIDE]
    if len(beside) != 1:
        return chosen.tensors
    absent = {n: t for n, t in beside[0].tensors.items() if n not in chosen.tensors}
    left_out = [name for name in absent if not part.spare.search(name)]
    if left_out and told:
        warn(
            f"the averaged weights of {path.name} (at {chosen.place}) lack {len(left_out)} tensors, which "
            f"are taken from the others: {some(left_out)}"
        )
    return {**absent, **chosen.tensors}
