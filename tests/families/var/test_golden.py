"""Every tensor of the golden cases, in float32 on the CPU.

Integers are equal. The largest absolute difference of a float tensor, in units of its standard deviation, is
at most what the acceptance table of the fixtures allows. Mistakes in details (a group-norm epsilon, the kind
of GELU) shift some tensor by little more than that, so these limits are not to be loosened.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nextscale import VARPipeline
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.generation.loop import StepInfo

MODELS = ["a_basic", "b_shared_adaln", "c_ten_scales"]
TRACED = MODELS[:2]  # these hold seeded runs, and what happens inside of the transformer as well
ALLOWED = {"tok": 1e-4, "tf": 1e-4, "ar": 2e-4, "sampled": 1e-3, "smooth": 5e-2}


class Outputs:
    """Collects what was computed, compares it, and knows which expected tensors nobody has looked at."""

    def __init__(self, expected: dict[str, Tensor], *groups: str) -> None:
        self.expected = {k: v for k, v in expected.items() if k.split(".")[0] in groups}
        self.unseen = set(self.expected)

    def check(self, name: str, found: Tensor) -> None:
        self.unseen.discard(name)
        wanted = self.expected[name]
        if not wanted.is_floating_point():
            assert torch.equal(found.flatten(1) if found.ndim == 3 else found, wanted), name
            return
        assert found.dtype == torch.float32, name
        assert found.numel() == wanted.numel() and found.shape == (wanted.shape if found.ndim else ()), name
        scale = wanted.std() if wanted.numel() > 1 else wanted.abs()
        error = float((found - wanted).abs().max() / scale)
        assert error <= ALLOWED[name.split(".")[0]], f"{name} is off by {error:.2e} standard deviations"

    def inputs(self, *names: str) -> list[Tensor]:
        self.unseen -= set(names)
        return [self.expected[name] for name in names]


def hook_outputs(blocks: Sequence[torch.nn.Module], to: list[Tensor]) -> list[Any]:
    return [block.register_forward_hook(lambda _m, _i, out: to.append(out)) for block in blocks]


def check_tokenizer(tokenizer: VARTokenizer, out: Outputs) -> None:
    (image,) = out.inputs("tok.image")
    encoded: list[Tensor] = []
    hooks = hook_outputs([tokenizer.encoder], encoded)
    out.check("tok.f", tokenizer.features(image))
    hooks[0].remove()
    out.check("tok.enc", encoded[0])

    chain = tokenizer.quantized(image)
    tokens = tokenizer.encode(image)
    sums = tokenizer.partial_sums(tokens)
    for k, (step, maps) in enumerate(zip(chain, tokens, strict=True)):
        out.check(f"tok.idx.{k}", maps)
        out.check(f"tok.f_hat.{k}", step.f_hat)
        out.check(f"tok.f_hat.{k}", sums[k])
    out.check("tok.next_input", tokenizer.next_inputs(tokens))
    out.check("tok.recon", tokenizer.decode(tokens))
    out.check("tok.recon", tokenizer.decode_progressive(tokens)[-1])

    recon, loss, trained = tokenizer.training_forward(image)
    out.check("tok.vq_loss", loss)
    out.check("tok.recon", recon.clamp(-1, 1))
    assert all(torch.equal(a, b) for a, b in zip(trained, tokens, strict=True))

    if "tok.znorm_idx.0" in out.expected:
        by_cosine = VARTokenizer(replace(tokenizer.config, using_znorm=True))
        by_cosine.load_state_dict(tokenizer.state_dict())
        for k, maps in enumerate(by_cosine.encode(image)):
            out.check(f"tok.znorm_idx.{k}", maps)
    assert not out.unseen


@pytest.mark.parametrize("name", MODELS)
def test_tokenizer(name: str, case: Callable, pipeline: Callable):
    check_tokenizer(pipeline(name).tokenizer, Outputs(case(name).io, "tok"))


def test_tokenizer_in_the_published_architecture(case: Callable, procedural: Callable):
    config, io = case("d_official_tokenizer_arch").config, case("d_official_tokenizer_arch").io
    known = VARTokenizerConfig.__dataclass_fields__
    tokenizer = VARTokenizer(
        VARTokenizerConfig(**{k: v for k, v in config["tokenizer"].items() if k in known})
    )
    weights = config["weights"]
    shapes = {name: tuple(value.shape) for name, value in tokenizer.state_dict().items()}
    tensors = procedural(shapes, weights["seed"], weights["rules"])
    for name, check in weights["check"].items():
        assert tensors[name].flatten()[:4].tolist() == check["first_four"]
        assert float(tensors[name].double().sum()) == pytest.approx(check["sum_float64"], rel=1e-12)
    tokenizer.load_state_dict(tensors)
    check_tokenizer(tokenizer.eval().requires_grad_(False), Outputs(io, "tok"))


@pytest.mark.parametrize("name", MODELS)
def test_the_files_spell_out_the_sizes(name: str, case: Callable, pipeline: Callable):
    config, pipe = case(name).config, pipeline(name)
    renamed = {
        "embed_dim": "embed_dim",
        "num_heads": "num_heads",
        "depth": "depth",
        "shared_aln": "shared_aln",
    }
    renamed |= {"attn_l2_norm": "attn_l2_norm", "num_classes": "num_classes", "mlp_ratio": "mlp_ratio"}
    found = asdict(pipe.transformer.config)
    assert {k: found[k] for k in renamed} == {k: config["transformer"][k] for k in renamed}
    assert found["norm_eps"] == config["transformer"]["norm_eps"]
    assert pipe.schedule.num_tokens == config["transformer"]["sequence_length"]
    assert pipe.image_size == (config["tokenizer"]["image_size"],) * 2
    told = {k: v for k, v in config["tokenizer"].items() if k not in ("image_size", "latent_size")}
    told |= {"ch_mult": tuple(told["ch_mult"]), "patch_nums": tuple(told["patch_nums"])}
    assert {k: asdict(pipe.tokenizer.config)[k] for k in told} == told


@pytest.mark.parametrize("name", MODELS)
def test_teacher_forcing(name: str, case: Callable, pipeline: Callable):
    pipe, io = pipeline(name), case(name).io
    out = Outputs(io, "tf")
    (labels,) = out.inputs("tf.labels")
    inputs = io["tok.next_input"]
    blocks: list[Tensor] = []
    hooks = hook_outputs(pipe.transformer.blocks, blocks)
    logits = pipe.transformer(labels, inputs)
    for hook in hooks:
        hook.remove()
    out.check("tf.logits", logits)
    for i, block in enumerate(blocks if name in TRACED else []):
        out.check(f"tf.block.{i}", block)
    out.check(
        "tf.uncond_logits", pipe.transformer(torch.full_like(labels, pipe.transformer.null_label), inputs)
    )
    targets = torch.cat([io[f"tok.idx.{k}"] for k in range(case(name).num_steps)], dim=1)
    out.check("tf.loss", F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    assert not out.unseen


def run(
    pipe: VARPipeline, settings: dict[str, Any], labels: Tensor, **options: Any
) -> tuple[Any, list[StepInfo]]:
    """A run as the fixtures describe it, through the pipeline's call."""
    steps: list[StepInfo] = []
    out = pipe(
        labels,
        guidance_scale=settings["cfg"],
        top_k=settings["top_k"],
        top_p=settings["top_p"],
        more_smooth=settings["more_smooth"],
        seed=[settings["g_seed"]] * len(labels),
        on_step=steps.append,
        output_type="pt",
        **options,
    )
    return out, steps


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "sampler", ["greedy", "paired", "multinomial"]
)  # with top_k = 1 all of them are greedy
def test_greedy_generation(name: str, sampler: str, case: Callable, pipeline: Callable):
    pipe, this = pipeline(name), case(name)
    out = Outputs(this.io, "ar")
    (labels,) = out.inputs("ar.labels")
    inputs: list[Tensor] = []
    raw: list[Tensor] = []
    hooks = [
        pipe.transformer.blocks[0].register_forward_hook(lambda _m, args, _o: inputs.append(args[0])),
        pipe.transformer.head.register_forward_hook(lambda _m, _a, out: raw.append(out)),
    ]
    result, steps = run(pipe, this.config["run"]["greedy"], labels, sampler=sampler)
    for hook in hooks:
        hook.remove()
    for k, step in enumerate(steps):
        assert (step.index, step.grid) == (k, (this.patch_nums[k],) * 2)
        out.check(f"ar.idx.{k}", step.tokens)
        out.check(f"ar.logits.{k}", step.logits)
        assert step.guided is step.logits
        if name in TRACED:
            out.check(f"ar.x_in.{k}", inputs[k])
            out.check(f"ar.raw_logits.{k}", raw[k])
        if f"ar.f_hat.{k}" in out.expected:
            out.check(f"ar.f_hat.{k}", step.feature_map)
    out.check("ar.image", result.images)
    assert not out.unseen


@pytest.mark.parametrize("name", TRACED)
@pytest.mark.parametrize("group", ["sampled", "smooth"])
def test_seeded_runs(name: str, group: str, case: Callable, pipeline: Callable):
    pipe, this = pipeline(name), case(name)
    out = Outputs(this.io, group)
    result, steps = run(pipe, this.config["run"][group], this.io["ar.labels"], sampler="multinomial")
    for k, tokens in enumerate(result.tokens):
        out.check(f"{group}.idx.{k}", tokens)
    out.check(f"{group}.f_hat", steps[-1].feature_map)
    out.check(f"{group}.image", result.images)
    assert not out.unseen
