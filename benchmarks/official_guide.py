"""Check `guide()` against the official repositories, unmodified, with small random weights on the CPU.

    python benchmarks/official_guide.py --var VAR --hart hart --infinity Infinity

Each argument is a checkout of FoundationVision/VAR, mit-han-lab/hart or FoundationVision/Infinity; leave out
the ones you do not have. They need scipy, einops, pytz and imageio beside this package with `[text]`; what
they import for CUDA only, and timm and torchvision, gets a stand-in below.

Every case generates four times from the same seed: without guidance, with strength 0, with --beta, and once
more without. The table shows how many draws there were; whether strength 0 left logits, pictures and random
numbers as they were, bit for bit; the largest difference between what reached the official sampling function
and the definition of SSG, computed here by its literal steps with scipy in float64, in units of rounding;
whether the pictures changed; and whether the fourth run equals the first, with everything back in its place.
The training pass draws tokens too, and has to stay as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.fft import dctn, idctn
from torch import Tensor, nn
from torch.nn import functional as F

from nextscale import ScaledSpatialGuidance
from nextscale.integrations import guide

# A float32 product with a few hundred terms, the cells of a grid, is off by some of its last digits.
ROUNDINGS = 32


@dataclass
class Case:
    """One way to draw tokens: the module whose sampling function is watched, the call, and its grids.

    taus: what the official code divides the logits by, per step. masks: filled by every call with the cells
    of each masked draw. training: the call is no generation, and a guide must leave it alone.
    """

    name: str
    module: types.ModuleType
    sampler: str
    model: nn.Module
    generate: Callable[[], Tensor]
    grids: Sequence[tuple[int, int]]
    taus: Sequence[float] = ()
    masks: list[Tensor] = field(default_factory=list)
    training: bool = False


# --- what only a GPU has ----------------------------------------------------------------------------------


def attention(q, k, v, dropout_p=0.0, softmax_scale=None):
    """flash_attn_func: (B, L, H, c) each."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=softmax_scale).transpose(1, 2).contiguous()


def varlen_attention(q, kv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale):
    """flash_attn_varlen_kvpacked_func: q (sum of lengths, H, c), kv (sum of lengths, 2, H, c)."""
    rows = []
    for start, stop, first, last in zip(
        cu_seqlens_q, cu_seqlens_q[1:], cu_seqlens_k, cu_seqlens_k[1:], strict=False
    ):
        query = q[start:stop].transpose(0, 1)
        key, value = kv[first:last].permute(1, 2, 0, 3)
        rows.append(F.scaled_dot_product_attention(query, key, value, scale=softmax_scale).transpose(0, 1))
    return torch.cat(rows)


def rms_norm(out, x, weight, eps, use_quant):
    out.copy_(weight * x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps))


class DropPath(nn.Identity):
    def __init__(self, *args, **kwargs):
        super().__init__()


STAND_INS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "var": {},
    "hart": {"hart_backend": {}, "hart_backend.fused_kernels": {"rms_norm": rms_norm}},
    "infinity": {
        "flash_attn": {
            "flash_attn_func": attention,
            "flash_attn_varlen_kvpacked_func": varlen_attention,
        },
        "timm": {},
        "timm.loss": {"SoftTargetCrossEntropy": nn.Module},
        "timm.models": {"register_model": lambda function: function},
        "timm.models.layers": {"DropPath": DropPath, "drop_path": lambda x, *_: x},
        "torchvision": {"transforms": None},
    },
}


def install_stand_ins(repository: str) -> None:
    for name, contents in STAND_INS[repository].items():
        module = sys.modules[name] = types.ModuleType(name)
        vars(module).update(contents)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    if not torch.cuda.is_available():  # HART moves its tensors wherever it makes them
        torch.Tensor.cuda = nn.Module.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]


# --- the models -------------------------------------------------------------------------------------------


