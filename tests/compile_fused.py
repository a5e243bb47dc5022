"""Compiles every kernel of nextscale.fused for a GPU that need not be there; run by test_fused.py.

    python tests/compile_fused.py 90

The functions are called with tensors on the CPU, and where they would start a kernel it is compiled for what
it would be started with.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nextscale import fused
from nextscale.fused import decoder, drawing, guidance, transformer
from nextscale.nn.attention import MAX_LOG_SCALE

TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.int64: "i64",
}


CALLED = {"_derive", "_normed"}  # by kernels, as a part of them


class Compiling:
    """Stands for a kernel: ``kernel[grid](...)`` compiles it."""

    def __init__(self, kernel: Any, target: GPUTarget, seen: set[str]) -> None:
        self.kernel, self.target, self.seen = kernel, target, seen

    def __getitem__(self, grid: Any) -> Compiling:
        return self

    def __call__(self, *args: Any, num_warps: int = 4, **named: Any) -> None:
        names = self.kernel.arg_names
        given = {**dict(zip(names, args, strict=False)), **named}
        assert set(given) == set(names), self.kernel.__name__
        constant = {p.name for p in self.kernel.params if p.is_constexpr}
        signature = {n: "constexpr" if n in constant else _type(v) for n, v in given.items()}
        # What memory begins at multiples of 16 bytes for, as it does on a GPU.
        aligned = {(names.index(n),): [["tt.divisibility", 16]] for n in names if signature[n][0] == "*"}
        source = ASTSource(
            self.kernel,
            {n: signature[n] for n in names},
            constexprs={(names.index(n),): given[n] for n in constant},
            attrs=aligned,
        )
        assert triton.compile(source, target=self.target, options={"num_warps": num_warps}).asm["cubin"]
        self.seen.add(self.kernel.__name__)


def _type(value: Any) -> str:
    if isinstance(value, Tensor):
        return "*" + TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "i32" if abs(value) < 2**31 else "i64"


def main() -> None:
    target, seen = GPUTarget("cuda", int(sys.argv[1]), 32), set[str]()
    kernels: set[str] = set()
    for module in (decoder, drawing, guidance, transformer):
        for name, value in list(vars(module).items()):
            if isinstance(value, triton.runtime.JITFunction) and name not in CALLED:
                kernels.add(name)
                setattr(module, name, Compiling(value, target, seen))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x, parts = torch.zeros(2, 3, 1024, dtype=dtype), torch.zeros(2, 1, 6, 1024, dtype=dtype).unbind(2)
        fused.modulated_norm(x, parts[0], parts[1], 1e-6, dtype)
        fused.gated_norm(x, x, parts[0], parts[1], parts[2], 1e-6)
        fused.gated(x, x, parts[0])
        bias, room = torch.zeros(1024, dtype=dtype), torch.zeros(2, 2, 16, 8, 64, dtype=dtype)
        for log_scale in (None, bias[:16]):
            qkv, slices = x.repeat(1, 1, 3), room[:, :, :, :3].unbind()
            fused.split_heads(qkv, bias, bias, log_scale, MAX_LOG_SCALE, *slices)
        maps = torch.zeros(1, 160, 16, 16, dtype=dtype).contiguous(memory_format=torch.channels_last)
        fused.group_norm_silu(maps, 32, bias[:160], bias[:160], 1e-6, bias[:160])
        fused.add_biased(maps, maps, bias[:160])
    values, order = torch.zeros(3, 4096).sort(dim=-1)
    seeds = torch.zeros(1).long()
    for cells, top_p, min_p in ((None, 0.0, 0.0), (torch.zeros(1, 3).long(), 0.9, 0.1)):
        where = {"stream": 3, "step": 2, "cells": cells}
        fused.race_sorted(values, order, seeds, **where, top_k=900, top_p=top_p, min_p=min_p)
    for fine, coarse in ((4, 1), (256, 169)):
        logits, previous = torch.zeros(1, fine, 4096), fused.in_parts(torch.zeros(1, coarse, 4096))
        fused.accumulate(logits, previous, fused.operator_in_parts(torch.zeros(fine, coarse)), 0.6)
    assert seen == kernels, kernels - seen
    print(f"{len(seen)} kernels")


if __name__ == "__main__":
    main()
