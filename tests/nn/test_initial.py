"""Parameters that begin as random numbers, and those that do not."""

from __future__ import annotations

import subprocess
import sys

import torch

from nextscale.nn.initial import Embedding, normal

BUILD = """
with torch.device("meta"):
    {name}Transformer({name}TransformerConfig({sizes}))
assert "torch._dynamo" not in sys.modules, "{name}"
"""
BEFORE = """
import sys
import torch
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
with torch.device("meta"):
    VARTokenizer(VARTokenizerConfig())
"""
FAMILIES = {
    "var": ("VAR", "depth=1, shared_aln=True"),
    "infinity": ("Infinity", "bits=8, depth=1, embed_dim=128, num_heads=2, ffn_dim=256"),
    "hart": ("HART", "depth=1, use_timestep_embed=False, disable_aln=True"),
}


def test_they_begin_as_random_numbers():
    torch.manual_seed(0)
    table, values = Embedding(300, 40), normal(300, 40, std=0.1)
    assert abs(float(table.weight.detach().std()) - 1) < 0.02
    assert abs(float(values.detach().std()) - 0.1) < 0.002
    assert table.weight.requires_grad and values.requires_grad


def test_models_that_will_be_loaded_do_not_load_the_compiler():
    code = BEFORE
    for family, (name, sizes) in FAMILIES.items():
        transformer = f"nextscale.families.{family}.transformer"
        code += f"from {transformer} import {name}Transformer, {name}TransformerConfig\n"
        code += BUILD.format(name=name, sizes=sizes)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
