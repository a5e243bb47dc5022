"""Official VAR files: what they hold, and the sizes their tensors spell out.

Published files: ``var_d16.pth`` … ``var_d36.pth`` and ``vae_ch160v4096z32.pth`` in ``FoundationVision/var``.
Checkpoints of trainers, which nest, wrap and average the same tensors, are read as well; see
:mod:`nextscale.weights.nesting`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from nextscale.errors import CheckpointError
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig
from nextscale.nn.placement import Placement
from nextscale.scales import PRESETS, Grid, ScaleSchedule
from nextscale.weights.files import Module
from nextscale.weights.hub import download, is_repo_id
from nextscale.weights.nesting import Part, holds, read_part
from nextscale.weights.official import (
    as_checkpoint_error,
    count,
    is_sharded,
    load_checked,
    require,
    square_sides,
    told,
    weights_at,
)
from nextscale.weights.residual_tokenizer import tokenizer_sizes

OFFICIAL_REPO = "FoundationVision/var"
TOKENIZER_FILE = "vae_ch160v4096z32.pth"
TRANSFORMER_FILE = "var_d{depth}.pth"
DEPTHS = (16, 20, 24, 30, 36)

# Recomputed from the schedule or constant; a file may have them or not.
_BUFFERS = re.compile(
    r"^(lvl_1L|attn_bias_for_masking|blocks\.\d+\.attn\.zero_k_bias|quantize\.ema_vocab_hit_SV)$"
)
_TRANSFORMER_NAMES = frozenset({"class_emb.weight", "pos_start", "pos_1LC", "word_embed.weight"})
_TRANSFORMER = Part(_TRANSFORMER_NAMES, _BUFFERS)
_TOKENIZER = Part(
    frozenset({"encoder.conv_in.weight", "quant_conv.weight", "quantize.embedding.weight"}), _BUFFERS
)
# What tensors do not tell, by the names of the configurations.
_TRANSFORMER_SETTINGS = {"num_heads": int, "norm_eps": float}
_TOKENIZER_SETTINGS = {"quant_resi": float, "using_znorm": bool, "beta": float, "norm_groups": int}
_HEAD = 64  # channels of a head in all published files

PatchNums = Sequence[int | Grid]
Settings = Mapping[str, Any]


def recognises(path: Path) -> bool:
    """Whether a weight file, or a folder of several with an index, has the names of a VAR transformer."""
    return read_part(path, _TRANSFORMER, meta=True).keys() >= _TRANSFORMER_NAMES


def find_files(transformer: str | Path, tokenizer: str | Path | None, depth: int | None) -> tuple[Path, Path]:
    """The two files from paths, a folder that holds them, or a hub id; or folders of several files."""
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
    if len(found) == 1:
        return found[0]
    if not found and is_sharded(folder):
        return folder
    names = ", ".join(p.name for p in found) or "none"
    raise CheckpointError(
        f"{str(folder)!r} should hold one var_d*.pth, found {names}; say which with depth=, or name the file"
    )


def _beside(transformer: Path, tokenizer: str | Path | None) -> Path:
    """The tokenizer: given, in a given folder, beside the transformer, or in the same file."""
    if tokenizer is not None:
        path = Path(tokenizer)
        return weights_at(path, TOKENIZER_FILE) if path.is_dir() else path
    folders = [transformer, transformer.parent] if transformer.is_dir() else [transformer.parent]
    for path in (folder / TOKENIZER_FILE for folder in folders):
        if path.is_file():
            return path
    if holds(transformer, _TOKENIZER):  # as the official trainer's do
        return transformer
    raise CheckpointError(f"no {TOKENIZER_FILE} beside {transformer.name}; name the file with tokenizer=")


def load_transformer(
    path: Path,
    placement: Placement,
    patch_nums: PatchNums | None = None,
    *,
    settings: Settings | None = None,
    averaged: bool | None = None,
) -> VARTransformer:
    """An official transformer file -> the model, in evaluation mode.

    patch_nums: side of every scale (or ``(height, width)``), where the file does not tell.
    settings: ``num_heads`` and ``norm_eps``, which tensors do not tell; others are the tokenizer's.
    averaged: see :func:`~nextscale.weights.nesting.read_part`.
    Raises CheckpointError before anything is allocated if names or shapes are not those of a VAR transformer.
    """

    def read(meta: bool) -> dict[str, Tensor]:
        return read_part(path, _TRANSFORMER, averaged=averaged, meta=meta)

    check_settings(settings, path)
    config = infer_transformer(read(True), path, patch_nums, settings, lambda: read(False)["lvl_1L"])
    hint = "Is it a VAR transformer (var_d*.pth), whole and unmodified?"
    return _load(lambda: VARTransformer(config), read, path, placement, hint)


def load_tokenizer(
    path: Path,
    placement: Placement,
    patch_nums: PatchNums,
    *,
    settings: Settings | None = None,
    averaged: bool | None = None,
) -> VARTokenizer:
    """An official tokenizer file -> the model, in evaluation mode.

    patch_nums: side of every scale; a tokenizer file does not tell, its transformer does.
    settings: ``quant_resi``, ``using_znorm``, ``beta`` and ``norm_groups``, which tensors do not tell; others
        are the transformer's.
    averaged: as for the transformer, but a file with others only is no error: few tokenizers are averaged.
    Raises CheckpointError before anything is allocated if names or shapes are not those of VAR's tokenizer.
    """

    def read(meta: bool) -> dict[str, Tensor]:
        return read_part(path, _TOKENIZER, averaged=averaged, strict=False, meta=meta)

    check_settings(settings, path)
    config = infer_tokenizer(read(True), path, patch_nums, settings)
    hint = "Is it VAR's tokenizer (vae_ch160v4096z32.pth), whole and unmodified?"
    return _load(lambda: VARTokenizer(config), read, path, placement, hint)


def _load(
    make: Callable[[], Module],
    read: Callable[[bool], Mapping[str, Tensor]],
    path: Path,
    placement: Placement,
    hint: str,
) -> Module:
    def parameters(meta: bool) -> dict[str, Tensor]:
        return {k: v for k, v in read(meta).items() if not _BUFFERS.match(k)}

    return load_checked(make, parameters, placement, source=path.name, hint=hint)


def check_settings(settings: Settings | None, path: Path) -> None:
    """Raises CheckpointError, naming the known ones, for settings that a VAR does not have."""
    known = {**_TRANSFORMER_SETTINGS, **_TOKENIZER_SETTINGS}
    unknown = [name for name in settings or {} if name not in known]
    if unknown:
        raise CheckpointError(
            f"{path.name}: VAR has no setting {unknown[0]!r} that tensors do not tell; known: "
            f"{', '.join(known)}"
        )


def _settings(settings: Settings | None, kinds: Mapping[str, type], path: Path) -> dict[str, Any]:
    found = told(settings or {}, kinds, path, "correct settings={{{name!r}: ...}}")
    for name, value in found.items():
        if kinds[name] is int and value < 1:
            raise CheckpointError(f"{name} must be a positive whole number, got {value} in settings=")
    return found


def infer_transformer(
    shapes: Mapping[str, Tensor],
    path: Path,
    patch_nums: PatchNums | None = None,
    settings: Settings | None = None,
    levels: Callable[[], Tensor] | None = None,
) -> VARTransformerConfig:
    """Sizes and flags from names and shapes (meta tensors will do).

    patch_nums, settings: see :func:`load_transformer`. levels: reads the buffer of scale numbers, where
    shapes are all that was read.
    """
    needed = {"pos_start": 3, "pos_1LC": 3, "word_embed.weight": 2, "class_emb.weight": 2}
    needed |= {"lvl_embed.weight": 2, "head.weight": 2, "blocks.0.ffn.fc1.weight": 2}
    require(shapes, needed, path, "a VAR transformer (var_d*.pth)")
    width = shapes["pos_start"].shape[-1]
    temperature = shapes.get("blocks.0.attn.scale_mul_1H11")
    given = _settings(settings, _TRANSFORMER_SETTINGS, path)
    heads = _heads(given.pop("num_heads", None), shapes, width, path)
    sides = tuple(_patch_nums(shapes, path, patch_nums, levels))
    with as_checkpoint_error(path):
        return VARTransformerConfig(
            **given,
            vocab_size=shapes["head.weight"].shape[0],
            z_channels=shapes["word_embed.weight"].shape[1],
            num_classes=shapes["class_emb.weight"].shape[0] - 1,
            depth=count(shapes, r"blocks\.(\d+)\."),
            embed_dim=width,
            num_heads=heads,
            mlp_ratio=shapes["blocks.0.ffn.fc1.weight"].shape[0] / width,
            shared_aln="shared_ada_lin.1.weight" in shapes,
            attn_l2_norm=temperature is not None,
            patch_nums=sides,
        )


def _heads(given: int | None, shapes: Mapping[str, Tensor], width: int, path: Path) -> int:
    """By the learned temperatures, of which each head has one; plain attention does not tell."""
    temperature = shapes.get("blocks.0.attn.scale_mul_1H11")
    if temperature is not None:
        if given is not None and given != temperature.numel():
            raise CheckpointError(
                f"{path.name} has {temperature.numel()} heads, but settings= say num_heads = {given}; leave "
                f"it out"
            )
        return temperature.numel()
    if given is None and width % _HEAD and "blocks.0.attn.mat_qkv.weight" in shapes:
        raise CheckpointError(
            f"the tensors of {path.name} do not tell num_heads, and its width of {width} is no multiple of "
            f"{_HEAD}, the width of a head in all published files; give settings={{'num_heads': ...}}"
        )
    return given or max(width // _HEAD, 1)


def _patch_nums(
    shapes: Mapping[str, Tensor],
    path: Path,
    given: PatchNums | None,
    levels: Callable[[], Tensor] | None,
) -> PatchNums:
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
    told_by_buffer = False
    if "lvl_1L" in shapes:
        counts = _counts(shapes["lvl_1L"] if levels is None else levels(), steps, length)
        told_by_buffer = bool(counts)
        sides = square_sides(counts) if told_by_buffer else None
        if sides is not None:
            return sides
    for sides_known in PRESETS.values():
        is_this = (len(sides_known), sum(p * p for p in sides_known)) == (steps, length)
        if is_this and not told_by_buffer:
            return sides_known
    raise CheckpointError(
        f"{path.name} has {steps} scales and {length} tokens"
        + (f", {counts} a scale, which tells no shapes (4 can be 2x2 and 1x4); " if told_by_buffer else "")
        + ("" if told_by_buffer else ", which is no published schedule; ")
        + "pass patch_nums=[...], the side of every scale, or (height, width) where it is not square"
    )


def _counts(buffer: Tensor, steps: int, length: int) -> list[int]:
    """Tokens of every scale from the scale of every token; empty where it cannot be."""
    level = buffer.flatten().long()
    if len(level) != length or int(level[0]) != 0 or int(level[-1]) != steps - 1:
        return []
    if bool((level.diff() < 0).any()):  # tokens of a scale are together, coarse scales first
        return []
    counts: list[int] = level.bincount(minlength=steps).tolist()
    return counts if counts == sorted(counts) and counts[0] else []


def infer_tokenizer(
    shapes: Mapping[str, Tensor], path: Path, patch_nums: PatchNums, settings: Settings | None = None
) -> VARTokenizerConfig:
    """Sizes from names and shapes (meta tensors will do).

    settings: see :func:`load_tokenizer`. What neither they nor tensors tell has the published value: the
    mixing ratio of phi is 0.5, codes are chosen by Euclidean distance.
    """
    sizes = tokenizer_sizes(shapes, path, "VAR's tokenizer (vae_ch160v4096z32.pth)")
    sizes |= _settings(settings, _TOKENIZER_SETTINGS, path)
    with as_checkpoint_error(path):
        return VARTokenizerConfig(**sizes, patch_nums=tuple(patch_nums))
