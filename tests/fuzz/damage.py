"""Ways to spoil a file, each a function of a random generator and the file's path."""

from __future__ import annotations

import copy
import io
import json
import math
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Damage = Callable[[random.Random, Path], None]

ODD_VALUES: list[Any] = [
    *[None, True, False, -1, 0, 1, 3, 2**31, 2**63, 10**30, -(2**70), 0.5, -0.0, 1e308, math.nan, math.inf],
    *[
        "",
        "1",
        "ﬀ\u202e",
        "../../etc/passwd",
        "x" * 100_000,
        [],
        {},
        [[]],
        [0],
        [-1],
        [10**9],
        [1, 2, 3, 10**6],
    ],
    *[["a"], {"a": 1}, [1] * 10_000, [[1, 2], [3]]],
]
ODD_PATHS = [
    *["../outside.safetensors", "../../outside", "/etc/passwd", "a/../../outside", "..", ".", "", "C:\\x"],
    *["..\\x", "a\0b", "~/x", "file:///etc/passwd", "con", "\u2025/x", "sub/../../x", "\n", "x" * 5000],
    *[7, None, ["x"], {}],
]


class Code:
    """Runs a command when it is unpickled by a loader that lets it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


class Opened:
    """Writes a file when it is unpickled by a loader that lets it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.marker), "w")


# ---------------------------------------------------------------------------- any file


def truncate(chance: random.Random, path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(len(content))])


