"""Official HART files: where they lie, what they hold, and the sizes their tensors and settings spell out.

The published repository ``mit-han-lab/hart-0.7b-1024px`` has a folder ``llm`` with the transformer and a
folder ``tokenizer``, each with its ``config.json``. What tensors cannot tell (heads, text tokens, scales) is
read from there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nextscale.errors import CheckpointError, ModelNotFoundError
from nextscale.families.hart.diffusion import kept_steps
from nextscale.families.hart.tokenizer import HARTTokenizer, HARTTokenizerConfig
from nextscale.families.hart.transformer import HARTTransformer, HARTTransformerConfig
from nextscale.nn.placement import Placement
from nextscale.scales import Grid, ScaleSchedule
from nextscale.weights.hub import download, is_repo_id
from nextscale.weights.layout import CONFIG, read_config
from nextscale.weights.nesting import Part, holds, read_part
from nextscale.weights.official import (
    INDEX,
    SINGLE,
    as_checkpoint_error,
    count,
    download_sharded,
    is_sharded,
    load_checked,
    require,
    square_sides,
    told,
)
from nextscale.weights.residual_tokenizer import tokenizer_sizes

OFFICIAL_REPO = "mit-han-lab/hart-0.7b-1024px"
TRANSFORMER_FOLDER = "llm"
TOKENIZER_FOLDER = "tokenizer"
EMA_FILE = "ema_model.bin"
TORCH_FILE = "pytorch_model.bin"

# Recomputed from the schedule or constant; a file may have them or not.
_BUFFERS = re.compile(r"^(lvl_1L|attn_bias_for_masking|blocks\.\d+\.attn\.zero_k_bias)$")
# Stored beside the tokenizer: a discriminator, a second decoder for training, usage statistics.
_UNUSED = re.compile(r"^(disc|decoder2|post_quant_conv2)\.|^quantize\.ema_vocab_hit_SV$")
_TRANSFORMER_NAMES = frozenset(
    {"context_embed.weight", "word_embed.weight", "diffloss.net.cond_embed.weight"}
)
_TRANSFORMER_PART = Part(_TRANSFORMER_NAMES, _BUFFERS)
_TOKENIZER_PART = Part(
    frozenset({"encoder.conv_in.weight", "quant_conv.weight", "quantize.embedding.weight"}), _UNUSED
)
_TOKENIZER_KINDS = {"quant_resi": float, "using_znorm": bool, "beta": float, "norm_groups": int}
_REMEDY = f"correct {CONFIG} beside it, or give settings={{{{{{name!r}}: ...}}}}"

_TRANSFORMER = "a HART transformer (llm/ema_model.bin)"
_TOKENIZER = "HART's tokenizer"
# Tensors that give other kinds of files away.
_OTHERS = {
    "class_emb.weight": "a VAR transformer",
    "cfg_uncond": "an Infinity transformer",
    "vae.quantize.embedding.weight": "HART's tokenizer",
    "quantize.embedding.weight": "a tokenizer",
    "context_embed.weight": "a HART transformer",
    "embed_tokens.weight": "a language model",
    "model.embed_tokens.weight": "a language model",
}

Settings = Mapping[str, Any]
PatchNums = tuple[int | Grid, ...]


# ------------------------------------------------------------------ finding files


def recognises(path: Path) -> bool:
    """Whether a weight file, or a folder of several with an index, has the names of a HART transformer."""
    return read_part(path, _TRANSFORMER_PART, meta=True).keys() >= _TRANSFORMER_NAMES


def find_files(
    model: str | Path, tokenizer: str | Path | None = None, *, averaged: bool | None = None
) -> tuple[Path, Path]:
    """The weights of transformer and tokenizer: files, or folders of several files with an index.

    model: a weight file, a folder with the folders ``llm`` and ``tokenizer``, the folder ``llm`` itself, or a
        hub id (``"mit-han-lab/hart-0.7b-1024px"``).
    tokenizer: its file or folder; looked for beside the transformer when left out.
    averaged: whether to take the averaged weights ``llm/ema_model.bin``, as the official tools do by default;
        None takes them where there are any. A file given as model is that file, whatever it holds.

    Raises CheckpointError saying what is missing, and ModelNotFoundError if a download fails.
    """
    path = Path(model)
    if path.is_file():
        return path, _beside(path.parent, tokenizer, path)
    if path.is_dir():
        folder = path / TRANSFORMER_FOLDER if (path / TRANSFORMER_FOLDER).is_dir() else path
        chosen = _transformer_in(folder, averaged)
        return chosen, _beside(folder, tokenizer, chosen)
    if not is_repo_id(str(model)):
        raise CheckpointError(f"no such file or folder: {str(model)!r}")
    repo = str(model)
    if tokenizer is not None:
        return _download_transformer(repo, averaged), _beside(path, tokenizer)
    return _download_transformer(repo, averaged), _download_weights(repo, TOKENIZER_FOLDER)


def _transformer_in(folder: Path, averaged: bool | None) -> Path:
    file = folder / EMA_FILE
    if averaged is False or not file.is_file():
        # Other weights may hold averages, too, which are looked for when they are read.
        return _weights_in(folder)
    return file


def _weights_in(folder: Path) -> Path:
    """The one set of weights of a folder, other than averaged ones."""
    if is_sharded(folder):
        return folder
    if (folder / TORCH_FILE).is_file():
        return folder / TORCH_FILE
    raise CheckpointError(
        f"{str(folder)!r} has none of the weights {SINGLE}, {INDEX} and {TORCH_FILE}; name the file itself"
    )


def _beside(folder: Path, tokenizer: str | Path | None, transformer: Path | None = None) -> Path:
    """The tokenizer: given, or in the folder of its name inside or beside the transformer's, or in its
    file."""
    if tokenizer is not None:
        path = Path(tokenizer)
        if not path.exists():
            raise CheckpointError(f"no such file or folder: {str(tokenizer)!r}")
        return _weights_in(path) if path.is_dir() else path
    for place in (folder / TOKENIZER_FOLDER, folder.absolute().parent / TOKENIZER_FOLDER):
        if place.is_dir():
            return _weights_in(place)
    if transformer is not None and holds(transformer, _TOKENIZER_PART):
        return transformer
    raise CheckpointError(
        f"no folder {TOKENIZER_FOLDER!r} in or beside {str(folder)!r}; name the file with tokenizer="
    )


def _download_transformer(repo: str, averaged: bool | None) -> Path:
    if averaged is False:
        return _download_weights(repo, TRANSFORMER_FOLDER)
    download(repo, f"{TRANSFORMER_FOLDER}/{CONFIG}")
    try:
        return download(repo, f"{TRANSFORMER_FOLDER}/{EMA_FILE}")
    except ModelNotFoundError:
        if averaged:
            raise
        return _download_weights(repo, TRANSFORMER_FOLDER)


def _download_weights(repo: str, folder: str) -> Path:
    """A folder's settings, and its weights in whichever form the repository has."""
    settings = download(repo, f"{folder}/{CONFIG}")
    tried: dict[str, Callable[[], Path]] = {
        SINGLE: lambda: download(repo, f"{folder}/{SINGLE}").parent,
        INDEX: lambda: download_sharded(repo, folder),
        TORCH_FILE: lambda: download(repo, f"{folder}/{TORCH_FILE}"),
    }
    for get in tried.values():
        try:
            return get()
        except ModelNotFoundError as error:
            reason = error
    raise ModelNotFoundError(
        f"{repo!r} has {folder}/{settings.name}, but none of {', '.join(tried)} can be had: {reason}"
    )


