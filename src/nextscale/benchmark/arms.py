"""What is timed: generations of a pipeline, SSG alone, the machine's own limits, and the official code."""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import io
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.benchmark.timing import Seconds
from nextscale.errors import InvalidArgumentError
from nextscale.families.var.pipeline import VARPipeline
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig
from nextscale.guidance.base import CONDITIONAL, GuidanceStep
from nextscale.guidance.ssg import ScaledSpatialGuidance
from nextscale.kernels import linear
from nextscale.nn.placement import Placement
from nextscale.scales import PRESETS, Grid

Prior = Callable[[Tensor, Grid, Grid], Tensor]

ONCE = "operators made once"
HEAD = 64  # channels of the published models per layer of depth
REDUCTION = 16


def random_pipeline(depth: int, size: int, placement: Placement) -> VARPipeline:
    """A VAR of the published shape with random weights: the arithmetic does not depend on their values.

    size: pixels per side, 256, 512 or 1024.
    Raises InvalidArgumentError for a size without a known list of scales.
    """
    transformer_config, tokenizer_config = published_sizes(depth, size)
    generator = torch.Generator(placement.device).manual_seed(0)
    with torch.device("meta"):
        modules: tuple[nn.Module, ...] = (VARTransformer(transformer_config), VARTokenizer(tokenizer_config))
    for module in modules:
        module.to_empty(device=placement.device)
        for name, parameter in module.named_parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            with torch.no_grad():
                parameter.normal_(0, 0.5 / fan_in**0.5 if "emb" not in name else 0.5, generator=generator)
        module.to(placement.dtype).eval().requires_grad_(False)
        nn.utils.convert_conv2d_weight_memory_format(module, torch.channels_last)
    return VARPipeline(*modules, name=f"random VAR d{depth}")  # type: ignore[arg-type]


def published_sizes(depth: int, size: int) -> tuple[VARTransformerConfig, VARTokenizerConfig]:
    """Sizes of the published model of this depth, with the known scales of a picture size."""
    known = {sides[-1] * REDUCTION: sides for sides in PRESETS.values()}
    if size not in known or size < 256:
        sizes = ", ".join(str(s) for s in sorted(known) if s >= 256)
        raise InvalidArgumentError(f"size must be one of {sizes}, got {size}")
    if depth < 1:
        raise InvalidArgumentError(f"depth must be at least 1, got {depth}")
    sides = known[size]
    transformer = VARTransformerConfig(
        depth=depth, embed_dim=HEAD * depth, shared_aln=depth == 36, patch_nums=sides
    )
    return transformer, VARTokenizerConfig(patch_nums=sides)


def generation(
    pipe: VARPipeline, batch: int, ssg: ScaledSpatialGuidance | None, **settings: Any
) -> Callable[[], Seconds]:
    """One batch of pictures, with the decoder's share of the time."""
    labels = [i % pipe.transformer.config.num_classes for i in range(batch)]
    tokenizer = pipe.tokenizer
    decode = tokenizer.decode_latent

    def run() -> Seconds:
        phases = _Phases(pipe.device)

        def timed(latent: Tensor) -> Tensor:
            phases.mark()
            pictures = decode(latent)
            phases.mark()
            return pictures

        start = _now(pipe.device)
        # Not by hooks, which would keep it from being recorded.
        tokenizer.decode_latent = timed
        try:
            pipe(labels, ssg=ssg, seed=0, batch_size=batch, output_type="pt", **settings)
        finally:
            del tokenizer.decode_latent
        total, decoder = _now(pipe.device) - start, phases.seconds()
        return {"total": total, "decoder": decoder, "transformer": total - decoder}

    return run


