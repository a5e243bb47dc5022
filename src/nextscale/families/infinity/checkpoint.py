"""Official Infinity files: what they hold, and the sizes their tensors spell out.

Published in ``FoundationVision/Infinity``: transformers as one file or as a folder of shards, and one
tokenizer per number of bits. Checkpoints of trainers, which nest, wrap and average the same tensors, are read
too; see :mod:`nextscale.weights.nesting`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from nextscale.errors import CheckpointError
from nextscale.families.infinity.tokenizer import InfinityTokenizer, InfinityTokenizerConfig
from nextscale.families.infinity.transformer import InfinityTransformer, InfinityTransformerConfig
from nextscale.nn.placement import Placement
from nextscale.scales import Grid, ScaleSchedule
from nextscale.weights.hub import download, is_repo_id
from nextscale.weights.nesting import Part, holds, read_part
from nextscale.weights.official import (
    as_checkpoint_error,
    count,
    download_sharded,
    is_sharded,
    load_checked,
    require,
)

OFFICIAL_REPO = "FoundationVision/Infinity"


@dataclass(frozen=True)
class Release:
    """A published model: its files, and the settings its authors use it with.

    transformer: a file, or a folder of shards. pixels: the budget it was trained for last.
    """

    transformer: str
    tokenizer: str
    pixels: str
    guidance_scale: float
    temperature: float

    @property
    def defaults(self) -> dict[str, float | str]:
        return {
            "pixels": self.pixels,
            "guidance_scale": self.guidance_scale,
            "temperature": self.temperature,
        }


# File names and settings of the 125M model come from third-party code, not from its authors.
RELEASES: MappingProxyType[str, Release] = MappingProxyType(
    {
        "125m": Release("infinity_125M_256x256.pth", "infinity_vae_d16.pth", "0.06M", 4.0, 0.5),
        "2b": Release("infinity_2b_reg.pth", "infinity_vae_d32reg.pth", "1M", 3.0, 0.5),
        "8b": Release("infinity_8b_weights", "infinity_vae_d56_f8_14_patchify.pth", "1M", 3.0, 1.0),
        "8b-512": Release(
            "infinity_8b_512x512_weights", "infinity_vae_d56_f8_14_patchify.pth", "0.25M", 3.0, 1.0
        ),
    }
)

# The official scripts and the published file differ in an underscore.
_OTHER_SPELLINGS = {"infinity_vae_d32reg.pth": "infinity_vae_d32_reg.pth"}

# Recomputed from the schedule or constant; a file may have them or not.
_BUFFERS = re.compile(
    r"(^|\.)(lvl_1L|attn_bias_for_masking|Infinity_visible_kvlen|Infinity_invisible_qlen|zero_k_bias)$"
)
_TRANSFORMER_NAMES = frozenset({"cfg_uncond", "text_norm.weight", "word_embed.weight"})
_TRANSFORMER_PART = Part(_TRANSFORMER_NAMES, _BUFFERS)
# The official code takes what lies under "vae", also where there is an "ema" beside it.
_TOKENIZER_PART = Part(
    frozenset(
        f"{layer}{inner}.weight"
        for layer in ("encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "decoder.conv_out")
        for inner in ("", ".conv")
    ),
    re.compile(r"(^|\.)(mask|quantize|quantizer|disc)\b"),
    usual="vae",
    spellings=2,
)
# Files have block_chunks.0.module.1, of which the module is a wrapper's word, and is taken off as such.
_CHUNK = re.compile(r"^block_chunks\.(\d+)\.(?:module\.)?(\d+)\.")
# Newer tokenizer files have one more level: conv_in.conv.weight for conv_in.weight, and norms likewise.
_INNER = re.compile(r"\.(conv|norm)\.(weight|bias)$")
_LAYER = re.compile(r"(conv\d*|conv_in|conv_out|nin_shortcut|norm\d*|norm_out)$")

_TRANSFORMER = "an Infinity transformer (infinity_2b_reg.pth, say)"
_TOKENIZER = "an Infinity tokenizer (infinity_vae_d32reg.pth, say)"
# Tensors that give other kinds of files away.
_CODEBOOKS = ("quantize.embedding.weight", "vae.quantize.embedding.weight")
_OTHERS = {
    **dict.fromkeys(_CODEBOOKS, "the tokenizer of VAR or HART"),
    "class_emb.weight": "a VAR transformer",
    "context_embed.weight": "a HART transformer",
    "cfg_uncond": "an Infinity transformer",
    "encoder.conv_in.weight": "an Infinity tokenizer",
    "encoder.conv_in.conv.weight": "an Infinity tokenizer",
}


# ------------------------------------------------------------------ finding files


def recognises(path: Path) -> bool:
    """Whether a weight file, or a folder of several with an index, has an Infinity transformer's names."""
    return read_part(path, _TRANSFORMER_PART, meta=True).keys() >= _TRANSFORMER_NAMES


