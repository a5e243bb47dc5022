"""The checkpoint of a training run: written whole or not at all, and read by the run it belongs to alone."""

from __future__ import annotations

import contextlib
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nextscale.errors import CheckpointError
from nextscale.training.wording import named, remedy
from nextscale.weights.files import check_shapes

CHECKPOINT = "checkpoint.pt"


class Descent(Protocol):
    """What a checkpoint asks of an optimiser."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None: ...


# What a run is made of, by the argument that says it: its kind, pictures, sizes, first weights.
Origin = Mapping[str, str]

FIXED = ("batch_size", "seed", "optimizer")  # settings of which another value makes another run
_PARTS: Mapping[str, type | tuple[type, ...]] = {
    "step": int,
    "seconds": (int, float),
    "settings": dict,
    "model": dict,
    "averaged": dict,
    "optimizer": dict,
    "task": dict,
}


def write_whole(state: Mapping[str, Any], path: Path) -> None:
    """Write a file of tensors that a kill, a full disk or a power cut leaves as it was, or makes new.

    Raises OSError saying why it could not be written; nothing of it stays on the disk then.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")  # several processes may be at it
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
            # torch's writer hides why a file could not be written
            cause = error.__cause__ or error.__context__
            reason = cause.strerror if isinstance(cause, OSError) else str(error).splitlines()[0]
            raise OSError(f"cannot write {str(path)!r}: {reason}") from None
        raise


def read_whole(path: Path) -> Any:
    """Read what :func:`write_whole` wrote, on the CPU.

    Raises CheckpointError with the reason where it is damaged, in whatever way, or something else.
    """
    try:
        if not path.stat().st_size:
            raise CheckpointError("it is empty")
        with zipfile.ZipFile(path) as archive:  # torch does not compare checksums
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"its part {damaged} is not as it was written")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # a damaged file makes torch.load raise nearly anything
        raise CheckpointError(_why(path, error)) from None


def _why(path: Path, error: Exception) -> str:
    if isinstance(error, IsADirectoryError):
        return "it is a folder"
    if isinstance(error, OSError):
        return f"it cannot be read: {error.strerror or error}"
    if isinstance(error, zipfile.BadZipFile):
        with path.open("rb") as file:
            begun = file.read(2) == b"PK"
        return "it ends too early" if begun else "it is another kind of file"
    if isinstance(error, pickle.UnpicklingError):
        return "it holds more than tensors and numbers"
    return f"it cannot be read: {type(error).__name__}"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A run's checkpoint, with all its parts.

    Raises CheckpointError, in one line with the remedy, for a file that is damaged or something else.
    """
    try:
        state = read_whole(path)
        if not isinstance(state, dict):
            raise CheckpointError(f"it holds a {type(state).__name__}")
        for name, kind in _PARTS.items():
            if not isinstance(state.get(name), kind):
                raise CheckpointError(f"it has no {name}, which every training writes")
        if state["step"] < 0 or not isinstance(state.setdefault("origin", {}), dict):
            raise CheckpointError("its numbers are none of a training")
    except CheckpointError as error:
        if path.is_dir():
            raise CheckpointError(
                f"{str(path)!r} is a folder, and a checkpoint is a file; move it away, or use another "
                f"{named('output')} folder"
            ) from None
        raise CheckpointError(
            f"{str(path)!r} is damaged ({error}); delete it, or start afresh with {named('resume=False')}"
        ) from None
    return state


def check_same(path: Path, state: Mapping[str, Any], origin: Origin, settings: Mapping[str, Any]) -> None:
    """Raises CheckpointError unless a checkpoint is of a run with this origin and these settings.

    Checkpoints of earlier releases say nothing of their origin, and runs begun with :func:`train` need not.
    """
    then, now = state["origin"], origin
    pairs = [(name, then.get(name), now[name]) for name in now if name in then]
    before = state["settings"]
    pairs += [(name, before.get(name, settings[name]), settings[name]) for name in FIXED]
    for name, old, new in pairs:
        if old != new:
            raise CheckpointError(
                f"{str(path)!r} was made with {named(name)} {old}, now it is {new}, so the run could not be "
                f"continued exactly. Give the same, {remedy()}"
            )


def check_rival(path: Path, state: Mapping[str, Any], wanted: bool) -> None:
    """Raises CheckpointError unless a checkpoint has a discriminator just when the run has one."""
    if ("rival" in state) != wanted:
        raise CheckpointError(
            f"{str(path)!r} was made {'without' if wanted else 'with'} an adversarial term, unlike this run, "
            f"so it could not be continued exactly. Give the same, {remedy()}"
        )


def check_resumable(output: Path, origin: Origin, settings: Mapping[str, Any]) -> None:
    """Raises CheckpointError where a folder's checkpoint, if it has one, is not of this run.

    To be asked before work that takes long, such as encoding pictures.
    """
    path = output / CHECKPOINT
    if path.exists():
        check_same(path, read_checkpoint(path), origin, settings)


def check_place(output: Path) -> None:
    """Raises CheckpointError where a folder stands in the place of the checkpoint to be written."""
    if (output / CHECKPOINT).is_dir():
        read_checkpoint(output / CHECKPOINT)


def restore(
    path: Path,
    state: Mapping[str, Any],
    models: Mapping[str, nn.Module],
    optimizers: Mapping[str, Descent],
    upkeep: Mapping[str, Tensor],
) -> None:
    """Fill models and optimisers, by their names in the checkpoint, and what upkeep remembers.

    Raises CheckpointError if it is of another model, or of a run that had diverged.
    """
    try:
        for name, model in models.items():
            check_shapes(model, state[name], source="it")
            model.load_state_dict(state[name])
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(state[name])
        if state["task"].keys() != upkeep.keys():
            raise KeyError(f"it remembers {', '.join(state['task']) or 'nothing'} beside the weights")
        for name, value in state["task"].items():
            upkeep[name].copy_(value)
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        reason = str(error.args[0] if error.args else error).splitlines()[0]
        raise CheckpointError(
            f"{str(path)!r} belongs to another model: {reason}. To go on, {remedy()}"
        ) from None
    if not all(all_finite(model) for model in models.values()):
        raise CheckpointError(
            f"{str(path)!r} is of a run that had diverged: its weights are not finite. Start afresh with "
            f"{named('resume=False')}, and a lower {named('lr')}"
        )


@torch.no_grad()
def all_finite(model: nn.Module) -> bool:
    """Whether no number of a model's parameters and buffers is infinite or none."""
    tensors = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point() and t.numel()]
    if not tensors:
        return True
    largest = torch._foreach_norm(tensors, ord=float("inf"))
    return bool(torch.stack([n.float() for n in largest]).isfinite().all())
