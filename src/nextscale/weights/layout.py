"""The library's own layout: a folder with ``config.json`` and one sub-folder per part.

A model folder holds ``config.json`` (family, class names, defaults) and, for every part, a folder with
``config.json`` (sizes) and ``model.safetensors``.
"""

from __future__ import annotations

import json
import os
import reprlib
import textwrap
import warnings
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nextscale.errors import CheckpointError, ModelNotFoundError
from nextscale.nn.placement import Placement
from nextscale.weights.files import Module, build, check_shapes, read_json, read_weights
from nextscale.weights.hub import is_repo_id
from nextscale.weights.saving import save_tensors
from nextscale.whole import plain

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
        config = read_json(path)
    except FileNotFoundError:
        raise ModelNotFoundError(f"{str(path)!r} is missing") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{str(path)!r} holds no JSON object")
    for name, (fits, what) in _KNOWN.items():
        if config.get(name) is not None and not fits(config[name]):
            raise CheckpointError(f"{str(path)!r}: {name} must be {what}, got {reprlib.repr(config[name])}")
    return config


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _are_defaults(value: Any) -> bool:
    """Settings by name; what they may be in detail is checked where they are used."""
    return (
        isinstance(value, dict)
        and (value.get("ssg") is None or isinstance(value["ssg"], dict))
        and type(value.get("top_k", 0)) in (int, list)
    )


# What pipelines take from a model's configuration as it is.
_KNOWN: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "class_names": (_are_texts, "a list of names"),
    "class_prompts": (_are_texts, "a list of prompts"),
    "defaults": (_are_defaults, "settings by name, with whole numbers for top_k"),
}


def load_module(make: Callable[[Mapping[str, Any]], Module], folder: Path, placement: Placement) -> Module:
    """A part from its folder; ``make`` builds it from its configuration.

    Shapes are compared before anything is allocated; see :func:`nextscale.weights.files.build`.
    """
    config = read_config(folder)
    hint = f"Do {CONFIG} and {WEIGHTS} belong together?"
    shapes = read_weights(folder / WEIGHTS, meta=True)
    _check_counts(config, len(shapes), folder / CONFIG)
    try:
        # Sizes of zero make torch warn; what is wrong with them is said below.
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            empty = make(config)
    # What constructors raise for values of a wrong type or out of range, as an edited file may hold.
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError) as error:
        reason = textwrap.shorten(str(error), 300, placeholder=" …")
        raise CheckpointError(
            f"{str(folder / CONFIG)!r} does not describe this kind of model: {reason}"
        ) from None
    check_shapes(empty, shapes, source=str(folder / WEIGHTS), hint=hint)
    return build(
        lambda: make(config),
        read_weights(folder / WEIGHTS),
        source=str(folder / WEIGHTS),
        dtype=placement.dtype,
        device=placement.device,
        hint=hint,
    )


def _check_counts(config: Mapping[str, Any], tensors: int, path: Path) -> None:
    """Raises CheckpointError for more layers or scales than there are tensors.

    Such a model need not be built to see that it does not fit, and a billion layers could not be.
    """
    for name, value in config.items():
        is_count = name.endswith(("depth", "blocks", "layers", "quant_resi")) and isinstance(
            value, (int, float)
        )
        number = value if is_count else len(value) if isinstance(value, (list, str)) else 0
        if number > tensors:
            raise CheckpointError(
                f"{str(path)!r} does not describe this kind of model: {name} is for {number} parts, and "
                f"{WEIGHTS} has {tensors} tensors"
            )


def write_json(value: Mapping[str, Any], path: Path) -> None:
    """Write JSON whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, default=plain) + "\n", encoding="utf-8")
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
    save_tensors(tensors, folder / WEIGHTS, {"format": "pt"})
    write_json(config, folder / CONFIG)