def find_files(
    transformer: str | Path, tokenizer: str | Path | None = None, model: str | None = None
) -> tuple[Path, Path]:
    """The two files from paths, a folder that holds them, or a hub id.

    transformer: a file, a folder of shards, a folder with released files in it, or a hub id.
    tokenizer: its file, or a folder with it; looked for beside the transformer when left out.
    model: one of :data:`RELEASES`, for a hub id or a folder with several.

    Raises CheckpointError saying what is missing, and ModelNotFoundError if a download fails.
    """
    if model is not None and model not in RELEASES:
        raise CheckpointError(f"unknown Infinity model {model!r}; known: {', '.join(RELEASES)}")
    path = Path(transformer)
    if not path.exists():
        return _download(str(transformer), tokenizer, model)
    if path.is_dir() and not is_sharded(path):
        path = path / RELEASES[model or _only_release(path)].transformer
    if not path.exists():
        raise CheckpointError(f"no such file or folder: {str(path)!r}")
    return path, _tokenizer_file(path, tokenizer, RELEASES[model] if model else release_of(path))


def _download(repo: str, tokenizer: str | Path | None, model: str | None) -> tuple[Path, Path]:
    if not is_repo_id(repo):
        raise CheckpointError(f"no such file or folder: {repo!r}")
    if model is None:
        raise CheckpointError(
            f"{repo!r} is no file or folder here; for a hub repository, say which model with model=, one of "
            f"{', '.join(RELEASES)}"
        )
    release = RELEASES[model]
    single = release.transformer.endswith(".pth")
    given = tokenizer is not None
    vae = _tokenizer_file(Path(), tokenizer, release) if given else download(repo, release.tokenizer)
    return (download if single else download_sharded)(repo, release.transformer), vae


def _only_release(folder: Path) -> str:
    found = [name for name, release in RELEASES.items() if (folder / release.transformer).exists()]
    if len(found) != 1:
        listed = ", ".join(found) or "none of " + ", ".join(r.transformer for r in RELEASES.values())
        raise CheckpointError(
            f"{str(folder)!r} should hold one released model, found {listed}; say which with model=, "
            f"or name the file"
        )
    return found[0]


def release_of(transformer: Path) -> Release | None:
    """The released model that a file or folder of this name is."""
    return next((r for r in RELEASES.values() if r.transformer == transformer.name), None)


def _tokenizer_file(transformer: Path, tokenizer: str | Path | None, release: Release | None) -> Path:
    """Given, or the release's, or the only one there is, beside the transformer or in a given folder."""
    folder = transformer.absolute().parent if tokenizer is None else Path(tokenizer)
    if folder.is_file() or (tokenizer is not None and is_sharded(folder)):
        return folder
    if not folder.is_dir():
        raise CheckpointError(f"no such file or folder: {str(tokenizer)!r}")
    expected = release.tokenizer if release else None
    for name in (expected, _OTHER_SPELLINGS.get(expected)) if expected else ():
        if name and (folder / name).is_file():
            return folder / name
    found = sorted(folder.glob("infinity_vae_*.pth"))
    if expected is None and len(found) == 1:
        return found[0]
    if tokenizer is None and not found and holds(transformer, _TOKENIZER_PART):
        return transformer  # a checkpoint of the official trainer holds both
    place = f"beside {transformer.name}" if tokenizer is None else f"in {str(tokenizer)!r}"
    there = ", ".join(f.name for f in found) or "none"
    wanted = expected or "single infinity_vae_*.pth"
    raise CheckpointError(f"no {wanted} {place}, found {there}; name the file with tokenizer=")


