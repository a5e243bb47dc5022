"""Official VAR files: what they hold, and the sizes their tensors spell out.

Published files: ``var_d16.pth`` … ``var_d36.pth`` and ``vae_ch160v4096z32.pth`` in ``FoundationVision/var``.
Checkpoints of the official trainer, which nest the same state dicts, are read as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from nextscale.errors import CheckpointError
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig
from nextscale.nn.placement import Placement
from nextscale.scales import PRESETS, Grid, ScaleSchedule
from nextscale.weights.files import Module, read_weights
from nextscale.weights.hub import download, is_repo_id
from nextscale.weights.official import as_checkpoint_error, count, load_checked, read_official, require
from nextscale.weights.residual_tokenizer import tokenizer_sizes

OFFICIAL_REPO = "FoundationVision/var"
TOKENIZER_FILE = "vae_ch160v4096z32.pth"
TRANSFORMER_FILE = "var_d{depth}.pth"
DEPTHS = (16, 20, 24, 30, 36)

# Recomputed from the schedule or constant; a file may have them or not.
_BUFFERS = re.compile(
    r"^(lvl_1L|attn_bias_for_masking|blocks\.\d+\.attn\.zero_k_bias|quantize\.ema_vocab_hit_SV)$"
)
_TRANSFORMER_NEST = ("trainer", "var_wo_ddp")
_TOKENIZER_NEST = ("trainer", "vae_local")

PatchNums = Sequence[int | Grid]


def recognises(path: Path) -> bool:
    """Whether a weight file, or a folder of several with an index, has the names of a VAR transformer."""
    names = read_official(path, unwrap=_TRANSFORMER_NEST, meta=True).keys()
    return {"class_emb.weight", "pos_start", "pos_1LC", "word_embed.weight"} <= names


def find_files(transformer: str | Path, tokenizer: str | Path | None, depth: int | None) -> tuple[Path, Path]:
    """The two files from paths, a folder that holds them, or a hub id."""
    path = Path(transformer)
    if path.is_dir():
        chosen = _pick_depth(path, depth)
        return chosen, _beside(chosen, tokenizer)
    if path.is_file():
        return path, _beside(path, tokenizer)
    if not is_repo_id(str(transformer)):
        raise CheckpointError(f"no such file or folder: {str(transformer)!r}")
    if depth not in DEPTHS:
        raise CheckpointError(
            f"{str(transformer)!r} is no file or folder here; for a hub repository, depth must be one of "
            f"{DEPTHS}, got {depth}"
        )
    repo = str(transformer)
    vae = Path(tokenizer) if tokenizer else download(repo, TOKENIZER_FILE)
    return download(repo, TRANSFORMER_FILE.format(depth=depth)), vae


def _pick_depth(folder: Path, depth: int | None) -> Path:
    if depth is not None:
        return folder / TRANSFORMER_FILE.format(depth=depth)
    found = sorted(folder.glob("var_d*.pth"))
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise CheckpointError(
            f"{str(folder)!r} should hold one var_d*.pth, found {names}; say which with depth="
        )
    return found[0]


def _beside(transformer: Path, tokenizer: str | Path | None) -> Path:
    if tokenizer is not None:
        path = Path(tokenizer)
        return path / TOKENIZER_FILE if path.is_dir() else path
    path = transformer.parent / TOKENIZER_FILE
    if not path.is_file():
        raise CheckpointError(f"no {TOKENIZER_FILE} beside {transformer.name}; name the file with tokenizer=")
    return path


def load_transformer(path: Path, placement: Placement, patch_nums: PatchNums | None = None) -> VARTransformer:
    """An official transformer file -> the model, in evaluation mode.

    patch_nums: side of every scale (or ``(height, width)``), where the file does not tell.
    Raises CheckpointError before anything is allocated if names or shapes are not those of a VAR transformer.
    """
    config = infer_transformer(read_weights(path, unwrap=_TRANSFORMER_NEST, meta=True), path, patch_nums)
    hint = "Is it a VAR transformer (var_d*.pth), whole and unmodified?"
    return _load(lambda: VARTransformer(config), path, _TRANSFORMER_NEST, placement, hint)


def load_tokenizer(path: Path, placement: Placement, patch_nums: PatchNums) -> VARTokenizer:
    """An official tokenizer file -> the model, in evaluation mode.

    patch_nums: side of every scale; a tokenizer file does not tell, its transformer does.
    Raises CheckpointError before anything is allocated if names or shapes are not those of VAR's tokenizer.
    """
    config = infer_tokenizer(read_weights(path, unwrap=_TOKENIZER_NEST, meta=True), path, patch_nums)
    hint = "Is it VAR's tokenizer (vae_ch160v4096z32.pth), whole and unmodified?"
    return _load(lambda: VARTokenizer(config), path, _TOKENIZER_NEST, placement, hint)


def _load(
    make: Callable[[], Module], path: Path, nest: Sequence[str], placement: Placement, hint: str
) -> Module:
    def read(meta: bool) -> dict[str, Tensor]:
        tensors = read_weights(path, unwrap=nest, meta=meta)
        return {k: v for k, v in tensors.items() if not _BUFFERS.match(k)}

    return load_checked(make, read, placement, source=path.name, hint=hint)


def infer_transformer(
    shapes: Mapping[str, Tensor], path: Path, patch_nums: PatchNums | None = None
) -> VARTransformerConfig:
    """Sizes and flags from names and shapes (meta tensors will do)."""
    needed = {"pos_start": 3, "pos_1LC": 3, "word_embed.weight": 2, "class_emb.weight": 2}
    needed |= {"lvl_embed.weight": 2, "head.weight": 2, "blocks.0.ffn.fc1.weight": 2}
    require(shapes, needed, path, "a VAR transformer (var_d*.pth)")
    width = shapes["pos_start"].shape[-1]
    temperature = shapes.get("blocks.0.attn.scale_mul_1H11")
    sides = tuple(_patch_nums(shapes, path, patch_nums))
    with as_checkpoint_error(path):
        return VARTransformerConfig(
            vocab_size=shapes["head.weight"].shape[0],
            z_channels=shapes["word_embed.weight"].shape[1],
            num_classes=shapes["class_emb.weight"].shape[0] - 1,
            depth=count(shapes, r"blocks\.(\d+)\."),
            embed_dim=width,
            num_heads=None if temperature is None else temperature.numel(),
            mlp_ratio=shapes["blocks.0.ffn.fc1.weight"].shape[0] / width,
            shared_aln="shared_ada_lin.1.weight" in shapes,
            attn_l2_norm=temperature is not None,
            patch_nums=sides,
        )


def _patch_nums(shapes: Mapping[str, Tensor], path: Path, given: PatchNums | None) -> PatchNums:
    """Given, or spelled out by the buffer of scale numbers, or the published list of this length."""
    steps, length = shapes["lvl_embed.weight"].shape[0], shapes["pos_1LC"].shape[1]
    if given is not None:
        schedule = ScaleSchedule.from_sides(given)
        if (schedule.num_steps, schedule.num_tokens) != (steps, length):
            raise CheckpointError(
                f"patch_nums {list(given)} make {schedule.num_steps} scales and {schedule.num_tokens} "
                f"tokens, but {path.name} has {steps} scales and {length} tokens"
            )
        return given
    if "lvl_1L" in shapes:
        level = read_weights(path, unwrap=_TRANSFORMER_NEST)["lvl_1L"].flatten().long()
        sides = _sides(level, steps, length)
        if sides:
            return sides
    for sides_known in PRESETS.values():
        if (len(sides_known), sum(p * p for p in sides_known)) == (steps, length):
            return sides_known
    raise CheckpointError(
        f"{path.name} has {steps} scales and {length} tokens, which is no published schedule; "
        f"pass patch_nums=[...], the side of every scale"
    )


def _sides(level: Tensor, steps: int, length: int) -> list[int]:
    """Sides of square scales from the scale of every token, int64 ``(n,)``; empty where they are none."""
    if len(level) != length or int(level[0]) != 0 or int(level[-1]) != steps - 1:
        return []
    if bool((level.diff() < 0).any()):  # tokens of a scale are together, coarse scales first
        return []
    counts = level.bincount(minlength=steps).tolist()
    sides = [math.isqrt(n) for n in counts]
    return sides if counts == sorted(counts) and [s * s for s in sides] == counts and sides[0] else []


def infer_tokenizer(shapes: Mapping[str, Tensor], path: Path, patch_nums: PatchNums) -> VARTokenizerConfig:
    """Sizes from names and shapes (meta tensors will do).

    What tensors cannot tell has the published value: the mixing ratio of phi is 0.5, codes are chosen by
    Euclidean distance.
    """
    sizes = tokenizer_sizes(shapes, path, "VAR's tokenizer (vae_ch160v4096z32.pth)")
    with as_checkpoint_error(path):
        return VARTokenizerConfig(**sizes, patch_nums=tuple(patch_nums))