# ------------------------------------------------------------------ settings


def read_settings(weights: Path, part: str, given: Settings | None = None) -> dict[str, Any]:
    """The ``config.json`` beside a weight file, overridden by the settings given; empty if there is none.

    part: where one ``config.json`` describes several parts, the name of the section that is merged in.
    """
    folder = weights if weights.is_dir() else weights.parent
    found = read_config(folder) if (folder / CONFIG).is_file() else {}
    section = found.get(part)
    merged = {**found, **(section if isinstance(section, dict) else {}), **(given or {})}
    return {name: value for name, value in merged.items() if value is not None}


def _whole(settings: Settings, name: str, path: Path) -> int:
    value = settings.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _unknown(name, "a positive whole number", value, path)
    return value


def _unknown(name: str, kind: str, value: Any, path: Path) -> CheckpointError:
    why = "has no such value" if value is None else f"says {value!r}"
    return CheckpointError(
        f"the tensors of {path.name} do not tell {name}, and {CONFIG} beside it {why}; give {kind} with "
        f"settings={{{name!r}: ...}}"
    )


# ------------------------------------------------------------------ the transformer


def load_transformer(
    path: Path, placement: Placement, settings: Settings | None = None, *, averaged: bool | None = None
) -> HARTTransformer:
    """An official transformer -> the model, in evaluation mode.

    path: a weight file, or a folder of several with an index. settings: values that neither the tensors nor
        the ``config.json`` beside them tell, under its names (``{"num_heads": 24}``).
    averaged: see :func:`~nextscale.weights.nesting.read_part`.
    Raises CheckpointError before anything is allocated if names or shapes are not a HART transformer's.
    """

    def read(meta: bool) -> dict[str, Tensor]:
        return read_part(path, _TRANSFORMER_PART, averaged=averaged, meta=meta)

    def parameters(meta: bool) -> dict[str, Tensor]:
        return {k: v for k, v in read(meta).items() if not _BUFFERS.match(k)}

    known = read_settings(path, "transformer", settings)
    config = infer_transformer(read(True), path, known, lambda: read(False)["lvl_1L"])
    hint = f"Is it {_TRANSFORMER}, whole and unmodified?"
    return load_checked(lambda: HARTTransformer(config), parameters, placement, source=path.name, hint=hint)


