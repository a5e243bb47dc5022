"""Digests that name weights by their content, wherever they lie."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


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
