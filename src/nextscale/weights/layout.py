"""The library's own layout: a folder with ``config.json`` and one sub-folder per part.

A model folder holds ``config.json`` (family, class names, defaults) and, for every part, a folder with
``config.json`` (sizes) and ``model.safetensors``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from nextscale.errors import CheckpointError, ModelNotFoundError
from nextscale.nn.placement import Placement
from nextscale.weights.files import Module, build, check_shapes, read_weights
from nextscale.weights.hub import is_repo_id

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
EMBEDDED = ("cifar10",)  # the models among the embedded folders; a classifier lies beside them


def locate(name: str | Path) -> Path:
    """The folder of a model: embedded in the package, local, or on the hub (downloaded and cached).

    Raises ModelNotFoundError, naming what was tried.
    """
    folder = Path(name)
    embedded = _embedded() / folder.name
    if (folder / CONFIG).is_file():
        return folder
    if str(name) == folder.name and (embedded / CONFIG).is_file():
        return embedded
    if folder.is_dir():
        raise ModelNotFoundError(
            f"{str(folder)!r} has no {CONFIG}; for official files use from_official, "
            f"for others nextscale convert"
        )
    if not is_repo_id(str(name)):
        raise ModelNotFoundError(
            f"no model {str(name)!r}: neither embedded ({', '.join(EMBEDDED)}), nor a folder, "
            f"nor a hub id (owner/name)"
        )
    return _snapshot(str(name))


def is_embedded(folder: Path) -> bool:
    """Whether a folder is one of those in the package, which are not the user's to change."""
    return folder.resolve().is_relative_to(_embedded().resolve())


def _embedded() -> Path:
    return Path(str(resources.files("nextscale.weights"))) / "embedded"


def _snapshot(repo: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo, allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelNotFoundError(f"cannot get {repo!r} from the hub: {reason}") from None
    if not (folder / CONFIG).is_file():
        raise ModelNotFoundError(
            f"{repo!r} is not in this library's layout; for official files use from_official"
        )
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's ``config.json``."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelNotFoundError(f"{str(path)!r} is missing") from None
    except ValueError as error:  # no JSON, or no text at all
        raise CheckpointError(f"{str(path)!r} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{str(path)!r} holds no JSON object")
    return config


def load_module(make: Callable[[Mapping[str, Any]], Module], folder: Path, placement: Placement) -> Module:
    """A part from its folder; ``make`` builds it from its configuration.

    Shapes are compared before anything is allocated; see :func:`nextscale.weights.files.build`.
    """
    config = read_config(folder)
    hint = f"Do {CONFIG} and {WEIGHTS} belong together?"
    try:
        with torch.device("meta"):
            empty = make(config)
    # What constructors raise for values of a wrong type or out of range, as an edited file may hold.
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{str(folder / CONFIG)!r} does not describe this kind of model: {error}"
        ) from None
    check_shapes(empty, read_weights(folder / WEIGHTS, meta=True), source=str(folder / WEIGHTS), hint=hint)
    return build(
        lambda: make(config),
        read_weights(folder / WEIGHTS),
        source=str(folder / WEIGHTS),
        dtype=placement.dtype,
        device=placement.device,
        hint=hint,
    )


def write_json(value: Mapping[str, Any], path: Path) -> None:
    """Write JSON whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def write_default_ssg(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make these settings what SSG without arguments is with the model of a folder; all else stays as it is.

    settings: of a ``ScaledSpatialGuidance``, as JSON holds them.
    Raises ModelNotFoundError or CheckpointError if the folder has no readable ``config.json``, OSError if it
    cannot be written.
    """
    config = read_config(folder)
    stored = {name: value for name, value in settings.items() if name != "method"}
    write_json({**config, "defaults": {**(config.get("defaults") or {}), "ssg": stored}}, folder / CONFIG)


def save_module(
    module: nn.Module, config: Mapping[str, Any], folder: Path, *, dtype: torch.dtype | None = None
) -> None:
    """Write a part's parameters (as ``dtype`` if given) and its configuration into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        k: v.detach().to("cpu", dtype if dtype and v.is_floating_point() else v.dtype).contiguous()
        for k, v in module.state_dict().items()
    }
    partial = folder / (WEIGHTS + ".partial")
    save_file(tensors, partial, metadata={"format": "pt"})
    os.chmod(partial, 0o644)  # it is written for its owner alone
    os.replace(partial, folder / WEIGHTS)
    write_json(config, folder / CONFIG)