def infer_transformer(
    shapes: Mapping[str, Tensor],
    path: Path,
    settings: Settings,
    levels: Callable[[], Tensor] | None = None,
) -> HARTTransformerConfig:
    """Sizes and flags: what tensors tell (meta tensors will do), and the rest from settings.

    levels: reads the level of every position, where shapes are all that was read.
    """
    _refuse_gpt2(shapes, path)
    needed = {"word_embed.weight": 2, "context_embed.weight": 2, "head.weight": 2}
    needed |= {"blocks.0.attn.qkv_proj.weight": 2, "blocks.0.ffn.gate_proj.weight": 2}
    needed |= {"diffloss.net.cond_embed.weight": 2}
    require(shapes, needed, path, _TRANSFORMER, cause=_cause(shapes))
    width, z_channels = shapes["word_embed.weight"].shape
    temperature = shapes.get("blocks.0.attn.scale_mul_1H11")
    sizes: dict[str, Any] = {
        "vocab_size": shapes["head.weight"].shape[0],
        "z_channels": z_channels,
        "context_dim": shapes["context_embed.weight"].shape[1],
        "depth": count(shapes, r"blocks\.(\d+)\."),
        "embed_dim": width,
        "mlp_hidden": shapes["blocks.0.ffn.gate_proj.weight"].shape[0],
        "diff_width": shapes["diffloss.net.cond_embed.weight"].shape[0],
        "diff_depth": count(shapes, r"diffloss\.net\.res_blocks\.(\d+)\."),
    }
    _compare(sizes, settings, path)
    heads = _whole(settings, "num_heads", path) if temperature is None else temperature.numel()
    text, sides = _sequence(shapes, path, settings, levels)
    kinds = {"norm_eps": float, "num_sampling_steps": str, "sep_aln_pooling_mode": str}
    found = told(settings, kinds, path, _REMEDY)
    found["pooling"] = found.pop("sep_aln_pooling_mode", "max")
    with as_checkpoint_error(path):
        kept_steps(found.get("num_sampling_steps", "8"))
        return HARTTransformerConfig(
            **sizes,
            **found,
            num_heads=heads,
            context_token=text,
            patch_nums=sides,
            disable_aln="blocks.0.ada_lin.1.weight" not in shapes,
            shared_aln="blocks.0.scale_shift_table" in shapes,
            use_timestep_embed="lvl_embed.mlp.0.weight" in shapes,
            use_context_norm="context_norm.weight" in shapes,
            attn_l2_norm=temperature is not None,
        )


def _refuse_gpt2(shapes: Mapping[str, Tensor], path: Path) -> None:
    telling = ("pos_start", "pos_1LC", "blocks.0.attn.mat_qkv.weight", "blocks.0.ffn.fc1.weight")
    found = [name for name in telling if name in shapes]
    if found and "context_embed.weight" in shapes:
        raise CheckpointError(
            f"{path.name} is a HART transformer of the gpt2 variant (it has {', '.join(found)}), of which no "
            f"weights were published; only the llama variant (attn_type and mlp_type 'llama') is supported"
        )


def _cause(shapes: Mapping[str, Tensor]) -> str:
    looks = [what for name, what in _OTHERS.items() if name in shapes]
    return f"It looks like {looks[0]}" if looks else ""