# ------------------------------------------------------------------ transformer


def load_transformer(
    path: Path, placement: Placement, *, averaged: bool | None = None
) -> InfinityTransformer:
    """An official transformer, a file or a folder of shards -> the model, in evaluation mode.

    averaged: see :func:`~nextscale.weights.nesting.read_part`.
    Raises CheckpointError before anything is allocated if names or shapes are not those of the family.
    """
    config = infer_transformer(_transformer_tensors(path, averaged, True), path)
    return load_checked(
        lambda: InfinityTransformer(config),
        lambda meta: _transformer_tensors(path, averaged, meta),
        placement,
        source=path.name,
        hint="Is it an Infinity transformer, whole and unmodified?",
    )


def _transformer_tensors(path: Path, averaged: bool | None, meta: bool) -> dict[str, Tensor]:
    """By the model's names: blocks counted through, buffers left out, temperatures of one shape."""
    tensors = read_part(path, _TRANSFORMER_PART, averaged=averaged, meta=meta)
    per_chunk = 1 + max((int(m[2]) for name in tensors if (m := _CHUNK.match(name))), default=0)
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if _BUFFERS.search(name):
            continue
        chunk = _CHUNK.match(name)
        if chunk:
            name = f"blocks.{int(chunk[1]) * per_chunk + int(chunk[2])}.{name[chunk.end() :]}"
        if name.endswith("scale_mul_1H11") and tensor.ndim == 4:
            tensor = tensor.reshape(1, -1, 1, 1)  # (1, 1, H, 1) where a flash kernel was trained with
        named[name] = tensor
    return named


def infer_transformer(shapes: Mapping[str, Tensor], path: Path) -> InfinityTransformerConfig:
    """Sizes from the model's names and shapes (meta tensors will do)."""
    block = "blocks.0."
    needed = {"cfg_uncond": 2, "lvl_embed.weight": 2, "word_embed.weight": 2, "text_norm.weight": 1}
    needed |= {"text_proj_for_sos.ca.mat_q": 3, block + "ffn.fc1.weight": 2, block + "sa.scale_mul_1H11": 4}
    require(shapes, needed, path, _TRANSFORMER, cause=_cause(shapes, "cfg_uncond"))
    width, bits = shapes["word_embed.weight"].shape
    with as_checkpoint_error(path):
        return InfinityTransformerConfig(
            bits=bits,
            depth=count(shapes, r"blocks\.(\d+)\."),
            embed_dim=width,
            num_heads=shapes[block + "sa.scale_mul_1H11"].numel(),
            ffn_dim=shapes[block + "ffn.fc1.weight"].shape[0],
            text_dim=shapes["text_norm.weight"].shape[0],
            text_length=shapes["cfg_uncond"].shape[0],
            pool_heads=shapes["text_proj_for_sos.ca.mat_q"].shape[1],
            levels=shapes["lvl_embed.weight"].shape[0],
        )


# ------------------------------------------------------------------ tokenizer


def load_tokenizer(
    path: Path,
    placement: Placement,
    *,
    token_bits: int | None = None,
    patch_nums: Sequence[int | Grid] | None = None,
    averaged: bool | None = None,
) -> InfinityTokenizer:
    """An official tokenizer file -> the model, in evaluation mode.

    token_bits: bits per token of the transformer it is used with, which tells spatial patchify; ``None`` is
        those of a cell. patch_nums: side (or ``(height, width)``) of every scale of the transformer's grid,
        for a model with one schedule of its own.
    averaged: as for the transformer, but a file with others only is no error, and ``None`` takes what lies
        under ``vae`` where a file has that, as the official code does.
    Raises CheckpointError before anything is allocated if names or shapes are not those of the family, or
    the bits are not those of the transformer.
    """
    shapes = _tokenizer_tensors(path, averaged, True)
    config = infer_tokenizer(shapes, path, token_bits=token_bits, patch_nums=patch_nums)
    return load_checked(
        lambda: InfinityTokenizer(config),
        lambda meta: _parameters(_tokenizer_tensors(path, averaged, meta)),
        placement,
        source=path.name,
        hint="Is it an Infinity tokenizer, whole and unmodified?",
    )


