"""Digests that name weights by their content, wherever they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping

import torch
from torch import Tensor, nn

WORD = 8  # bytes; weights are summed as whole numbers of 64 bits
ROW = 1024  # of them
SMALL = 1 << 18  # bytes


def text_digest(text: str) -> str:
    """SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of a module's tensors: names, types, shapes and bytes, in the order of the names.

    It does not depend on the file, its format or the device.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def pipeline_digest(pipe: object) -> str:
    """SHA-256 over the digests of all the networks a pipeline holds."""
    parts = sorted((name, part) for name, part in vars(pipe).items() if isinstance(part, nn.Module))
    text = " ".join(f"{name} {weights_digest(part)}" for name, part in parts)
    return text_digest(text)


def quick_digest(modules: Mapping[str, nn.Module]) -> str:
    """SHA-256 over the names, types, shapes and sums of all tensors, in hexadecimal.

    The sums are of the bytes as whole numbers, by rows and by columns, modulo 2^64: exact, so equal on every
    device, and as quick as memory is read, where :func:`weights_digest` takes seconds for large models. Any
    change of one number changes them. Against somebody who makes weights of equal sums on purpose only
    :func:`weights_digest` helps.
    """
    digest, taken = hashlib.sha256(), []
    for part, module in sorted(modules.items()):
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{part}.{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            taken += _named_by(tensor.detach().contiguous().reshape(-1).view(torch.uint8))
    if len({part.device for part in taken}) == 1 and taken[0].is_cuda:
        taken = [torch.cat(taken)]  # fetched together: each fetch would wait
    for tensor in taken:
        digest.update(tensor.cpu().numpy().data)
    return digest.hexdigest()


def _named_by(data: Tensor) -> list[Tensor]:
    """A tensor's bytes, uint8 ``(n)``, where they are few; else their sums, as bytes."""
    if len(data) < SMALL:
        return [data]
    square = len(data) // (WORD * ROW) * (WORD * ROW)
    table = data[:square] if data.data_ptr() % WORD == 0 else data[:square].clone()
    words = table.view(torch.int64).view(-1, ROW)
    return [words.sum(0).view(torch.uint8), words.sum(1).view(torch.uint8), data[square:]]


def state_of(modules: Mapping[str, nn.Module]) -> Hashable:
    """Fingerprint weights, without reading them: it changes when they are replaced, moved or written to."""
    tensors = [t for module in modules.values() for t in (*module.parameters(), *module.buffers())]
    return tuple((id(t), t.data_ptr(), t.dtype, 0 if t.is_inference() else t._version) for t in tensors)
