"""Checkpoints as people have them: transformer and tokenizer of every family in every usual wrapping."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.families.golden_models import FAMILIES, PIPELINES, PLACES
from torch import Tensor

from nextscale import HARTPipeline, VARPipeline
from nextscale.errors import CheckpointError, InvalidArgumentError
from nextscale.families import official_family, recognise
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig

Tensors = dict[str, Tensor]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def files(family: str, golden: Path) -> tuple[Tensors, Tensors]:
    """Transformer and tokenizer as published, in small."""
    folder = golden / PLACES[family]
    return load_file(folder / "transformer.safetensors"), load_file(folder / "tokenizer.safetensors")


@pytest.fixture
def load(family: str, golden: Path, tmp_path: Path) -> Callable[..., Any]:
    """Load two contents as files, beside what HART's say in ``config.json``."""
    if family == "hart":
        shutil.copy(golden / PLACES[family] / "config.json", tmp_path)

    def read(transformer: Any, tokenizer: Any, **options: Any) -> Any:
        paths = tmp_path / "transformer.pth", tmp_path / "tokenizer.pth"
        for content, path in zip((transformer, tokenizer), paths, strict=True):
            torch.save(content, path)
        assert recognise(paths[0]) == (family,)
        return PIPELINES[family].from_official(*paths, device="cpu", **options)

    return read


@pytest.fixture
def expected(family: str, golden: Path) -> Any:
    folder = golden / PLACES[family]
    paths = folder / "transformer.safetensors", folder / "tokenizer.safetensors"
    return PIPELINES[family].from_official(*paths, device="cpu")


def same(a: Any, b: Any) -> bool:
    pairs = ((a.transformer, b.transformer), (a.tokenizer, b.tokenizer))
    return all(
        x.config == y.config
        and x.state_dict().keys() == y.state_dict().keys()
        and all(torch.equal(v, y.state_dict()[k]) for k, v in x.state_dict().items())
        for x, y in pairs
    )


def prefix(word: str, tensors: Tensors) -> Tensors:
    return {word + name: tensor for name, tensor in tensors.items()}


def in_the_middle(word: str, tensors: Tensors) -> Tensors:
    """Around the blocks, the encoder and the layers of both, as compiling and sharding parts does."""

    def turn(name: str) -> str:
        for place in ("blocks.0.", "block_chunks.0.", "encoder.", "attn.", "sa.", "mid."):
            name = name.replace(place, place + word)
        return name

    return {turn(name): tensor for name, tensor in tensors.items()}


def halved(tensors: Mapping[str, Tensor]) -> Tensors:
    return {n: t * 0.5 if t.is_floating_point() and t.isfinite().all() else t for n, t in tensors.items()}