def randomise(model: nn.Module, scale: float = 1.0) -> nn.Module:
    """Weights large enough that logits, and so pictures, depend on everything before."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter.shape[-1] if parameter.ndim > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale / fan_in**0.5)
    return model.eval()


def var_cases(checkout: Path) -> Iterator[Case]:
    with imported(checkout):
        from models import build_vae_var
        from models import var as module
    patch_nums = (1, 2, 3, 5, 8)
    _, var = build_vae_var("cpu", patch_nums, V=60, Cvae=8, ch=32, num_classes=10, depth=2)
    randomise(var.vae_proxy[0])
    randomise(var)
    labels = torch.tensor([3, 7, 3])
    grids = [(side, side) for side in patch_nums]

    def case(name: str, autocast: bool = False, **settings: Any) -> Case:
        def generate() -> Tensor:
            with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                return var.autoregressive_infer_cfg(B=3, label_B=labels, g_seed=1, **settings)

        return Case(name, module, "sample_with_top_k_top_p_", var, generate, grids)

    yield case("VAR", cfg=1.5, top_k=40, top_p=0.96)
    yield case("VAR, more_smooth", cfg=4, top_k=40, top_p=0.95, more_smooth=True)
    yield case("VAR, bfloat16 autocast", autocast=True, cfg=4, top_k=40, top_p=0.95)
    yield case("VAR, no filter", cfg=0.0)


def hart_cases(checkout: Path) -> Iterator[Case]:
    with imported(checkout):
        from hart.modules.models.autoencoder import HARTAutoEncoderWithDisc, hart_autoencoder
        from hart.modules.models.autoencoder.configuration import HARTAutoEncoderConfig
        from hart.modules.models.transformer import hart_transformer_t2i as module
        from hart.modules.models.transformer.configuration import HARTForT2IConfig
    patch_nums = (1, 2, 3, 4, 6)
    settings = HARTAutoEncoderConfig(
        vocab_size=640, z_channels=8, ch=32, ch_mult=(1, 1), v_patch_nums=patch_nums,
        quantizer_type="var_hybrid", hybrid=True, test_mode=True,
    )  # fmt: skip
    vae = randomise(hart_autoencoder.HARTAutoEncoder(settings))
    HARTAutoEncoderWithDisc.from_pretrained = lambda path: types.SimpleNamespace(vae=vae)
    tokens, width = 7, 12
    hart = module.HARTForT2I(
        HARTForT2IConfig(
            vae_path="none", context_token=tokens, context_dim=width, depth=2, embed_dim=32, num_heads=2,
            patch_nums=patch_nums, attn_type="llama", mlp_type="llama", disable_aln=True, shared_aln=True,
            use_timestep_embed=True, use_context_norm=True, diff_width=16, diff_depth=1,
        )
    )  # fmt: skip
    randomise(hart)
    hart.gradient_checkpointing = False  # transformers 4 set it, transformers 5 does not
    context = torch.randn(3, tokens, width, generator=torch.Generator().manual_seed(5))
    mask = torch.ones(3, tokens, dtype=torch.int64)
    mask[1, :3] = 0  # padded on the left
    infer = hart.autoregressive_infer_cfg  # bound before any guide, as in the repository's own script

    def case(name: str, autocast: bool = False, **settings: Any) -> Case:
        masks: list[Tensor] = []

        def generate() -> Tensor:
            masks.clear()
            with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                return infer(
                    B=3, label_B=context, cfg=4.5, g_seed=1, context_mask=mask,
                    context_position_ids=mask.cumsum(1) - 1, **settings,
                )  # fmt: skip

        return Case(
            name, module, "sample_with_top_k_top_p_", hart, generate, [(s, s) for s in patch_nums], (), masks
        )

    def note_cells(block: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """The cells that the blocks are told to predict at the last scale, from the conditional half."""
        if kwargs.get("m_maskgit") is not None:
            rows, cells = kwargs["m_maskgit"]
            current.masks.append(cells[rows < 3].reshape(3, -1))

    @torch.no_grad()  # its norms were overwritten in inference mode above, and only the draw is of interest
    def train() -> Tensor:
        hart.rng.manual_seed(1)
        length = sum(side**2 for side in patch_nums[1:])
        draw = torch.Generator().manual_seed(6)
        logits, loss, _ = hart(
            context.clone(), torch.randn(3, length, 8, generator=draw), mask.cumsum(1) - 1, mask,
            torch.randn(3, 36, 8, generator=draw), torch.randint(640, (3, 36), generator=draw),
        )  # fmt: skip
        return torch.cat([logits.flatten(), loss.flatten()]).detach()

    hook = hart.blocks[0].register_forward_pre_hook(note_cells, with_kwargs=True)
    for current in (
        case("HART"),
        case("HART, more_smooth", more_smooth=True),
        case("HART, 4 iterations", num_maskgit_iters=4, more_smooth=True),
        case("HART, 4 iterations, bfloat16 autocast", autocast=True, num_maskgit_iters=4),
        case("HART, no residual head", num_maskgit_iters=2, final_stage=1),
    ):
        yield current
    hook.remove()
    yield Case(
        "HART, training pass", module, "sample_with_top_k_top_p_", hart, train, [(s, s) for s in patch_nums],
        training=True,
    )  # fmt: skip


def infinity_cases(checkout: Path) -> Iterator[Case]:
    with imported(checkout):
        from infinity.models import infinity as module
        from infinity.models.bsq_vae.vae import vae_model
        from infinity.utils.dynamic_resolution import dynamic_resolution_h_w
    square, tall = (
        [(1, height, width) for _, height, width in dynamic_resolution_h_w[ratio]["0.06M"]["scales"]]
        for ratio in (1.0, 2.0)
    )
    built: dict[bool, tuple[nn.Module, nn.Module]] = {}

    def build(patchify: bool) -> tuple[nn.Module, nn.Module]:
        if patchify not in built:
            vae = vae_model(
                None, "dynamic", 4, 16, patch_size=2, encoder_ch_mult=[1, 1], decoder_ch_mult=[1, 1]
            )
            model = module.Infinity(
                vae, text_channels=128, text_maxlen=12, embed_dim=32, depth=4, num_heads=2, block_chunks=2,
                shared_aln=True, pad_to_multiplier=128, rope2d_each_sa_layer=1, rope2d_normalized_by_hw=2,
                raw_scale_schedule=square, pn="0.06M", apply_spatial_patchify=int(patchify),
                inference_mode=True,
            )  # fmt: skip
            built[patchify] = randomise(vae), randomise(model)
        return built[patchify]

    lengths = [5, 9]
    text = torch.randn(sum(lengths), 128, generator=torch.Generator().manual_seed(5))
    condition = (text, lengths, F.pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0), (1, 0)).int(), 9)

    def case(
        name: str,
        schedule: Sequence[tuple[int, int, int]],
        tau: Sequence[float] = (0.5,) * 7,
        patchify: bool = False,
        autocast: bool = False,
        **settings: Any,
    ) -> Case:
        vae, model = build(patchify)

        def generate() -> Tensor:
            with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                return model.autoregressive_infer_cfg(
                    vae=vae, scale_schedule=schedule, label_B_or_BLT=condition, B=2, g_seed=1,
                    cfg_list=[3.0] * len(schedule), tau_list=list(tau), top_k=900, top_p=0.97,
                    returns_vemb=1, vae_type=4, ret_img=True, inference_mode=True, **settings,
                )[2]  # fmt: skip

        sampler = "sample_with_top_k_top_p_also_inplace_modifying_logits_"
        return Case(name, module, sampler, model, generate, [(h, w) for _, h, w in schedule], tau)

    taus = (1.0, 0.5, 0.7, 2.0, 0.9, 0.3, 1.2)
    yield case("Infinity, CFG on logits", square, cfg_insertion_layer=[0])
    yield case("Infinity, tall, tau per scale", tall, taus, cfg_insertion_layer=[0])
    yield case("Infinity, CFG on hidden states", square, taus, cfg_insertion_layer=[-2])
    yield case("Infinity, patchify", tall, taus, patchify=True, cfg_insertion_layer=[0])
    yield case("Infinity, cut short", tall, taus, cfg_insertion_layer=[0], trunk_scale=4)
    yield case("Infinity, bfloat16 autocast", square, taus, autocast=True, cfg_insertion_layer=[0])


@contextlib.contextmanager
def imported(checkout: Path) -> Iterator[None]:
    """The checkout first on the path, and its chatter not on the screen."""
    sys.path.insert(0, str(checkout))
    with contextlib.redirect_stdout(io.StringIO()):
        yield
    sys.path.remove(str(checkout))


# --- the checks -------------------------------------------------------------------------------------------


def literal_prior(previous: Tensor, coarse: tuple[int, int], fine: tuple[int, int]) -> Tensor:
    """DSE step by step, in float64: ``(B, h_coarse * w_coarse, C)`` to ``(B, h_fine * w_fine, C)``."""
    grid = previous.double().transpose(1, 2).unflatten(2, coarse)
    up = F.interpolate(grid, size=fine, mode="bilinear", align_corners=False)
    spectrum = dctn(up.numpy(), axes=(2, 3), norm="ortho")
    spectrum[:, :, : coarse[0], : coarse[1]] = dctn(grid.numpy(), axes=(2, 3), norm="ortho")
    prior = torch.from_numpy(np.asarray(idctn(spectrum, axes=(2, 3), norm="ortho")))
    return prior.flatten(2).transpose(1, 2)


def definition(case: Case, raw: Sequence[Tensor], beta: float) -> list[tuple[Tensor, float]]:
    """What should reach the sampling function at every draw, from what the official code computed.

    With it goes the largest value among the terms of the sum, which rounding errors are measured by.
    """
    expected = []
    before: Tensor | None = None  # of the step before, before tau, (B, cells, C)
    for draw, logits in enumerate(raw):
        step = min(draw, len(case.grids) - 1)
        tau = case.taus[step] if case.taus else 1.0
        cells = case.masks[draw - step] if case.masks and step == len(case.grids) - 1 else None
        count = cells.shape[1] if cells is not None else case.grids[step][0] * case.grids[step][1]
        own = logits.double().reshape(len(logits), count, -1) * tau
        prior = torch.zeros_like(own)
        if before is not None:
            prior = literal_prior(before, case.grids[step - 1], case.grids[step])
            if cells is not None:
                prior = prior.gather(1, cells[..., None].expand(-1, -1, prior.shape[2]))
        guided = own + beta * (own - prior) if before is not None else own
        largest = max((1 + beta) * own.abs().max().item(), beta * prior.abs().max().item()) / tau
        expected.append(((guided / tau).reshape(logits.shape), largest))
        if step < len(case.grids) - 1:
            before = own
    return expected


@contextlib.contextmanager
def watched(case: Case) -> Iterator[list[Tensor]]:
    """Copies of all logits that pass the sampling function's name, whoever stands there now."""
    found, seen = getattr(case.module, case.sampler), []

    def watch(logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(logits.clone())
        return found(logits, *args, **kwargs)

    setattr(case.module, case.sampler, watch)
    try:
        yield seen
    finally:
        setattr(case.module, case.sampler, found)


def run(case: Case, beta: float | None) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    """Picture, logits before and after SSG, and a random number drawn afterwards."""
    torch.manual_seed(0)
    np.random.seed(0)
    with contextlib.ExitStack() as stack:
        after = stack.enter_context(watched(case))
        before = after
        if beta is not None:
            stack.enter_context(guide(case.model, ScaledSpatialGuidance(beta)))
            before = stack.enter_context(watched(case))
        picture = case.generate()
    return picture, before, after, torch.rand(4)


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def check(case: Case, beta: float) -> tuple[str, bool]:
    """A row of the table, and whether everything holds."""
    original = getattr(case.module, case.sampler)
    attributes = dict(vars(case.model))
    try:
        plain = run(case, None)
    except RuntimeError as error:
        return f"{case.name:<40} the code itself does not run here: {str(error)[:60]}...", True
    zero = run(case, 0.0)
    guided = run(case, beta)
    again = run(case, None)
    identical = same([plain[0], plain[3], *plain[2]], [zero[0], zero[3], *zero[2]])
    restored = same([plain[0], plain[3]], [again[0], again[3]])
    restored &= getattr(case.module, case.sampler) is original and dict(vars(case.model)) == attributes
    if case.training:
        expected = [(logits.double(), logits.abs().max().item()) for logits in guided[1]]
    else:
        expected = definition(case, guided[1], beta)
    # In units of the rounding of the logits' own type.
    worst = max(
        (got.double() - want).abs().max().item() / (largest * torch.finfo(got.dtype).eps)
        for got, (want, largest) in zip(guided[2], expected, strict=True)
    )
    changed = not torch.equal(guided[0], plain[0])
    dtype = str(plain[2][0].dtype).removeprefix("torch.")
    row = (
        f"{case.name:<40} {len(plain[2]):>5}  {dtype:<9} {identical!s:<9} {worst:>10.2f}  "
        f"{changed!s:<7} {restored!s:<8}"
    )
    return row, identical and restored and worst < ROUNDINGS and changed != case.training


def commit(checkout: Path) -> str:
    done = subprocess.run(["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True)
    own = done.returncode == 0 and (checkout / ".git").exists()
    return done.stdout.strip() if own else "no git checkout"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("var", "hart", "infinity"):
        parser.add_argument(f"--{name}", type=Path, help="path of a checkout")
    parser.add_argument("--beta", type=float, default=0.6)
    args = parser.parse_args()
    makers = {"var": var_cases, "hart": hart_cases, "infinity": infinity_cases}
    chosen = {name: getattr(args, name) for name in makers if getattr(args, name)}
    if not chosen:
        parser.error("give at least one of --var, --hart, --infinity")

    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}, beta {args.beta}")
    for name, checkout in chosen.items():
        print(f"{name}: {commit(checkout)}")
    print(f"\n{'case':<40} draws  {'logits':<9} {'beta 0 ==':<9} {'error/eps':>10}  {'changed':<7} restored")
    good = True
    for name, checkout in chosen.items():
        install_stand_ins(name)
        chatter = io.StringIO()
        cases = makers[name](checkout)
        while True:
            with contextlib.redirect_stdout(chatter):
                case = next(cases, None)
            if case is None:
                break
            row, holds = check(case, args.beta)
            good &= holds
            print(row, flush=True)
    print("\neverything holds" if good else "\nNOT everything holds")
    sys.exit(not good)


if __name__ == "__main__":
    main()
