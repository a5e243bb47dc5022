"""Every tensor of the golden cases that the transformer, the session and the text encoder make, in float32.

Integers are equal; floats differ by at most what the fixtures' README allows. Those of the tokenizer and of
the residual head alone are compared beside their modules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from nextscale.families.hart import checkpoint
from nextscale.families.hart.rotary import Rotation, map_positions, rotate
from nextscale.families.hart.session import HARTNoise, HARTSession
from nextscale.families.hart.text import HARTTextEncoder
from nextscale.families.hart.tokenizer import HARTTokenizer
from nextscale.families.hart.transformer import HARTTransformer
from nextscale.families.text import TextFeatures
from nextscale.generation.loop import StepInfo, generate
from nextscale.generation.noise import Noise
from nextscale.generation.soft import SoftCodes, mix_codes
from nextscale.generation.tokens import Drawer, Filters, Sampler, filter_logits
from nextscale.guidance import ClassifierFreeGuidance
from nextscale.guidance.base import GuidanceChain, GuidanceStep
from nextscale.nn.placement import place

CASES = ["tiny_a", "tiny_b"]
ALLOWED = {"diff": 5e-4, "smooth": 2e-3, "smooth_diff": 2e-3, "seeded_smooth": 2e-3}


class Outputs:
    """Compares what was computed, and knows which expected tensors nobody has looked at."""

    def __init__(self, expected: dict[str, Tensor], *groups: str) -> None:
        self.expected = {k: v for k, v in expected.items() if k.split(".")[0] in groups}
        self.unseen = set(self.expected)

    def check(self, name: str, found: Tensor) -> None:
        self.unseen.discard(name)
        wanted = self.expected[name]
        if not wanted.is_floating_point():
            assert torch.equal(found.flatten(1) if found.ndim == 3 else found, wanted), name
            return
        assert found.shape == wanted.shape, name
        error = float((found - wanted).abs().max())
        assert error <= ALLOWED.get(name.split(".")[0], 1e-4), f"{name} is off by {error:.2e}"

    def input(self, name: str) -> Tensor:
        self.unseen.discard(name)
        return self.expected[name]


@dataclass(frozen=True)
class Models:
    """The models of a golden case, and its prompts."""

    transformer: HARTTransformer
    tokenizer: HARTTokenizer
    text: TextFeatures

    @property
    def steps(self) -> int:
        return self.transformer.schedule.num_steps

    def draw(self, filters: Filters | None = None, sampler: Sampler = "greedy", seed: int = 0) -> Drawer:
        seeds = [seed] * len(self.text)
        return Drawer(sampler, filters or Filters(), seeds, torch.device("cpu"))

    def guidance(self, scale: float) -> GuidanceChain:
        return GuidanceChain([ClassifierFreeGuidance(scale, ramp="linear-hold")])

    def session(self, **options: Any) -> HARTSession:
        options.setdefault("noise", self.noise())
        branches = ("cond", "uncond")
        return HARTSession(self.transformer, self.tokenizer, self.text, branches, **options)

    def noise(self, order: Tensor | None = None, residual: Tensor | None = None) -> HARTNoise:
        drawn = HARTNoise.draw(Noise([0] * len(self.text)), self.transformer)
        return HARTNoise(
            drawn.order if order is None else order, drawn.residual if residual is None else residual
        )

    def image(self, f_hat: Tensor) -> Tensor:
        return (self.tokenizer.decode_latent(f_hat) + 1) / 2


def reverse_noise(initial: Tensor, steps: Tensor, batch: int) -> Tensor:
    """The fixtures' draws, per row of both halves, as ``(k, B, n, z)``: where it starts, then step by step.

    The unconditional half's draws change nothing, and neither do those of the last step.
    """
    used = steps[:-1].chunk(2, dim=1)[0]
    return torch.cat([initial[None], used]).unflatten(1, (batch, -1))


@pytest.fixture(scope="module")
def models(case: Callable) -> Callable[[str], Models]:
    @cache
    def load(name: str) -> Models:
        this = case(name)
        placement = place("cpu", "float32")
        transformer = checkpoint.load_transformer(this.transformer, placement)
        sides = transformer.config.patch_nums
        tokenizer = checkpoint.load_tokenizer(this.tokenizer, placement, sides)
        text = TextFeatures(this.io["ctx.embedding"], this.io["ctx.mask"].bool())
        return Models(transformer, tokenizer, text)

    return load


# ---------------------------------------------------------------------- parts


@pytest.mark.parametrize("name", CASES)
def test_condition(name: str, case: Callable, models: Callable):
    this, transformer = case(name), models(name).transformer
    out = Outputs(this.io, "ctx")
    text = TextFeatures(out.input("ctx.embedding"), out.input("ctx.mask").bool())
    rows = TextFeatures.cat([text, transformer.null_text(text)])
    out.check("ctx.mask_cfg", rows.mask.to(torch.uint8))
    condition = transformer.condition(rows)
    out.check("ctx.projected", condition.tokens)
    out.check("ctx.position_ids", condition.positions[: len(text)])
    out.check("ctx.position_ids_cfg", condition.positions)
    levels = [transformer.level(s) for s in range(this.num_steps)]
    out.check("ctx.level_embedding", torch.stack(levels))
    if this.config["transformer"]["shared_aln"]:
        assert condition.block is not None
        out.check("ctx.pooled", condition.block)
    else:
        assert condition.block is None
    assert not out.unseen


@pytest.mark.parametrize("name", CASES)
def test_rotary_positions(name: str, case: Callable):
    out = Outputs(case(name).io, "rope")
    q = out.input("rope.q").transpose(1, 2)  # (B, H, L, d)
    text = Rotation.text(out.input("rope.position_ids_1d"), q.shape[-1])
    maps = Rotation.maps(out.input("rope.position_ids_2d"), q.shape[-1])
    out.check("rope.out_1d", rotate(q, text).transpose(1, 2))
    out.check("rope.out_2d", rotate(q, maps).transpose(1, 2))
    assert not out.unseen


@pytest.mark.parametrize("name", CASES)
def test_filters(name: str, case: Callable):
    out = Outputs(case(name).io, "filter")
    logits = out.input("filter.logits")
    settings = {"k5": (5, 0.0), "p60": (0, 0.6), "k12_p80": (12, 0.8), "p999": (0, 0.999)}
    for key, (top_k, top_p) in settings.items():
        out.check(f"filter.{key}.probs", filter_logits(logits, top_k=top_k, top_p=top_p).softmax(-1))
    assert not out.unseen


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["full", "masked"])
def test_training_forward(name: str, kind: str, case: Callable, models: Callable):
    this, m = case(name), models(name)
    wanted = {k: v for k, v in this.io.items() if k.startswith((f"train.{kind}.", "train.order"))}
    out = Outputs(wanted, "train")
    kept, inputs = out.input(f"train.{kind}.kept"), this.io["tok.teacher_input"]
    order = out.input("train.order")
    assert torch.equal(order[:, order.shape[1] - kept.shape[1] :].sort(1).values, kept)

    logits = m.transformer(m.text, inputs, kept)
    out.check(f"train.{kind}.logits", logits)
    if kind == "full":
        torch.testing.assert_close(m.transformer(m.text, inputs), logits, rtol=0, atol=0)

    count = kept.shape[1]
    hidden, _ = m.transformer.hidden(m.text, inputs, kept)
    codes = m.tokenizer.quantize.embedding(logits[:, -count:].argmax(-1))
    condition = m.transformer.residual_condition(hidden[:, -count:], codes)
    target = this.io["tok.f_rest"].gather(1, kept[..., None].expand_as(codes)) - codes
    times, noise = (out.input(f"train.{kind}.diffusion_{what}") for what in ("t", "noise"))
    repeats = len(times) // target[..., 0].numel()
    target, condition = (x.flatten(0, 1).repeat(repeats, 1) for x in (target, condition))
    loss = m.transformer.diffloss.loss(target, condition, times, noise).total.mean()
    out.check(f"train.{kind}.diffusion_loss", loss[None])
    assert not out.unseen


# ---------------------------------------------------------------------- generation


class Trace:
    """What goes through the transformer during a run, step by step."""

    def __init__(self, transformer: HARTTransformer) -> None:
        self.inputs: list[Tensor] = []
        self.rotations: list[Rotation] = []
        self.hidden: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.conditions: list[Tensor] = []
        first, last = transformer.blocks[0], transformer.blocks[-1]
        self.hooks = [
            first.register_forward_hook(self._enter),
            last.register_forward_hook(lambda _m, _i, x: self.hidden.append(x)),
            transformer.head.register_forward_hook(lambda _m, _i, x: self.logits.append(x)),
            transformer.decoder_norm.register_forward_hook(lambda _m, _i, x: self.conditions.append(x)),
        ]

    def _enter(self, module: Any, args: Any, out: Any) -> None:
        self.inputs.append(args[0])
        self.rotations.append(args[1])

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *error: Any) -> None:
        for hook in self.hooks:
            hook.remove()


def run(
    m: Models, scale: float, draw: Drawer, **options: Any
) -> tuple[HARTSession, list[Tensor], list[StepInfo], Trace]:
    session = m.session(**options)
    steps: list[StepInfo] = []
    with Trace(m.transformer) as trace:
        tokens = generate(session, m.guidance(scale), draw, steps.append)
    return session, tokens, steps, trace


def places(transformer: HARTTransformer, text: TextFeatures, step: GuidanceStep) -> Tensor:
    rows = TextFeatures.cat([text, transformer.null_text(text)])
    positions = transformer.condition(rows).positions
    if step.index == 0:
        return positions
    cells = None if step.positions is None else step.positions.repeat(2, 1)
    return map_positions(step.grid, transformer.schedule.final, positions[:, -1], cells)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_greedy_generation(name: str, case: Callable, models: Callable):
    this, m = case(name), models(name)
    out = Outputs(this.io, "ar")
    session, tokens, steps, trace = run(m, this.config["sampling"]["cfg"], m.draw(), residual=False)
    for s, (info, step) in enumerate(zip(steps, session.steps(), strict=True)):
        assert step.positions is None
        out.check(f"ar.{s}.tokens", tokens[s])
        out.check(f"ar.{s}.logits", info.logits)
        out.check(f"ar.{s}.logits_cond_uncond", trace.logits[s])
        out.check(f"ar.{s}.f_hat", info.feature_map)
        out.check(f"ar.{s}.rope_position_ids", places(m.transformer, m.text, step))
        if s in (0, 1, m.steps - 1):
            out.check(f"ar.{s}.input", trace.inputs[s])
            out.check(f"ar.{s}.hidden", trace.hidden[s])
            out.check(f"ar.{s}.rope_cos", trace.rotations[s].cos)
            out.check(f"ar.{s}.rope_sin", trace.rotations[s].sin)
    out.check("ar.image", m.image(session.feature_map))
    assert not out.unseen


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_residual_diffusion(name: str, case: Callable, models: Callable):
    this, m = case(name), models(name)
    out = Outputs(this.io, "diff")
    steps, batch = out.input("diff.noise_steps"), len(m.text)
    noise = m.noise(residual=reverse_noise(out.input("diff.noise_init"), steps, batch))
    scale = this.config["sampling"]["cfg"]
    cfg = ClassifierFreeGuidance(scale, ramp="linear-hold").scales(m.transformer.schedule.grids)[-1]
    assert cfg == pytest.approx(float(out.input("diff.cfg")), abs=1e-12)

    session, tokens, _, trace = run(m, scale, m.draw(), noise=noise, guidance=cfg)
    assert torch.equal(tokens[-1].flatten(1), this.io[f"ar.{m.steps - 1}.tokens"])
    out.check("diff.f_hat", session.feature_map)
    out.check("diff.image", m.image(session.feature_map))
    (z,) = trace.conditions
    out.check("diff.z", z.flatten(0, 1))

    # The conditional half, whose trajectory is the one that counts.
    head, half = m.transformer.diffloss, len(steps[0]) // 2
    process, conditional = head.process, head.sample(z, cfg, noise.residual).flatten(0, 1)
    torch.testing.assert_close(conditional, out.input("diff.result")[:half], rtol=0, atol=5e-4)
    order = list(reversed(range(process.num_steps)))
    assert out.input("diff.step_index").tolist() == order
    assert out.input("diff.model_timestep").tolist() == [int(process.timesteps[k]) for k in order]
    for k, step in enumerate(head.trajectory(z, cfg, noise.residual)):
        for field, found in (("pred_x0", step.x0), ("sample", step.sample)):
            wanted = out.input(f"diff.step_{field}")[k, :half]
            torch.testing.assert_close(found.flatten(0, 1), wanted, rtol=0, atol=5e-4)
    before = out.input("diff.step_sample")[-2, :half].unflatten(0, (batch, -1))
    for key, x, k in (("first", noise.residual[0], order[0]), ("last", before, order[-1])):
        found = head.predict(x, torch.tensor(process.timesteps[k]), z, cfg).flatten(0, 1)
        wanted = out.input(f"diff.model_out_{key}")[:half]
        torch.testing.assert_close(found, wanted, rtol=0, atol=5e-4)
    assert not out.unseen


def soft_filters(m: Models, settings: dict[str, Any]) -> Filters:
    first, later = settings["smooth_top_k_scales_below_7"], settings["smooth_top_k_scales_from_7"]
    return Filters(top_k=[first if s < 7 else later for s in range(m.steps)])


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_soft_codes(name: str, case: Callable, models: Callable):
    this, m = case(name), models(name)
    settings = this.config["sampling"]
    out = Outputs(this.io, "smooth", "smooth_diff")
    mixed: list[Tensor] = []

    filters = soft_filters(m, settings)

    def smooth(guided: Tensor, step: GuidanceStep, codebook: Tensor) -> Tensor:
        ratio = min(step.index, m.steps - 2) / (m.steps - 1)
        exponential = out.input(f"smooth.{step.index}.exponential")
        mixed.append(mix_codes(filters(guided, step.index), exponential, ratio, codebook))
        return mixed[-1]

    drawn = [out.input(f"smooth_diff.noise_{what}") for what in ("init", "steps")]
    noise = m.noise(residual=reverse_noise(*drawn, len(m.text)))
    scale = settings["smooth_cfg"]
    cfg = ClassifierFreeGuidance(scale, ramp="linear-hold").scales(m.transformer.schedule.grids)[-1]
    assert cfg == pytest.approx(float(out.input("smooth_diff.cfg")), abs=1e-12)
    draw = m.draw(filters)
    session, tokens, steps, trace = run(m, scale, draw, noise=noise, guidance=cfg, smooth=smooth)
    for s, info in enumerate(steps):
        out.check(f"smooth.{s}.logits", info.guided)
        out.check(f"smooth.{s}.tokens", tokens[s])
        out.check(f"smooth.{s}.f_hat", info.feature_map)
        if f"smooth.{s}.soft_embedding" in out.expected:
            out.check(f"smooth.{s}.soft_embedding", mixed[s])
    out.check("smooth.image", m.image(session.feature_map))
    result = m.transformer.diffloss.sample(trace.conditions[0], cfg, noise.residual).flatten(0, 1)
    wanted = out.input("smooth_diff.result")[: len(result)]
    torch.testing.assert_close(result, wanted, rtol=0, atol=2e-3)
    assert not out.unseen


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", ["discrete", "diffusion"])
@torch.no_grad()
def test_iterated_last_scale(name: str, kind: str, case: Callable, models: Callable):
    this, m = case(name), models(name)
    settings = this.config["sampling"]
    out = Outputs(this.io, "maskgit")
    parts, scale = settings["maskgit_iterations"], settings["cfg"]
    cells, order = m.transformer.schedule.lengths[-1], out.input("maskgit.order")
    cfg = ClassifierFreeGuidance(scale, ramp="linear-hold").scales(m.transformer.schedule.grids)[-1]
    options = dict(mask_iterations=parts, guidance=cfg, residual=kind == "diffusion")
    positions = [s.positions for s in m.session(noise=m.noise(order), **options).steps()[-parts:]]
    residual = torch.full((8, len(m.text), cells, m.transformer.config.z_channels), torch.nan)
    for i, part in enumerate(positions):
        drawn = [out.input(f"maskgit.{i}.noise_{what}") for what in ("init", "steps")]
        noise = reverse_noise(*drawn, len(m.text))
        residual.scatter_(2, part[None, :, :, None].expand_as(noise), noise)

    noise = m.noise(order, residual)
    session, _, infos, trace = run(m, scale, m.draw(), noise=noise, **options)
    for i, (info, step) in enumerate(zip(infos[-parts:], session.steps()[-parts:], strict=True)):
        at = step.positions
        out.check(f"maskgit.{i}.logits", info.logits)
        out.check(f"maskgit.{i}.tokens", info.tokens.flatten(1).gather(1, at))
        out.check(f"maskgit.{i}.rope_position_ids", places(m.transformer, m.text, step))
        if kind == "diffusion":
            index = at[None, :, :, None].expand(8, -1, -1, residual.shape[3])
            found = m.transformer.diffloss.sample(trace.conditions[i], cfg, residual.gather(2, index))
            wanted = out.input(f"maskgit.{i}.residual")[: found[..., 0].numel()]
            torch.testing.assert_close(found.flatten(0, 1), wanted, rtol=0, atol=1e-4)
    out.check(f"maskgit.{kind}.f_hat", session.feature_map)
    out.check(f"maskgit.{kind}.image", m.image(session.feature_map))
    other = "discrete" if kind == "diffusion" else "diffusion"
    assert {n for n in out.unseen if n.split(".")[1] != other} - {
        f"maskgit.{i}.residual" for i in range(parts)
    } == set()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("group", ["seeded", "seeded_smooth"])
@torch.no_grad()
def test_seeded_runs(name: str, group: str, case: Callable, models: Callable):
    this, m = case(name), models(name)
    settings = this.config["sampling"]
    out = Outputs(this.io, group)
    codes = m.transformer.config.vocab_size
    filters = Filters(top_k=[min(600 if s < 7 else 300, codes) for s in range(m.steps)])
    draw = m.draw(filters, "multinomial", settings["seeded_generator_seed"])
    smooth = SoftCodes.of(draw, hold_last=True) if group == "seeded_smooth" else None
    session, tokens, _, _ = run(m, settings["cfg"], draw, smooth=smooth, residual=False)
    for s, maps in enumerate(tokens):
        out.check(f"{group}.{s}.tokens", maps)
    out.check(f"{group}.image", m.image(session.feature_map))
    assert not out.unseen


# ---------------------------------------------------------------------- text


@pytest.mark.parametrize("name", CASES)
def test_text_encoder(name: str, case: Callable):
    from transformers import Qwen2Config, Qwen2Model

    this = case(name)
    out = Outputs(this.io, "text")
    sizes = dict(this.config["text"]["language_model"])
    theta = sizes.pop("rope_theta")
    sizes |= {"rope_theta": theta, "rope_parameters": {"rope_type": "default", "rope_theta": theta}}
    model = Qwen2Model._from_config(Qwen2Config(**sizes), attn_implementation="eager")
    model.load_state_dict(load_file(this.text_encoder))
    encoder = HARTTextEncoder.from_models(model, tokenizer=None)
    tokens, mask = out.input("text.tokens"), out.input("text.mask").bool()
    plain = encoder.encode(tokens, mask)
    wanted = out.input("text.plain.embedding")
    torch.testing.assert_close(plain[mask], wanted[mask], rtol=0, atol=1e-4)
    assert plain.isfinite().all()
    out.check("text.prefixed.embedding", encoder.encode(tokens, mask, out.input("text.prefix_tokens")))
    out.check("text.position_ids", mask.long().cumsum(1) - 1)
    assert not out.unseen