class _Phases:
    """Seconds between every first and second mark, without waiting for the device at any."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.marks = device, list[Any]()

    def mark(self) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> float:
        pairs = zip(self.marks[::2], self.marks[1::2], strict=True)
        if self.device.type == "cuda":
            return sum(first.elapsed_time(second) for first, second in pairs) / 1000
        return sum(second - first for first, second in pairs)


def spatial_arms(
    grids: Sequence[Grid], batch: int, vocabulary: int, device: torch.device
) -> dict[str, Callable[[], Seconds]]:
    """SSG on all steps of a generation: as the library does it, and by transforms at every call.

    The transforms are matrix products with cosines made for the purpose, and, on a CPU and where it is
    installed, scipy's.
    """
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(batch, h * w, vocabulary, generator=generator).to(device) for h, w in grids]
    ssg = ScaledSpatialGuidance(beta=0.6)

    def fused() -> Seconds:
        start = _now(device)
        state = ssg.begin(grids)
        for index, values in enumerate(logits):
            state(GuidanceStep(index, tuple(grids)), {CONDITIONAL: values})
        state.end()
        return {"total": _now(device) - start}

    def every_call(prior: Prior) -> Callable[[], Seconds]:
        def run() -> Seconds:
            start = _now(device)
            for index in range(1, len(grids)):
                made = prior(logits[index - 1], grids[index - 1], grids[index])
                torch.add(logits[index], logits[index] - made, alpha=0.6)
            return {"total": _now(device) - start}

        return run

    arms = {ONCE: fused, "matrix products at every call": every_call(literal_prior)}
    if device.type == "cpu" and importlib.util.find_spec("scipy"):
        arms["scipy.fft at every call"] = every_call(scipy_prior)
    return arms


def literal_prior(coarse: Tensor, before: Grid, grid: Grid) -> Tensor:
    """DSE by its definition (arXiv 2602.05534): upsample, transform, replace the low block, transform back.

    ``(B, h w, V)`` on the grid ``before`` -> ``(B, H W, V)`` on ``grid``; the orthonormal DCT as two matrix
    products, with matrices made here and now.
    """
    low = coarse.transpose(1, 2).unflatten(2, before)
    up = F.interpolate(low, size=grid, mode="bilinear", align_corners=False)
    rows, columns = (_dct(n, low) for n in grid)
    spectrum = rows @ up @ columns.T
    h, w = before
    spectrum[..., :h, :w] = _dct(h, low) @ low @ _dct(w, low).T
    return (rows.T @ spectrum @ columns).flatten(2).transpose(1, 2)


def scipy_prior(coarse: Tensor, before: Grid, grid: Grid) -> Tensor:
    """The same by the transforms of ``scipy.fft``."""
    from scipy.fft import dctn, idctn

    low = coarse.transpose(1, 2).unflatten(2, before)
    up = F.interpolate(low, size=grid, mode="bilinear", align_corners=False)
    spectrum = dctn(up.numpy(), axes=(2, 3), norm="ortho")
    h, w = before
    spectrum[..., :h, :w] = dctn(low.numpy(), axes=(2, 3), norm="ortho")
    return torch.from_numpy(idctn(spectrum, axes=(2, 3), norm="ortho")).flatten(2).transpose(1, 2)


def decoded_psnr(pipe: VARPipeline, tokens: Sequence[Tensor]) -> float:
    """In dB, of pictures decoded in the pipeline's dtype to those of the same tokens in float32."""
    exact = copy.deepcopy(pipe.tokenizer).float()
    half, full = ((t.decode(tokens).float() + 1) / 2 for t in (pipe.tokenizer, exact))
    return -10 * math.log10(max(float((half - full).square().mean()), 1e-30))


def _dct(n: int, like: Tensor) -> Tensor:
    k = torch.arange(n, dtype=torch.float64, device="cpu")
    matrix = torch.cos(torch.pi * (k[None] + 0.5) * k[:, None] / n) * (2 / n) ** 0.5
    matrix[0] /= 2**0.5
    return matrix.to(like)


