"""The transformer's half of Infinity's golden cases, in float32 on the CPU.

Bits are equal. Floats are within 1e-4 plus 1e-5 of the value, pictures within 1e-3: what the fixtures demand.
Mistakes in details (half-up rounding of positions, an area resize) exceed that at least tenfold somewhere, so
these limits are not to be loosened. The tokenizer's half is in test_tokenizer.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from nextscale import InfinityPipeline
from nextscale.families.text import TextFeatures
from nextscale.generation.loop import StepInfo
from nextscale.generation.request import GenerationOutput
from nextscale.generation.tokens import filter_logits

CASES = ["square_d16", "wide_patchify_d6"]
RUNS = [
    ("square_d16", "guide_head"),
    ("square_d16", "guide_layer"),
    ("square_d16", "negative"),
    ("square_d16", "unguided"),
    ("wide_patchify_d6", "guide_head"),
    ("wide_patchify_d6", "guide_layer"),
    ("wide_patchify_d6", "forced"),
]


def close(found: Tensor, wanted: Tensor, atol: float = 1e-4) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=atol)


@pytest.fixture(scope="session")
def pipeline(case: Callable) -> Callable[[str], InfinityPipeline]:
    @cache
    def load(name: str) -> InfinityPipeline:
        return InfinityPipeline.from_official(case(name).transformer, case(name).tokenizer, device="cpu")

    return load


@pytest.fixture(scope="session")
def text(case: Callable) -> Callable[..., TextFeatures]:
    def make(name: str, kind: str = "") -> TextFeatures:
        io = case(name).io
        return TextFeatures.from_packed(io[f"text.{kind}features"], io[f"text.{kind}lens"])

    return make


class Trace:
    """What goes into and comes out of the parts of the transformer, step by step."""

    def __init__(self) -> None:
        self.steps: list[StepInfo] = []
        self.raw: list[Tensor] = []
        self.word_inputs: list[Tensor] = []
        self.first_inputs: list[Tensor] = []
        self.blocks: list[list[Tensor]] = []


@contextmanager
def traced(pipe: InfinityPipeline) -> Iterator[Trace]:
    trace, model = Trace(), pipe.transformer
    trace.blocks = [[] for _ in model.blocks]
    hooks = [
        model.head.register_forward_hook(lambda _m, _a, out: trace.raw.append(out)),
        model.word_embed.register_forward_hook(lambda _m, args, _o: trace.word_inputs.append(args[0])),
        model.blocks[0].register_forward_hook(lambda _m, args, _o: trace.first_inputs.append(args[0])),
    ]
    for block, outputs in zip(model.blocks, trace.blocks, strict=True):
        hooks.append(block.register_forward_hook(lambda _m, _a, out, to=outputs: to.append(out)))
    yield trace
    for hook in hooks:
        hook.remove()


def run(
    pipe: InfinityPipeline, this: Any, settings: dict[str, Any], features: TextFeatures, **options: Any
) -> GenerationOutput:
    """A run as the fixtures describe it, through the pipeline's call."""
    return pipe(
        features,
        schedule=this.schedule,
        guidance_scale=settings["cfg"],
        guidance_layer=settings["cfg_insertion_layer"],
        temperature=settings["tau"],
        top_k=settings["top_k"],
        batch_size=len(features),
        output_type="pt",
        **options,
    )


# ------------------------------------------------------------------ text and positions


@pytest.mark.parametrize("name", CASES)
def test_conditioning(name: str, case: Callable, pipeline: Callable, text: Callable):
    io, model = case(name).io, pipeline(name).transformer
    rows = TextFeatures.cat([text(name), model.unconditional(text(name))])
    condition = model.encode_text(rows)
    close(condition.pooled, io["cond.pool"])
    close(condition.modulation, io["cond.shared"])
    close(condition.memory[rows.mask], io["cond.kv"])