def _compare(sizes: Mapping[str, int], settings: Settings, path: Path) -> None:
    """Settings of another model would silently give wrong heads and scales."""
    for name in ("embed_dim", "depth", "context_dim"):
        if settings.get(name, sizes[name]) != sizes[name]:
            raise CheckpointError(
                f"{path.name} and its {CONFIG} do not belong together: {name} is {sizes[name]} by the "
                f"tensors and {settings[name]!r} by the settings"
            )


def _sequence(
    shapes: Mapping[str, Tensor], path: Path, settings: Settings, levels: Callable[[], Tensor] | None
) -> tuple[int, PatchNums]:
    """Text tokens and the side of every scale: from settings, or from the stored level of every position."""
    stored = shapes.get("lvl_1L")
    if stored is not None and not {"patch_nums", "context_token"} <= settings.keys():
        settings = {**_from_levels(stored if levels is None else levels()), **settings}
    text = _whole(settings, "context_token", path)
    sides = _sides(settings.get("patch_nums"), "patch_nums", path)
    total = text + ScaleSchedule.from_sides(sides).num_tokens - 1
    if stored is not None and stored.numel() != total:
        raise CheckpointError(
            f"{path.name} is made for {stored.numel()} tokens, but {text} text tokens and the scales "
            f"{list(sides)} make {total}"
        )
    return text, sides


def _from_levels(levels: Tensor) -> dict[str, Any]:
    """The text has level 0 and stands in for the first scale, a single token.

    Of the scales nothing if they may be of other shapes than squares, and nothing at all if a token's level
    is none.
    """
    level = levels.flatten().long()
    steps = level.diff(prepend=level.new_zeros(1))
    if not len(level) or bool(((steps != 0) & (steps != 1)).any()):  # scales are together, in order
        return {}
    text, *maps = level.bincount().tolist()
    sides = square_sides([1, *maps])
    told_text = {"context_token": text} if text else {}
    return told_text if sides is None else {**told_text, "patch_nums": sides}


def _sides(value: Any, name: str, path: Path) -> PatchNums:
    """A list of scales as a JSON file has it: numbers, or pairs for grids that are not square."""
    kind = "the side of every scale"
    if not isinstance(value, list | tuple):
        raise _unknown(name, kind, value, path)
    sides = tuple(tuple(v) if isinstance(v, list) else v for v in value)
    with as_checkpoint_error(path):
        ScaleSchedule.from_sides(sides)
    return sides


# ------------------------------------------------------------------ the tokenizer


def load_tokenizer(
    path: Path,
    placement: Placement,
    patch_nums: PatchNums | None = None,
    settings: Settings | None = None,
    *,
    averaged: bool | None = None,
) -> HARTTokenizer:
    """An official tokenizer -> the model, in evaluation mode.

    path, settings: see :func:`load_transformer`. averaged: as there, but a file with others only is no error.
    patch_nums: side of every scale, which the transformer knows; None reads ``v_patch_nums`` from the
        ``config.json`` beside the weights.
    Raises CheckpointError before anything is allocated if names or shapes are not those of HART's tokenizer.
    """

    def read(meta: bool) -> dict[str, Tensor]:
        tensors = read_part(path, _TOKENIZER_PART, averaged=averaged, strict=False, meta=meta)
        return _own_tensors(tensors)

    found = read_settings(path, "tokenizer", settings)
    config = infer_tokenizer(read(True), path, found, patch_nums)
    hint = f"Is it {_TOKENIZER} (the folder tokenizer), whole and unmodified?"
    return load_checked(lambda: HARTTokenizer(config), read, placement, source=path.name, hint=hint)


def infer_tokenizer(
    shapes: Mapping[str, Tensor],
    path: Path,
    settings: Settings,
    patch_nums: PatchNums | None = None,
) -> HARTTokenizerConfig:
    """Sizes: what tensors tell (meta tensors will do), and the rest from settings."""
    sizes = tokenizer_sizes(shapes, path, _TOKENIZER, cause=_cause(shapes))
    found = told(settings, _TOKENIZER_KINDS, path, _REMEDY)
    if patch_nums is None:
        name = "v_patch_nums" if "v_patch_nums" in settings else "patch_nums"
        patch_nums = _sides(settings.get(name), name, path)
    with as_checkpoint_error(path):
        return HARTTokenizerConfig(**{**sizes, **found}, patch_nums=patch_nums)


def _own_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The autoencoder's tensors, without what is stored beside them."""
    return {k: v for k, v in tensors.items() if not _UNUSED.match(k)}
