"""What is timed does what it says: the same arithmetic as the library, and the other code's own."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch

from nextscale import VARPipeline
from nextscale.benchmark.arms import (
    ONCE,
    decoded_psnr,
    generation,
    limits,
    literal_prior,
    official,
    scipy_prior,
    spatial_arms,
)
from nextscale.errors import InvalidArgumentError
from nextscale.guidance.prior import spatial_prior
from nextscale.guidance.ssg import ScaledSpatialGuidance

CPU = torch.device("cpu")

# In place of the official code: its entry points, on modules that it makes itself.
STAND_IN = """
import torch
from nextscale import VARPipeline
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig

class Model(VARTransformer):
    def autoregressive_infer_cfg(self, B, label_B, g_seed, cfg, top_k, top_p):
        settings = dict(guidance_scale=cfg, top_k=top_k, top_p=top_p, sampler="multinomial")
        labels = label_B.tolist()
        return VARPipeline(self, self.vae[0])(labels, seed=g_seed, output_type="pt", **settings).images

def build_vae_var(device, patch_nums, V, Cvae, ch, num_classes, depth, **flags):
    print("noise on the screen")
    shared = dict(vocab_size=V, z_channels=Cvae, patch_nums=patch_nums)
    sizes = dict(ch_mult=(1, 1, 2, 2), num_res_blocks=1, norm_groups=8)
    vae = VARTokenizer(VARTokenizerConfig(**shared, **sizes, ch=ch))
    sizes = dict(depth=depth, num_heads=2, embed_dim=32)
    var = Model(VARTransformerConfig(**shared, **sizes, num_classes=num_classes))
    var.vae = [vae]
    return vae, var
"""


def write_models(folder: Path, text: str) -> Path:
    (folder / "models").mkdir()
    (folder / "models" / "__init__.py").write_text(text)
    return folder


def test_a_generation_is_timed_in_two_phases(pipe: VARPipeline) -> None:
    seconds = generation(pipe, 3, ScaledSpatialGuidance(0.5), guidance_scale=2.0)()
    assert seconds["total"] == pytest.approx(seconds["transformer"] + seconds["decoder"])
    assert min(seconds.values()) > 0
    assert not pipe.tokenizer.decoder._forward_hooks and not pipe.tokenizer.decoder._forward_pre_hooks


@pytest.mark.parametrize(("before", "grid"), [((1, 1), (2, 2)), ((2, 3), (5, 4)), ((5, 5), (6, 6))])
def test_transforms_at_every_call_are_the_same_guidance(before, grid) -> None:
    coarse = torch.randn(2, before[0] * before[1], 7, dtype=torch.float64)
    expected = spatial_prior(coarse, coarse=before, fine=grid, kind="dse", norm="ortho")
    for prior in (literal_prior, scipy_prior):
        torch.testing.assert_close(prior(coarse, before, grid), expected, rtol=1e-10, atol=1e-10)


def test_both_forms_of_guidance_are_timed_at_all_steps() -> None:
    arms = spatial_arms([(1, 1), (2, 2), (4, 3)], 2, 16, CPU)
    assert list(arms) == [ONCE, "matrix products at every call", "scipy.fft at every call"]
    assert all(run()["total"] > 0 for run in arms.values())


def test_decoding_in_half_precision_is_compared_for_the_same_tokens(pipe: VARPipeline) -> None:
    tokens = pipe([0, 1], seed=0, output_type="pt").tokens
    assert decoded_psnr(pipe, tokens) > 200
    half = copy.deepcopy(pipe)
    half.tokenizer.to(torch.bfloat16)
    assert 20 < decoded_psnr(half, tokens) < 100


def test_limits_are_operations_a_second() -> None:
    found = limits(CPU, torch.float32, repeats=1)
    assert set(found) == {"matrix_product", "convolution"} and min(found.values()) > 1e8


def test_the_other_code_gets_the_same_weights(
    pipe: VARPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, modules = list(sys.path), set(sys.modules)
    run = official(write_models(tmp_path, STAND_IN), pipe, 2, cfg=1.5, top_k=9, top_p=0.9)
    seconds, images = run()
    ours = pipe(
        [0, 1], seed=0, guidance_scale=1.5, top_k=9, top_p=0.9, sampler="multinomial", output_type="pt"
    )
    assert seconds["total"] > 0 and torch.equal(images, ours.images)
    assert capsys.readouterr().out == ""
    assert sys.path == path and not {"models", "utils", "dist"} & (set(sys.modules) - modules)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_package", "no checkout of FoundationVision/VAR .*no_such_package"),
        ("x = 1", "no checkout of FoundationVision/VAR .*build_vae_var"),
        (STAND_IN.replace("embed_dim=32", "embed_dim=64"), "does not take these weights"),
    ],
)
def test_other_code_that_does_not_fit(pipe: VARPipeline, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        official(write_models(tmp_path, text), pipe, 2, cfg=1.5, top_k=9, top_p=0.9)