FORMS: dict[str, Callable[[Tensors], Any]] = {
    "ddp": partial(prefix, "module."),
    "compiled": partial(prefix, "_orig_mod."),
    "fsdp": partial(prefix, "_fsdp_wrapped_module."),
    "compiled ddp": partial(prefix, "_orig_mod.module."),
    "compiled blocks": lambda t: prefix("module.", in_the_middle("_orig_mod.", t)),
    "sharded blocks": lambda t: in_the_middle("_fsdp_wrapped_module._checkpoint_wrapped_module.", t),
    "lightning": lambda t: {"state_dict": prefix("model.", t), "epoch": 3, "hyper_parameters": {"lr": 1.0}},
    "lightning, compiled": lambda t: {"state_dict": prefix("net._orig_mod.", t), "loops": {"a": {}}},
    "student": partial(prefix, "student."),
    "named": partial(prefix, "my_model.inner."),
    "trainer": lambda t: {"trainer": {"net": prefix("module.", t)}, "args": {"bs": 768}},
    "two levels": lambda t: {"state_dict": {"model": t}},
    "model_state_dict": lambda t: {"model_state_dict": prefix("module.", t), "iter": 7},
    "numpy": lambda t: {
        "model": t,
        "best": np.float64(0.3),
        "args": {"lr": np.float32(1e-4), "steps": np.int64(7), "ema": np.bool_(True), "tag": np.str_("x")},
        "rng": np.random.RandomState(0).get_state(),
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_wrappings(form: str, files: Any, load: Callable, expected: Any):
    assert same(load(*map(FORMS[form], files)), expected)


def test_half_precisions_mixed(files: Any, load: Callable, expected: Any):
    kinds = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
    mixed = [
        {n: t.to(kinds[i % 4]) if t.is_floating_point() else t for i, (n, t) in enumerate(sorted(f.items()))}
        for f in files
    ]
    found = load(*mixed)
    for ours, theirs in (
        (found.transformer, expected.transformer),
        (found.tokenizer, expected.tokenizer),
    ):
        assert {p.dtype for p in ours.parameters()} == {torch.float32}
        for name, parameter in ours.named_parameters():
            assert torch.allclose(parameter, theirs.state_dict()[name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8(kind: torch.dtype, family: str, files: Any, golden: Path, tmp_path: Path):
    paths = [tmp_path / "transformer.safetensors", tmp_path / "tokenizer.safetensors"]
    small = [
        {n: t.to(kind) if t.ndim > 1 and t.is_floating_point() else t for n, t in f.items()} for f in files
    ]
    for content, path in zip(small, paths, strict=True):
        save_file(content, path)
    if family == "hart":
        shutil.copy(golden / PLACES[family] / "config.json", tmp_path)
    pipe = PIPELINES[family].from_official(*paths, device="cpu", dtype="float32")
    word = pipe.transformer.word_embed.weight
    assert word.dtype == torch.float32
    assert torch.equal(word, files[0]["word_embed.weight"].to(kind).float())


BOTH: dict[str, Callable[[Tensors, Tensors], Any]] = {
    "beside": lambda plain, ema: {"model": prefix("module.", plain), "ema": prefix("module.", ema)},
    "trainer": lambda plain, ema: {"trainer": {"gpt_fsdp": plain, "gpt_ema_fsdp": ema}},
    "lightning": lambda plain, ema: {"state_dict": prefix("net.", plain) | prefix("net_ema.", ema)},
    "shadow": lambda plain, ema: {"state_dict": plain, "ema": {"decay": 0.999, "shadow": ema}},
}


@pytest.mark.parametrize("form", BOTH)
def test_averaged_weights(form: str, files: Any, load: Callable):
    averages = [halved(f) for f in files]
    contents = [BOTH[form](plain, ema) for plain, ema in zip(files, averages, strict=True)]
    name = "encoder.conv_in.weight"
    for averaged, (transformer, tokenizer) in ((None, averages), (True, averages), (False, files)):
        pipe = load(*contents, averaged=averaged)
        assert torch.equal(pipe.transformer.word_embed.weight, transformer["word_embed.weight"])
        stored = next(t for n, t in tokenizer.items() if n.replace(".conv.", ".").endswith(name))
        assert torch.equal(pipe.tokenizer.state_dict()[name], stored)


def test_averages_that_are_not_there(files: Any, load: Callable):
    with pytest.raises(CheckpointError, match=r"no averaged weights .* averaged=False takes those"):
        load(files[0], files[1], averaged=True)
    with pytest.raises(CheckpointError, match=r"no other weights .* averaged=True takes those"):
        load({"ema": files[0]}, files[1], averaged=False)
    load({"model": files[0], "ema": files[0]}, files[1], averaged=True)  # tokenizers need not be averaged


@pytest.mark.parametrize("name", ["model", "diffusion_pytorch_model", "weights"])
def test_several_files_with_an_index(
    name: str, family: str, files: Any, expected: Any, golden: Path, tmp_path: Path
):
    folders = [tmp_path / "transformer", tmp_path / "tokenizer"]
    for tensors, folder in zip(files, folders, strict=True):
        folder.mkdir()
        wrapped = prefix("net.module.", tensors)
        where = {n: f"{name}-{1 + i % 3}.safetensors" for i, n in enumerate(sorted(wrapped))}
        for file in set(where.values()):
            save_file({n: wrapped[n] for n in wrapped if where[n] == file}, folder / file)
        (folder / f"{name}.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
        if family == "hart":
            shutil.copy(golden / PLACES[family] / "config.json", folder)
    assert official_family(folders[0]) == family
    assert same(PIPELINES[family].from_official(*folders, device="cpu"), expected)
    indices = [folder / f"{name}.safetensors.index.json" for folder in folders]
    assert same(PIPELINES[family].from_official(*indices, device="cpu"), expected)


def test_one_file_with_both(family: str, files: Any, expected: Any, golden: Path, tmp_path: Path):
    """As the official trainers write it; nothing else has to be named."""
    if family == "hart":
        shutil.copy(golden / PLACES[family] / "config.json", tmp_path)
    path = tmp_path / "last.ckpt"
    inside = {"net_wo_ddp": files[0], "vae_local": files[1], "net_opt": {"state": {}}}
    for content in (
        {"epoch": 3, "trainer": inside, "args": {}},
        {"state_dict": prefix("model.", files[0]) | prefix("first_stage.", files[1])},
    ):
        torch.save(content, path)
        assert same(PIPELINES[family].from_official(path, device="cpu"), expected)


def test_what_is_still_refused_names_the_remedy(files: Any, load: Callable, tmp_path: Path, family: str):
    flat = {"_fsdp_wrapped_module._flat_param": torch.ones(9)}
    path = tmp_path / "flat.pth"
    torch.save(flat, path)
    with pytest.raises(CheckpointError, match=r"flattened .*FULL_STATE_DICT"):
        PIPELINES[family].from_official(path, path)
    folder = tmp_path / "distributed"
    folder.mkdir()
    (folder / ".metadata").touch()
    tokenizer = tmp_path / "tokenizer.pth"
    torch.save(files[1], tokenizer)
    with pytest.raises(CheckpointError, match=r"dcp_to_torch|should hold one|none of the weights"):
        PIPELINES[family].from_official(folder, tokenizer)


def test_pipelines_can_be_written_and_read_again(files: Any, load: Callable, tmp_path: Path, family: str):
    pipe = load({"ema": prefix("module.", files[0])}, {"state_dict": files[1]})
    pipe.save_pretrained(tmp_path / "layout")
    again = PIPELINES[family].from_pretrained(tmp_path / "layout", device="cpu")
    assert same(pipe, again)


# ------------------------------------------------------------------ what tensors cannot tell (VAR)


SIZES = {"vocab_size": 24, "z_channels": 8, "num_classes": 5, "depth": 2, "embed_dim": 96}


@pytest.fixture
def vae(golden: Path) -> Path:
    return golden / PLACES["var"] / "tokenizer.safetensors"


def plain_attention(tmp_path: Path, golden: Path, heads: int, patch_nums: Any = (1, 2, 3, 4)) -> Path:
    """A transformer whose heads nothing tells, for the tokenizer of a golden case."""
    vocab_size, z_channels = load_file(golden / PLACES["var"] / "tokenizer.safetensors")[
        "quantize.embedding.weight"
    ].shape
    sizes = {**SIZES, "vocab_size": vocab_size, "z_channels": z_channels}
    model = VARTransformer(
        VARTransformerConfig(**sizes, num_heads=heads, attn_l2_norm=False, patch_nums=patch_nums)
    )
    lengths = [h * w for h, w in model.schedule.grids]
    levels = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    generator = torch.Generator().manual_seed(0)
    weights = {n: torch.randn(t.shape, generator=generator) / 20 for n, t in model.state_dict().items()}
    torch.save({"model": {**weights, "lvl_1L": levels}}, tmp_path / "mine.pth")
    return tmp_path / "mine.pth"


@pytest.mark.parametrize("heads", [2, 3, 12])
def test_heads_can_be_told(heads: int, golden: Path, vae: Path, tmp_path: Path):
    path = plain_attention(tmp_path, golden, heads)
    with pytest.raises(CheckpointError, match=r"do not tell num_heads, .*settings=\{'num_heads': \.\.\.\}"):
        VARPipeline.from_official(path, vae)
    for number in (heads, np.int64(heads), torch.tensor(heads)):
        told = {"num_heads": number, "norm_eps": 1e-5}
        pipe = VARPipeline.from_official(path, vae, settings=told, device="cpu")
        assert (pipe.transformer.config.num_heads, pipe.transformer.config.norm_eps) == (heads, 1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 5}, "embed_dim must be a multiple of num_heads, got 96 and 5"),
        ({"num_heads": 0}, "num_heads must be a positive whole number, got 0"),
        ({"num_heads": "4"}, "say num_heads = '4', expected a whole number"),
        ({"num_heads": True}, "say num_heads = True, expected a whole number"),
        ({"heads": 4}, "no setting 'heads' .*; known: num_heads, norm_eps, quant_resi"),
    ],
)
def test_settings_that_cannot_be(settings: Any, message: str, golden: Path, vae: Path, tmp_path: Path):
    path = plain_attention(tmp_path, golden, 4)
    with pytest.raises(CheckpointError, match=message):
        VARPipeline.from_official(path, vae, settings=settings)


def test_heads_that_tensors_tell_are_not_overruled(golden: Path, vae: Path):
    transformer = golden / PLACES["var"] / "transformer.safetensors"
    with pytest.raises(CheckpointError, match="heads, but settings= say num_heads = 1; leave it out"):
        VARPipeline.from_official(transformer, vae, settings={"num_heads": 1})


def test_settings_of_the_tokenizer(golden: Path, vae: Path):
    transformer = golden / PLACES["var"] / "transformer.safetensors"
    told = {"quant_resi": 0.3, "using_znorm": True, "norm_groups": 16}
    config = VARPipeline.from_official(transformer, vae, settings=told, device="cpu").tokenizer.config
    assert (config.quant_resi, config.using_znorm, config.norm_groups) == (0.3, True, 16)


@pytest.mark.parametrize(
    "grids",
    [
        ((1, 1), (1, 4), (2, 8)),  # as many tokens as 1x1, 2x2, 4x4
        ((1, 1), (4, 1)),
        ((1, 1), (1, 4), (2, 8), (4, 16)),
        ((1, 4), (2, 8), (3, 12)),
        ((1, 1), (1, 2), (2, 4)),
        ((1, 1), (2, 2), (4, 4)),  # squares that could be something else
    ],
)
def test_grids_that_are_perhaps_not_squares_are_asked_for(
    grids: Any, golden: Path, vae: Path, tmp_path: Path
):
    path = plain_attention(tmp_path, golden, 4, grids)
    settings = {"num_heads": 4}
    with pytest.raises(CheckpointError, match=r"tells no shapes \(4 can be 2x2 and 1x4\); pass patch_nums="):
        VARPipeline.from_official(path, vae, settings=settings)
    pipe = VARPipeline.from_official(path, vae, settings=settings, patch_nums=grids, device="cpu")
    assert pipe.schedule.grids == grids
    assert pipe.tokenizer.schedule.grids == grids


def hart_file(golden: Path, tmp_path: Path, levels: Any) -> list[Path]:
    """HART's files, of which the first has these levels and nothing beside it says more."""
    folder = golden / PLACES["hart"]
    tensors = load_file(folder / "transformer.safetensors")
    tensors["lvl_embed.weight"] = tensors["lvl_embed.weight"][: len(torch.as_tensor(levels).unique())].clone()
    torch.save({**tensors, "lvl_1L": torch.as_tensor(levels)[None]}, tmp_path / "mine.pth")
    return [tmp_path / "mine.pth", folder / "tokenizer.safetensors"]


@pytest.mark.parametrize("grids", [((1, 1), (1, 4), (2, 8)), ((1, 1), (2, 2), (4, 4)), ((1, 1), (4, 1))])
def test_grids_of_hart_that_are_perhaps_not_squares(grids: Any, golden: Path, tmp_path: Path):
    counts = [5, *(h * w for h, w in grids[1:])]
    levels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    files = hart_file(golden, tmp_path, levels)
    with pytest.raises(CheckpointError, match=r"do not tell patch_nums, .*settings=\{'patch_nums': \.\.\.\}"):
        HARTPipeline.from_official(*files, device="cpu")
    pipe = HARTPipeline.from_official(*files, settings={"patch_nums": grids}, device="cpu")
    assert pipe.schedule.grids == pipe.tokenizer.schedule.grids == grids
    assert pipe.transformer.config.context_token == 5


@pytest.mark.parametrize(
    "levels", [[0, 0, 2, 2, 2, 2], [0, 1, 0, 1, 1, 1], [-1, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1 << 40], []]
)
def test_levels_of_hart_that_are_none(levels: Any, golden: Path, tmp_path: Path):
    files = hart_file(golden, tmp_path, torch.tensor(levels, dtype=torch.int64))
    with pytest.raises(CheckpointError, match="do not tell context_token"):
        HARTPipeline.from_official(*files, device="cpu")


def test_class_names(golden: Path, vae: Path, tmp_path: Path):
    path, settings = plain_attention(tmp_path, golden, 4), {"num_heads": 4}
    names = ["ant", "bee", "crane", "crane", "dog"]
    pipe = VARPipeline.from_official(path, vae, settings=settings, class_names=names, device="cpu")
    assert pipe.class_names == tuple(names)
    pipe.save_pretrained(tmp_path / "layout")
    again = VARPipeline.from_pretrained(tmp_path / "layout", device="cpu")
    assert again.class_names == tuple(names)
    assert again("bee", seed=0).settings["labels"] == [1]
    others = VARPipeline.from_pretrained(tmp_path / "layout", class_names=list("abcde"))
    assert others.class_names == tuple("abcde")
    for wrong, message in (
        (names[:4], "4 class names do not fit 5 classes"),
        ("ant", "1 class names do not fit 5"),
        ([*names[:4], " "], "the name of class 4 must be a text, got ' '"),
        ([1, *names[1:]], "the name of class 0 must be a text, got 1"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            VARPipeline.from_official(path, vae, settings=settings, class_names=wrong)
        with pytest.raises(InvalidArgumentError, match=message):
            VARPipeline.from_pretrained(tmp_path / "layout", class_names=wrong)