def limits(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> dict[str, float]:
    """The most operations a second this machine was seen to do in a large product, and in a convolution.

    The product by way of the library's kernels, and as PyTorch does it, for comparison.
    """
    rows, inner, outer, maps = (2048, 1024, 4096, 1) if device.type == "cpu" else (8192, 8192, 8192, 32)
    x = torch.randn(rows, inner, device=device, dtype=dtype)
    w = torch.randn(outer, inner, device=device, dtype=dtype)
    picture = torch.randn(maps, 320, 64, 64, device=device, dtype=dtype)
    picture = picture.contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(320, 320, 3, 3, device=device, dtype=dtype)
    kernel = kernel.contiguous(memory_format=torch.channels_last)
    product, convolution = 2 * rows * inner * outer, 2 * maps * 320 * 320 * 9 * 64 * 64
    return {
        "matrix_product": product / _fastest(lambda: linear(x, w), device, repeats),
        "matrix_product_by_torch": product / _fastest(lambda: F.linear(x, w), device, repeats),
        "convolution": convolution / _fastest(lambda: F.conv2d(picture, kernel, padding=1), device, repeats),
    }


def _fastest(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    seconds = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            start = _now(device)
            run()
            seconds.append(_now(device) - start)
    return min(seconds[1:])


def official(
    checkout: Path,
    pipe: VARPipeline,
    batch: int,
    *,
    cfg: float,
    top_k: int,
    top_p: float,
    half: bool | None = None,
) -> Callable[[], tuple[Seconds, Tensor]]:
    """The official code in a checkout of FoundationVision/VAR, with a copy of the pipeline's weights.

    half: under autocast to the pipeline's dtype, as its own scripts do, or in float32; ``None`` as the
        pipeline is. Returns seconds and the pictures.
    Raises InvalidArgumentError if there is no such code, or it does not take the weights.
    """
    config, vae_config = pipe.transformer.config, pipe.tokenizer.config
    try:
        with _imported(checkout):
            vae, var = importlib.import_module("models").build_vae_var(
                str(pipe.device),
                config.patch_nums,
                V=config.vocab_size,
                Cvae=config.z_channels,
                ch=vae_config.ch,
                share_quant_resi=vae_config.share_quant_resi,
                num_classes=config.num_classes,
                depth=config.depth,
                shared_aln=config.shared_aln,
                attn_l2_norm=config.attn_l2_norm,
            )
    except (ImportError, AttributeError) as error:
        raise InvalidArgumentError(
            f"{str(checkout)!r} is no checkout of FoundationVision/VAR that can be imported here: {error}"
        ) from None
    for theirs, ours in ((vae, pipe.tokenizer), (var, pipe.transformer)):
        refused = f"the code in {str(checkout)!r} does not take these weights: "
        try:
            odd = theirs.load_state_dict({k: v.float() for k, v in ours.state_dict().items()}, strict=False)
        except RuntimeError as error:  # a tensor of another shape
            raise InvalidArgumentError(refused + str(error)) from None
        parameters = {name for name, _ in theirs.named_parameters()}
        if odd.unexpected_keys or parameters & set(odd.missing_keys):
            raise InvalidArgumentError(refused + str(odd))
        theirs.to(pipe.device).eval()
    labels = torch.tensor([i % config.num_classes for i in range(batch)], device=pipe.device)
    dtype = pipe.transformer.dtype
    casting = dtype != torch.float32 if half is None else half

    def run() -> tuple[Seconds, Tensor]:
        start = _now(pipe.device)
        with (
            torch.inference_mode(),
            torch.autocast(pipe.device.type, dtype=dtype if casting else None, enabled=casting),
        ):
            images = var.autoregressive_infer_cfg(
                B=batch, label_B=labels, g_seed=0, cfg=cfg, top_k=top_k, top_p=top_p
            )
        return {"total": _now(pipe.device) - start}, images

    return run


@contextlib.contextmanager
def _imported(checkout: Path) -> Iterator[None]:
    """The checkout first on the path, and what it prints not on the screen."""
    before: Mapping[str, Any] = dict(sys.modules)
    sys.path.insert(0, str(checkout))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        sys.path.remove(str(checkout))
        for name in set(sys.modules) - set(before):  # "models" and "utils" belong to many
            if name.partition(".")[0] in ("models", "utils", "dist"):
                del sys.modules[name]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _now(device: torch.device) -> float:
    _wait(device)
    return time.perf_counter()