def flip_bits(chance: random.Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    reach = chance.choice([64, 2000, len(content)])  # headers are where a bit matters most
    for _ in range(chance.choice([1, 4, 50])):
        content[chance.randrange(min(reach, len(content)))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def overwrite(chance: random.Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    start = chance.randrange(len(content))
    length = chance.choice([4, 8, 100])
    content[start : start + length] = chance.choice([b"\0", b"\xff", b"{", b"["]) * length
    path.write_bytes(content)


def nonsense(chance: random.Random, path: Path) -> None:
    path.write_bytes(chance.choice([b"", b"\0", b"{}", b"PK\x03\x04", b"\x80\x02}.", chance.randbytes(300)]))


def not_a_file(chance: random.Random, path: Path) -> None:
    path.unlink()
    if chance.random() < 0.5:
        path.mkdir()
    else:
        path.symlink_to(path.name)  # to itself


# ---------------------------------------------------------------------------- weights


def pickled_code(chance: random.Random, path: Path) -> None:
    """A checkpoint that would run code: bare, nested in a state dict, or in torch's archive."""
    marker = path.parent / "EXECUTED"
    trap: Any = chance.choice([Code, Opened])(marker)
    for _ in range(chance.randrange(3)):
        trap = chance.choice([{"model": trap}, [trap], {"weight": torch.zeros(2), "x": trap}])
    kind = chance.randrange(3)
    if kind == 0:
        path.write_bytes(pickle.dumps(trap, protocol=chance.choice([0, 2, 4])))
    elif kind == 1:
        torch.save(trap, path)
    else:
        torch.save(trap, path, _use_new_zipfile_serialization=False)


def deep_pickle(chance: random.Random, path: Path) -> None:
    depth = chance.choice([1000, 100_000, 300_000])
    body = chance.choice([b"]" * depth + b"a" * (depth - 1), b"(" * depth, b"}" * depth])
    path.write_bytes(b"\x80\x02" + body + b".")


def huge_pickle(chance: random.Random, path: Path) -> None:
    """Lengths of petabytes for a string of three letters."""
    size = chance.choice([2**31 - 1, 2**40, 2**62])
    code = chance.choice([b"\x8d", b"\x8e", b"\x96"])
    path.write_bytes(b"\x80\x05" + code + struct.pack("<Q", size) + b"abc.")


def huge_storage(chance: random.Random, path: Path) -> None:
    """A torch archive whose tensors say they are larger than their bytes."""
    state = torch.load(path, weights_only=True) if path.suffix == ".pth" else {"w": torch.zeros(3)}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    source = zipfile.ZipFile(buffer)
    with zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("/data.pkl"):
                content = content.replace(b"K\x10", b"J\xff\xff\xff\x7f", chance.randint(1, 3))
            elif "/data/" in name and chance.random() < 0.3:
                content = content[: len(content) // 2]
            target.writestr(name, content)


def safetensors_header(chance: random.Random, path: Path) -> None:
    """A header that says other things about the same bytes, or of another length."""
    content = path.read_bytes()
    if len(content) < 9 or content[8:9] != b"{":
        return truncate(chance, path)
    size = int.from_bytes(content[:8], "little")
    header, rest = json.loads(content[8 : 8 + size]), content[8 + size :]
    names = [n for n in header if n != "__metadata__"]
    name, kind = chance.choice(names), chance.randrange(9)
    if kind == 0:
        header[name]["shape"] = chance.choice(
            [[2**40], [2**62, 4], [-1], [0], [1] * 1000, "x", None, [2**64]]
        )
    elif kind == 1:
        header[name]["dtype"] = chance.choice(["F64", "I8", "F8_E4M3", "U16", "BOOL", "F128", 3, None, "I64"])
    elif kind == 2:
        header[name]["data_offsets"] = chance.choice(
            [[0, 2**60], [5, 1], [-4, 4], [], "x", [0, 0], [2**63, 2**64]]
        )
    elif kind == 3:
        header[chance.choice(["../../x", "", "a\0b", "x" * 100_000])] = header.pop(name)
    elif kind == 4:
        header["__metadata__"] = chance.choice([{"format": 3}, [], "x", {"a": {"b": 1}}])
    elif kind == 5:
        del header[name]
    elif kind == 6:
        other = chance.choice(names)
        header[name], header[other] = header[other], header[name]
    text = json.dumps(header).encode()
    if kind == 7:
        text = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    length = chance.choice([2**62, 2**31, len(text) + 10**9, 0, 1]) if kind == 8 else len(text)
    path.write_bytes(length.to_bytes(8, "little") + text + rest)
    return None


def other_types(chance: random.Random, path: Path) -> None:
    """Whole numbers, half precision, scalars, transposes in place of what belongs there."""
    from safetensors.torch import load_file, save_file

    is_torch = path.suffix == ".pth"
    state = torch.load(path, weights_only=True) if is_torch else load_file(path)
    for name in chance.sample(sorted(state), min(len(state), chance.choice([1, 3, 1000]))):
        change = chance.choice(["long", "bool", "scalar", "flat", "empty", "longer", "gone", "complex"])
        tensor = state[name]
        state[name] = {
            "long": lambda t: t.long(),
            "bool": lambda t: t.bool(),
            "scalar": lambda t: torch.zeros(()),
            "flat": lambda t: t.reshape(-1, 1),
            "empty": lambda t: t[:0] if t.ndim else torch.zeros(0),
            "longer": lambda t: torch.cat([t, t]) if t.ndim else torch.zeros(2),
            "gone": lambda t: torch.zeros(1, 1, 1, 1, 1),
            "complex": lambda t: t.to(torch.complex64),
        }[change](tensor).contiguous()
    torch.save(state, path) if is_torch else save_file(state, path)


# ---------------------------------------------------------------------------- JSON


def odd_values(chance: random.Random, path: Path) -> None:
    """Some leaves are what nobody would write."""
    content = json.loads(path.read_text())
    for _ in range(chance.choice([1, 1, 3])):
        _spoil(chance, content)
    path.write_text(json.dumps(content))


def _spoil(chance: random.Random, content: Any) -> None:
    places: list[tuple[Any, Any]] = []

    def collect(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                collect(node[key])

    if isinstance(content, (dict, list)):
        collect(content)
    if not places:
        return
    node, key = chance.choice(places)
    if isinstance(node, dict) and chance.random() < 0.2:
        value = node.pop(key)
        if chance.random() < 0.5:
            node[chance.choice(["", "self", "__class__", "x" * 1000, key + key])] = value
    else:
        node[key] = copy.deepcopy(chance.choice(ODD_VALUES))


def deep_json(chance: random.Random, path: Path) -> None:
    depth = chance.choice([990, 5000, 200_000])
    opening, closing = chance.choice([("[", "]"), ('{"a":', "}")])
    body = opening * depth + "1" + closing * depth
    path.write_text(chance.choice([body, '{"family": ' + body + "}", opening * depth]))


def broken_json(chance: random.Random, path: Path) -> None:
    text = path.read_text()
    path.write_bytes(
        chance.choice(
            [
                text[: chance.randrange(len(text))].encode(),
                text.replace(":", "=", 1).encode(),
                text.encode("utf-16"),
                b"\xff\xfe" + text.encode(),
                text.replace('"', "'").encode(),
                b'{"family": ' + b"9" * 100_000 + b"}",
                b"[" + text.encode() + b"]",
                b"null",
            ]
        )
    )


def odd_paths(chance: random.Random, path: Path) -> None:
    """An index whose shards lie where they should not."""
    content = json.loads(path.read_text())
    names = list(content["weight_map"])
    for name in chance.sample(names, chance.choice([1, len(names)])):
        content["weight_map"][name] = chance.choice(ODD_PATHS)
    if chance.random() < 0.2:
        content["weight_map"] = chance.choice([[], None, "x", {}, {"a": "a"}])
    path.write_text(json.dumps(content))


ANY: list[Damage] = [truncate, flip_bits, overwrite, nonsense, not_a_file]
WEIGHTS: list[Damage] = [*ANY, pickled_code, deep_pickle, huge_pickle, safetensors_header, other_types]
TORCH: list[Damage] = [*ANY, pickled_code, deep_pickle, huge_pickle, huge_storage, other_types]
JSON: list[Damage] = [*ANY[:4], odd_values, odd_values, odd_values, deep_json, broken_json]
