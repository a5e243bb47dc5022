"""Reading weight files safely: names and shapes first, tensors only when those are right.

``.safetensors`` and PyTorch files are read; PyTorch files with ``weights_only=True`` and never otherwise, so
a file cannot run code.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from nextscale.errors import CheckpointError
from nextscale.weights.harmless import numbers_passed_over

SHOWN, LONGEST = 4, 100  # names in a message, and characters of each
MAX_JSON = 64 << 20  # bytes; the index of the largest models has some megabytes

Module = TypeVar("Module", bound=nn.Module)


def read_weights(path: str | Path, *, unwrap: Sequence[str] = (), meta: bool = False) -> dict[str, Tensor]:
    """The tensors of a weight file by name.

    unwrap: keys to descend through when the file nests its state dict, as trainers' checkpoints do.
    meta: shapes and dtypes only, as tensors on the meta device; nothing is allocated.
    Raises CheckpointError if the file is missing, is no weight file, holds no tensors, or needs code to load.
    """
    path = Path(path)
    content = read_file(path, meta=meta)
    for key in unwrap:
        if isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path.name} holds no tensors at its top level; its keys are {some(content)}")
    return tensors


def read_file(path: Path, *, meta: bool = False) -> dict[Any, Any]:
    """Read what a weight file holds, nested as it is: tensors, mappings with tensors, and whatever else.

    meta: see :func:`read_weights`, which also names the errors.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"no such weight file: {str(path)!r}")
        is_safetensors = _is_safetensors(path)
    except OSError as error:  # not ours to read, a name that no file can have
        raise CheckpointError(f"{path.name!r} cannot be read: {error.strerror}") from None
    return _read_safetensors(path, meta) if is_safetensors else _read_torch(path, meta)


def read_json(path: Path) -> Any:
    """What a JSON file that belongs to weights holds: a configuration, or an index.

    Raises FileNotFoundError if there is none, CheckpointError if it is no JSON, is nested so deeply that no
    program wrote it for people, or is larger than any of its kind.
    """
    try:
        if path.stat().st_size > MAX_JSON:
            raise CheckpointError(f"{str(path)!r} is larger than {MAX_JSON >> 20} MiB; no such file is")
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, CheckpointError):
        raise
    except RecursionError:
        raise CheckpointError(f"{str(path)!r} is not usable: its JSON is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{str(path)!r} is not JSON: {error}") from None
    except ValueError:  # bytes that are no text, or a number of thousands of digits
        raise CheckpointError(f"{str(path)!r} is not JSON, or holds a number that is none") from None
    except OSError as error:  # a folder, a loop of links
        raise CheckpointError(f"{str(path)!r} cannot be read: {error.strerror}") from None


def _is_safetensors(path: Path) -> bool:
    """By content: 8 bytes of header length, then JSON. Suffixes lie."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path, meta: bool) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            if not meta:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {
                n: torch.empty(s.get_shape(), dtype=_DTYPES[s.get_dtype()], device="meta")
                for n, s in slices.items()
            }
    except (SafetensorError, KeyError) as error:
        raise CheckpointError(
            f"{path.name} is not a readable safetensors file, or it is damaged or incomplete: {error}"
        ) from None


_DTYPES = {
    "C64": torch.complex64,
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# The rarer ones, as far as this PyTorch has them.
_NEWER = {
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
_DTYPES |= {name: getattr(torch, kind) for name, kind in _NEWER.items() if hasattr(torch, kind)}


def _read_torch(path: Path, meta: bool) -> dict[str, Any]:
    # Its warnings are about how a file was pickled, and would stand before the one line of an error.
    with warnings.catch_warnings(), numbers_passed_over():
        warnings.simplefilter("ignore", UserWarning)
        return _load_torch(path, meta)


def _load_torch(path: Path, meta: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"map_location": "meta" if meta else "cpu", "weights_only": True}
    try:
        try:
            content = torch.load(path, mmap=True, **options)
        except (RuntimeError, SafetensorError):
            # Files from before PyTorch 1.6 cannot be mapped, and newer releases go by the name of a path.
            with path.open("rb") as file:
                content = torch.load(file, **options)
    except Exception as error:  # a damaged file makes torch.load raise nearly anything
        raise _refusal(path, error) from None
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path.name} holds a {type(content).__name__}, expected a dictionary of tensors"
        )
    return content


def _refusal(path: Path, error: Exception) -> CheckpointError:
    """Why a file was not loaded: it needs code, or it is damaged or something else altogether."""
    text = str(error)
    # What a weights-only load refused to call; its own advice (to load it all the same) is not passed on.
    called = re.search(r"GLOBAL ([\w.]+)|unrecognized function (.+)", text)
    if isinstance(error, pickle.UnpicklingError) and called:
        return CheckpointError(
            f"{path.name} holds more than tensors: loading it would run code from the file "
            f"({called[1] or called[2]}), so it is refused. If you trust its origin, save its state dict "
            f"alone as safetensors and load that"
        )
    reason = type(error).__name__
    if text and not isinstance(error, pickle.UnpicklingError):
        reason += ": " + text.splitlines()[0]
    return CheckpointError(
        f"{path.name} is not a PyTorch or safetensors weight file, or it is damaged or incomplete "
        f"({reason}); download it again or name another"
    )


def check_shapes(expected: nn.Module, found: Mapping[str, Tensor], *, source: str, hint: str = "") -> None:
    """Compare names and shapes of a module (on any device, also meta) with those of a file.

    Raises CheckpointError naming the first missing, unexpected and misshapen tensors and the likely cause,
    also where a file has whole numbers for a parameter.
    """
    wanted = expected.state_dict()
    missing = [k for k in wanted if k not in found]
    unexpected = [k for k in found if k not in wanted]
    shapes = [
        f"{k} {tuple(found[k].shape)} instead of {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in found and found[k].shape != v.shape
    ]
    kinds = [
        f"{k} {str(found[k].dtype).removeprefix('torch.')}"
        for k, v in wanted.items()
        if k in found and found[k].is_floating_point() != v.is_floating_point()
    ]
    lists = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": shapes,
        "of another type": kinds,
    }
    problems = [f"{len(names)} {what}: {some(names)}" for what, names in lists.items() if names]
    if problems:
        raise CheckpointError(f"{source} does not fit: {'; '.join(problems)}" + (f". {hint}" if hint else ""))


def build(
    make: Callable[[], Module],
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    dtype: torch.dtype,
    device: torch.device,
    hint: str = "",
) -> Module:
    """Make a module without allocating it, check the tensors against it, and fill it with them.

    The module is in evaluation mode and its parameters do not ask for gradients. Kernels of convolutions have
    their channels last in memory, as the maps have that they are applied to.
    """
    with torch.device("meta"):
        module = make()
    check_shapes(module, tensors, source=source, hint=hint)
    cast = {k: v.to(device, dtype if v.is_floating_point() else v.dtype) for k, v in tensors.items()}
    module.load_state_dict(cast, assign=True)
    nn.utils.convert_conv2d_weight_memory_format(module, torch.channels_last)
    return module.eval().requires_grad_(False)


def some(names: Iterable[object]) -> str:
    """The first few names of a list for a message, none of them longer than a line can take."""
    texts = [text if len(text := str(name)) <= LONGEST else f"{text[:LONGEST]}…" for name in names]
    more = f", … ({len(texts) - SHOWN} more)" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more