@pytest.mark.parametrize("name", CASES)
def test_rotary_tables(name: str, case: Callable, pipeline: Callable):
    rotation = pipeline(name).transformer.rotation(case(name).schedule)
    close(torch.stack(rotation), case(name).io["rope.cos_sin"])


@pytest.mark.parametrize("name", CASES)
def test_teacher_forcing(name: str, case: Callable, pipeline: Callable, text: Callable):
    io, model = case(name).io, pipeline(name).transformer
    close(model(text(name)[[0]], io["train.x_in"], case(name).schedule), io["train.logits"])


# ------------------------------------------------------------------ whole runs


@pytest.mark.parametrize(("name", "kind"), RUNS)
@pytest.mark.parametrize("sampler", ["greedy", "paired", "multinomial"])  # all greedy, as top_k is 1
def test_greedy_runs(name: str, kind: str, sampler: str, case: Callable, pipeline: Callable, text: Callable):
    this, pipe = case(name), pipeline(name)
    settings = this.config["runs"][kind]
    forced = settings["forced_scales"]
    with traced(pipe) as trace:
        out = run(
            pipe,
            this,
            settings,
            text(name),
            negative_prompt=text(name, "negative_") if settings["negative_prompt"] else None,
            given_tokens=this.steps("tok.bits")[:forced],  # cells, as the tokenizer encodes them
            sampler=sampler,
            seed=0,
            on_step=trace.steps.append,
        )
    key, unseen = f"ar.{kind}", {k for k in this.io if k.startswith(f"ar.{kind}.")}

    def check(found: Tensor, part: str, atol: float = 1e-4) -> None:
        if f"{key}.{part}" in unseen:
            unseen.remove(f"{key}.{part}")
            close(found, this.io[f"{key}.{part}"], atol)

    for k, step in enumerate(trace.steps):
        check(trace.raw[k], f"logits_raw.{k}")
        check(step.logits / settings["tau"][k], f"logits.{k}")
        check(step.feature_map, f"summed.{k}")
        if k + 1 < len(trace.steps):
            check(trace.word_inputs[k], f"next_in.{k}")
        check(trace.first_inputs[k], f"block_in.{k}")
        for n, outputs in enumerate(trace.blocks):
            check(outputs[k], f"block_{n}.{k}")
        if k >= forced:
            assert torch.equal(step.tokens.flatten(1, 2), this.io[f"{key}.bits.{k}"].long())
            unseen.remove(f"{key}.bits.{k}")
    if kind == "guide_head":
        part = this.io[f"{key}.image0"].shape[2:]
        check(out.images[:1, :, : part[0], : part[1]] * 2 - 1, "image0", 1e-3)
        # The official code cuts values off and returns blue, green, red.
        official = (out.images * 255).byte().permute(0, 2, 3, 1).flip(-1).int()
        assert int((official - this.io[f"{key}.image_u8"].int()).abs().max()) <= 1
        unseen.remove(f"{key}.image_u8")
    assert not unseen


@pytest.mark.parametrize("name", CASES)
def test_the_sampled_run(name: str, case: Callable, pipeline: Callable, text: Callable):
    this = case(name)
    settings = this.config["sampled_run"]
    out = run(
        pipeline(name),
        this,
        settings,
        text(name),
        top_p=settings["top_p"],
        sampler="multinomial",
        seed=settings["seed"],
    )
    for tokens, bits in zip(out.tokens, this.steps("ar.sampled.bits"), strict=True):
        assert torch.equal(tokens.flatten(1, 2), bits.long())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("kind", "options"),
    [("k900_p097", {"top_k": 900, "top_p": 0.97}), ("k1", {"top_k": 1}), ("p05", {"top_p": 0.5})],
)
def test_filters(name: str, kind: str, options: dict[str, Any], case: Callable):
    io = case(name).io
    assert torch.equal(filter_logits(io["filter.logits"], **options), io[f"filter.{kind}"])