def _tokenizer_tensors(path: Path, averaged: bool | None, meta: bool) -> dict[str, Tensor]:
    """By the model's names, which are one level shorter than those of the files."""
    tensors = read_part(path, _TOKENIZER_PART, averaged=averaged, strict=False, meta=meta)
    return {_outer(name): tensor for name, tensor in tensors.items()}


def _parameters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what only training needs, and what the bits follow from."""
    return {n: t for n, t in tensors.items() if n.startswith(("encoder.", "decoder."))}


def _outer(name: str) -> str:
    inner = _INNER.search(name)
    if inner and _LAYER.search(name[: inner.start()]):
        return f"{name[: inner.start()]}.{inner[2]}"
    return name


def infer_tokenizer(
    shapes: Mapping[str, Tensor],
    path: Path,
    *,
    token_bits: int | None = None,
    patch_nums: Sequence[int | Grid] | None = None,
) -> InfinityTokenizerConfig:
    """Sizes from the model's names and shapes (meta tensors will do)."""
    levels = max(count(shapes, r"encoder\.down\.(\d+)\."), 1)
    down = [f"encoder.down.{i}.block.0.conv1.weight" for i in range(levels)]
    up = [f"decoder.up.{i}.block.0.conv1.weight" for i in range(levels)]
    needed = dict.fromkeys(["encoder.conv_in.weight", "encoder.conv_out.weight", *down, *up], 4)
    cause = _cause(shapes, "encoder.conv_in.weight")
    for name in _CODEBOOKS:
        if name in shapes:
            raise CheckpointError(f"{path.name} is not {_TOKENIZER}: it has the codebook {name}. {cause}")
    require(shapes, needed, path, _TOKENIZER, cause=cause)
    ch, in_channels = shapes["encoder.conv_in.weight"].shape[:2]
    bits = shapes["encoder.conv_out.weight"].shape[0]
    sides = (
        None if patch_nums is None else tuple(ScaleSchedule.from_sides(patch_nums).sides)
    )  # not the file's fault
    with as_checkpoint_error(path):
        return InfinityTokenizerConfig(
            bits=bits,
            ch=ch,
            encoder_ch_mult=tuple(shapes[n].shape[0] // ch for n in down),
            decoder_ch_mult=tuple(shapes[n].shape[0] // ch for n in up),
            num_res_blocks=count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
            in_channels=in_channels,
            patchify=token_bits is not None and _is_patchify(token_bits, bits),
            patch_nums=sides,
        )


def _cause(shapes: Mapping[str, Tensor], own: str) -> str:
    """What a wrong file seems to be."""
    kind = next((kind for name, kind in _OTHERS.items() if name in shapes and name != own), None)
    return "" if kind is None else f"It looks like {kind}"


# ------------------------------------------------------------------ both


def _is_patchify(token_bits: int, cell_bits: int) -> bool:
    if token_bits not in (cell_bits, 4 * cell_bits):
        raise CheckpointError(
            f"transformer and tokenizer do not belong together: a token has {token_bits} bits, a cell "
            f"{cell_bits}; the tokenizer must have {token_bits} bits, or {token_bits / 4:g} with spatial "
            f"patchify (see {OFFICIAL_REPO} for which file goes with which)"
        )
    return token_bits == 4 * cell_bits


def check_pair(transformer: InfinityTransformer, tokenizer: InfinityTokenizer) -> None:
    """Raises CheckpointError if the bits of a token are not those of its cells."""
    token_bits, config = transformer.config.bits, tokenizer.config
    if _is_patchify(token_bits, config.bits) != config.patchify:
        raise CheckpointError(
            f"transformer and tokenizer do not belong together: a token has {token_bits} bits, which with "
            f"patchify={config.patchify} does not fit cells of {config.bits}"
        )
