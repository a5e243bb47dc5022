"""Official files: the published ones at true size, what is read from tensors, and what is refused and how."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nextscale.errors import CheckpointError, GridError, ModelNotFoundError
from nextscale.families.infinity.checkpoint import (
    RELEASES,
    check_pair,
    find_files,
    infer_tokenizer,
    infer_transformer,
    load_tokenizer,
    load_transformer,
    recognises,
    release_of,
)
from nextscale.families.infinity.transformer import SIZES
from nextscale.nn.placement import place

CPU, META = place("cpu", "float32"), place("meta", "float32")
SQUARE, WIDE = "square_d16", "wide_patchify_d6"
INDEX = "model.safetensors.index.json"
CHUNK = re.compile(r"block_chunks\.(\d+)\.module\.(\d+)\.")

# ------------------------------------------------------------------ the published files at true size


def hollow(shape: Sequence[int]) -> Tensor:
    """A tensor of any shape that takes four bytes, in memory and in a file."""
    return torch.tensor(0.0).expand(tuple(shape))


def hollow_file(shapes: Mapping[str, Sequence[int]], path: Path) -> Path:
    torch.save({name: hollow(shape) for name, shape in shapes.items()}, path)
    return path


def transformer_shapes(entry: Mapping[str, Any]) -> dict[str, list[int]]:
    """All tensors of a published transformer, also where only one block is listed."""
    if "tensors" in entry:
        return entry["tensors"]
    shapes = dict(entry["tensors_outside_blocks"])
    for chunk in range(entry["chunks"]):
        for block in range(entry["blocks_per_chunk"]):
            prefix = f"block_chunks.{chunk}.module.{block}."
            shapes |= {prefix + name: shape for name, shape in entry["tensors_of_one_block"].items()}
    return shapes


def flat_name(name: str, blocks_per_chunk: int) -> str:
    """``blocks.n.`` for ``block_chunks.a.module.b.``."""
    match = CHUNK.match(name)
    return (
        f"blocks.{int(match[1]) * blocks_per_chunk + int(match[2])}.{name[match.end() :]}" if match else name
    )


@pytest.mark.parametrize(
    ("name", "size", "blocks_per_chunk", "tensors"),
    [
        ("infinity_2b", "infinity_2b", 4, 694),
        ("infinity_8b", "infinity_8b", 5, 862),
        ("infinity_layer12", "infinity_layer12", 3, 274),
    ],
)
def test_published_transformers_at_true_size(
    name: str, size: str, blocks_per_chunk: int, tensors: int, published: dict[str, Any], tmp_path: Path
):
    """Every key is consumed, every parameter filled, and nothing else; on the meta device, so no memory."""
    shapes = transformer_shapes(published[name])
    assert len(shapes) == tensors
    model = load_transformer(hollow_file(shapes, tmp_path / "model.pth"), META)
    kept = {flat_name(n, blocks_per_chunk): s for n, s in shapes.items() if not n.endswith("zero_k_bias")}
    assert {n: list(p.shape) for n, p in model.named_parameters()} == kept
    assert set(model.state_dict()) == set(kept)
    assert sum(p.numel() for p in model.parameters()) == published[name]["parameters"]
    assert model.config == SIZES[size]


@pytest.mark.parametrize(
    ("name", "bits", "mult", "patchify"),
    [
        ("tokenizer_d32_f16", 32, (1, 2, 4, 4, 4), False),
        ("tokenizer_d14_f8", 14, (1, 2, 4, 4), True),
    ],
)
def test_published_tokenizers_at_true_size(
    name: str, bits: int, mult: tuple[int, ...], patchify: bool, published: dict[str, Any], tmp_path: Path
):
    entry = published[name]
    path = hollow_file(entry["tensors"], tmp_path / "vae.pth")
    model = load_tokenizer(path, META, token_bits=56 if patchify else 32)
    kept = {
        re.sub(r"\.(conv|norm)\.(weight|bias)$", r".\2", n): s
        for n, s in entry["tensors"].items()
        if not n.endswith("lfq.mask")
    }
    assert {n: list(p.shape) for n, p in model.named_parameters()} == kept
    assert set(model.state_dict()) == set(kept)
    assert sum(p.numel() for p in model.parameters()) == entry["parameters"]
    config = model.config
    assert (config.bits, config.ch, config.num_res_blocks, config.patchify) == (bits, 128, 2, patchify)
    assert config.encoder_ch_mult == config.decoder_ch_mult == mult
    assert config.reduction * config.patch == 16


@pytest.mark.parametrize("bits", [16, 24, 32, 64])
def test_all_stride_16_tokenizers(bits: int, published: dict[str, Any], tmp_path: Path):
    shapes = dict(published["tokenizer_d32_f16"]["tensors"])
    shapes["encoder.conv_out.conv.weight"] = [bits, 512, 3, 3]
    shapes["encoder.conv_out.conv.bias"] = [bits]
    shapes["decoder.conv_in.conv.weight"] = [512, bits, 3, 3]
    model = load_tokenizer(hollow_file(shapes, tmp_path / "vae.pth"), META, token_bits=bits)
    assert sum(p.numel() for p in model.parameters()) == 109_823_107 + 9_217 * bits


def test_the_releases():
    """Bits of transformer and tokenizer by their names, and the published settings."""
    bits = {"125m": 16, "2b": 32, "8b": 14, "8b-512": 14}
    budgets = {"125m": "0.06M", "2b": "1M", "8b": "1M", "8b-512": "0.25M"}
    assert RELEASES.keys() == bits.keys()
    for name, release in RELEASES.items():
        assert f"_d{bits[name] if bits[name] > 14 else '56_f8_14'}" in release.tokenizer
        assert release.pixels == release.defaults["pixels"] == budgets[name]
        assert release_of(Path("somewhere") / release.transformer) is release
    assert release_of(Path("mine.pth")) is None


# ------------------------------------------------------------------ small files: in which form they may be


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())


@pytest.fixture(params=[SQUARE, WIDE])
def golden_case(request: pytest.FixtureRequest, case: Callable) -> Any:
    return case(request.param)


def test_golden_files_spell_out_their_sizes(golden_case: Any):
    sizes, vae = golden_case.config["transformer"], golden_case.config["tokenizer"]
    model = load_transformer(golden_case.transformer, CPU)
    found = model.config
    assert found.bits == sizes["latent_channels"]
    assert (found.depth, found.embed_dim, found.num_heads, found.ffn_dim) == (
        sizes["depth"],
        sizes["embed_dim"],
        sizes["num_heads"],
        sizes["ffn_hidden"],
    )
    assert (found.text_dim, found.text_length) == (sizes["text_channels"], sizes["text_max_length"])
    assert (found.pool_heads, found.levels) == (sizes["pool_heads"], sizes["level_embeddings"])
    assert found.norm_eps == sizes["norm_eps"]
    tokenizer = load_tokenizer(golden_case.tokenizer, CPU, token_bits=found.bits)
    assert tokenizer.config.patchify == sizes["spatial_patchify"]
    assert (tokenizer.config.bits, tokenizer.config.reduction) == (vae["bits"], vae["stride"])
    assert tokenizer.config.ch == vae["base_channels"]
    assert tokenizer.config.num_res_blocks == vae["num_res_blocks"]
    assert list(tokenizer.config.encoder_ch_mult) == vae["encoder_ch_mult"]
    assert list(tokenizer.config.decoder_ch_mult) == vae["decoder_ch_mult"]
    assert not model.training
    assert not tokenizer.training
    check_pair(model, tokenizer)


def flattened(tensors: Mapping[str, Tensor], blocks_per_chunk: int) -> dict[str, Tensor]:
    return {flat_name(n, blocks_per_chunk): t for n, t in tensors.items()}


@pytest.mark.parametrize(
    "form", ["plain", "blocks", "legacy", "half", "flash", "no zeros", "gpt_fsdp", "gpt_wo_ddp"]
)
def test_forms_of_a_transformer(form: str, golden_case: Any, tmp_path: Path):
    expected = load_transformer(golden_case.transformer, CPU)
    tensors = load_file(golden_case.transformer)
    sizes = golden_case.config["transformer"]
    content: Any = tensors
    if form == "blocks":
        content = flattened(tensors, sizes["depth"] // sizes["chunks"])
        assert content.keys() != tensors.keys()
    elif form == "legacy":
        names = ("lvl_1L", "attn_bias_for_masking", "Infinity_visible_kvlen", "Infinity_invisible_qlen")
        content = {**tensors, **{name: torch.zeros(1, 7) for name in names}}
    elif form == "half":
        content = {n: t.half() for n, t in tensors.items()}
    elif form == "flash":
        content = {n: t.reshape(1, 1, -1, 1) if "scale_mul" in n else t for n, t in tensors.items()}
    elif form == "no zeros":
        content = {n: t for n, t in tensors.items() if not n.endswith("zero_k_bias")}
    elif form.startswith("gpt"):
        content = {"trainer": {form: tensors, "vae_local": {"a": torch.ones(1)}, "lr": 3.0}, "epoch": 4}
    torch.save(content, tmp_path / "model.pth")
    assert recognises(tmp_path / "model.pth")
    found = load_transformer(tmp_path / "model.pth", CPU)
    if form == "half":
        assert torch.equal(found.head.weight, expected.head.weight.half().float())
    else:
        assert same(found, expected)


def test_averaged_weights_of_a_trainers_checkpoint(case: Callable, tmp_path: Path):
    raw = load_file(case(SQUARE).transformer)
    averaged = {n: t * 0.5 for n, t in raw.items()}
    path = tmp_path / "ar-ckpt-giter010K-ep1-iter1-last.pth"
    torch.save({"trainer": {"gpt_ema_fsdp": averaged, "gpt_fsdp": raw}}, path)
    for choice, expected in ((None, averaged), (True, averaged), (False, raw)):
        found = load_transformer(path, CPU, averaged=choice)
        assert torch.equal(found.head.weight, expected["head.weight"])
    torch.save({"trainer": {"gpt_ema_fsdp": averaged}}, path)
    assert torch.equal(load_transformer(path, CPU).head.weight, averaged["head.weight"])
    with pytest.raises(
        CheckpointError, match=r"no other weights .*\(at 'trainer.gpt_ema_fsdp'.*averaged=True"
    ):
        load_transformer(path, CPU, averaged=False)
    torch.save({"trainer": {"gpt_fsdp": raw}}, path)
    with pytest.raises(
        CheckpointError, match=r"no averaged weights .*\(at 'trainer.gpt_fsdp'.*averaged=False"
    ):
        load_transformer(path, CPU, averaged=True)


@pytest.mark.parametrize("rows", [3, 16, 40])
def test_rows_for_no_text_may_be_more_or_fewer(rows: int, case: Callable, tmp_path: Path):
    """They are as many as a prompt may have tokens."""
    tensors = load_file(case(SQUARE).transformer)
    tensors["cfg_uncond"] = torch.randn(rows, 256)
    save_file(tensors, tmp_path / "a.safetensors")
    model = load_transformer(tmp_path / "a.safetensors", CPU)
    assert model.config.text_length == rows
    assert torch.equal(model.cfg_uncond, tensors["cfg_uncond"])


def write_shards(tensors: Mapping[str, Tensor], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    weight_map = {n: f"model-0000{1 + i % 4}-of-00004.safetensors" for i, n in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({n: tensors[n] for n in names if weight_map[n] == file}, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_a_folder_of_shards(case: Callable, tmp_path: Path):
    golden = case(WIDE)
    folder = write_shards(load_file(golden.transformer), tmp_path / "infinity_8b_weights")
    assert recognises(folder)
    assert same(load_transformer(folder, CPU), load_transformer(golden.transformer, CPU))


@pytest.mark.parametrize(
    "form", ["vae", "bare", "trainer", "older names", "mixed names", "extras", "no masks"]
)
def test_forms_of_a_tokenizer(form: str, golden_case: Any, tmp_path: Path):
    bits = golden_case.config["transformer"]["latent_channels"]
    expected = load_tokenizer(golden_case.tokenizer, CPU, token_bits=bits)
    tensors = load_file(golden_case.tokenizer)
    older = {re.sub(r"\.(conv|norm)\.(weight|bias)$", r".\2", n): t for n, t in tensors.items()}
    content: Any = {"vae": tensors, "ema": {"x": torch.ones(1)}, "step": 3}
    if form == "bare":
        content = tensors
    elif form == "trainer":
        content = {"trainer": {"gpt_fsdp": {"x": torch.ones(1)}, "vae_local": tensors}}
    elif form == "older names":
        # A down- or upsampling still has a level named conv: it is the layer itself.
        assert any(n.endswith("downsample.conv.weight") for n in older)
        content = {"vae": older}
    elif form == "mixed names":
        content = {
            "vae": {
                **{n: t for n, t in tensors.items() if "encoder" in n},
                **{n: t for n, t in older.items() if "decoder" in n},
            }
        }
    elif form == "extras":
        content["vae"] = {
            **tensors,
            "image_disc.main.0.conv.weight": torch.ones(2),
            "lpips.lin0": torch.ones(1),
        }
    elif form == "no masks":
        content["vae"] = {n: t for n, t in tensors.items() if not n.endswith("lfq.mask")}
    torch.save(content, tmp_path / "vae.pth")
    assert same(load_tokenizer(tmp_path / "vae.pth", CPU, token_bits=bits), expected)


def test_a_schedule_of_its_own(case: Callable):
    tokenizer = load_tokenizer(case(SQUARE).tokenizer, CPU, patch_nums=[1, 2, (3, 4)])
    assert tokenizer.schedule is not None
    assert tokenizer.schedule.grids == ((1, 1), (2, 2), (3, 4))
    with pytest.raises(GridError, match="must not shrink"):
        load_tokenizer(case(SQUARE).tokenizer, CPU, patch_nums=[3, 1])


# ------------------------------------------------------------------ what is refused, with which message


def refused(load: Callable, tensors: Any, tmp_path: Path, *parts: str, **options: Any) -> None:
    torch.save(tensors, tmp_path / "file.pth")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "file.pth", CPU, **options)
    for part in ("file.pth", *parts):
        assert part in str(caught.value), f"{part!r} is not in {str(caught.value)!r}"


def test_any_missing_tensor_of_a_transformer_is_named(case: Callable, tmp_path: Path):
    tensors = load_file(case(SQUARE).transformer)
    per_chunk = 1
    for name in [n for n in tensors if not n.endswith("zero_k_bias") and not n.startswith("block_chunks.1")]:
        rest = {n: t for n, t in tensors.items() if n != name}
        refused(load_transformer, rest, tmp_path, flat_name(name, per_chunk))


def test_any_missing_tensor_of_a_tokenizer_is_named(case: Callable, tmp_path: Path):
    tensors = load_file(case(WIDE).tokenizer)
    chosen = [n for n in tensors if not n.endswith("mask")]
    for name in chosen[::9] + [n for n in chosen if "block.0.conv1.conv.weight" in n or "conv_out" in n]:
        rest = {n: t for n, t in tensors.items() if n != name}
        refused(load_tokenizer, rest, tmp_path, re.sub(r"\.(conv|norm)\.(weight|bias)$", r".\2", name))


def test_left_over_and_misshapen_tensors(case: Callable, tmp_path: Path):
    transformer, tokenizer = load_file(case(SQUARE).transformer), load_file(case(SQUARE).tokenizer)
    refused(load_transformer, {**transformer, "extra": torch.ones(2)}, tmp_path, "1 unexpected: extra")
    extra = {**tokenizer, "decoder.mid.attn_1.q.weight": torch.ones(2)}
    refused(load_tokenizer, extra, tmp_path, "1 unexpected: decoder.mid.attn_1.q.weight", "unmodified?")
    wrong = {**transformer, "block_chunks.1.module.0.sa.proj.weight": torch.ones(64, 63)}
    refused(load_transformer, wrong, tmp_path, "blocks.1.sa.proj.weight (64, 63) instead of (64, 64)")
    for name in ("word_embed.weight", "cfg_uncond", "text_proj_for_sos.ca.mat_q"):
        refused(load_transformer, {**transformer, name: torch.tensor(1.0)}, tmp_path, name, "()")
    odd = {n: torch.ones(1, 5, 1, 1) if "scale_mul" in n else t for n, t in transformer.items()}
    refused(load_transformer, odd, tmp_path, "embed_dim must be a multiple of num_heads, got 64 and 5")
    odd = {**tokenizer, "encoder.conv_in.conv.weight": torch.ones(20, 3, 3, 3)}
    refused(load_tokenizer, odd, tmp_path, "multiples of 32 or 24", "got 20")


def test_shapes_are_checked_before_anything_is_allocated(case: Callable, tmp_path: Path):
    """These shapes would take terabytes."""
    huge = 2**41
    transformer, tokenizer = load_file(case(SQUARE).transformer), load_file(case(SQUARE).tokenizer)
    refused(load_transformer, {**transformer, "head.weight": hollow((huge, 64))}, tmp_path, f"({huge}, 64)")
    wrong = {**tokenizer, "decoder.conv_out.conv.weight": hollow((huge, 32, 3, 3))}
    refused(load_tokenizer, wrong, tmp_path, str(huge))


def var_like(golden: Path, part: str) -> dict[str, Tensor]:
    return load_file(golden / "var" / "a_basic" / f"{part}.safetensors")


def test_checkpoints_of_other_kinds(case: Callable, golden: Path, tmp_path: Path):
    transformer, tokenizer = load_file(case(SQUARE).transformer), load_file(case(SQUARE).tokenizer)
    no_transformer, no_tokenizer = "is not an Infinity transformer", "is not an Infinity tokenizer"
    looks = "It looks like "
    for content in (tokenizer, {"vae": tokenizer}):
        refused(load_transformer, content, tmp_path, no_transformer, looks + "an Infinity tokenizer")
    refused(load_tokenizer, transformer, tmp_path, no_tokenizer, looks + "an Infinity transformer")
    var = {part: var_like(golden, part) for part in ("transformer", "tokenizer")}
    refused(load_transformer, var["transformer"], tmp_path, no_transformer, looks + "a VAR transformer")
    refused(load_tokenizer, var["transformer"], tmp_path, no_tokenizer, looks + "a VAR transformer")
    for content in (var["tokenizer"], {f"vae.{n}": t for n, t in var["tokenizer"].items()}):
        for load, what in ((load_transformer, no_transformer), (load_tokenizer, no_tokenizer)):
            refused(load, content, tmp_path, what, looks + "the tokenizer of VAR or HART")
    hart = {"context_embed.weight": torch.ones(2, 2), "word_embed.weight": torch.ones(2, 2)}
    refused(load_transformer, hart, tmp_path, no_transformer, looks + "a HART transformer")
    refused(load_tokenizer, hart, tmp_path, no_tokenizer, looks + "a HART transformer")
    refused(load_transformer, {"x": torch.ones(1)}, tmp_path, no_transformer, "its first names are x")


def test_what_is_recognised(case: Callable, golden: Path):
    for name in (SQUARE, WIDE):
        assert recognises(case(name).transformer)
        assert not recognises(case(name).tokenizer)
    assert not recognises(golden / "var" / "a_basic" / "transformer.safetensors")


def test_bits_that_do_not_belong_together(case: Callable):
    square, wide = case(SQUARE), case(WIDE)
    message = (
        r"do not belong together: a token has 24 bits, a cell 16; .* 24 bits, or 6 with spatial patchify"
    )
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(square.tokenizer, CPU, token_bits=24)
    transformer = load_transformer(wide.transformer, CPU)
    fitting = load_tokenizer(wide.tokenizer, CPU, token_bits=24)
    assert fitting.config.patchify
    check_pair(transformer, fitting)
    assert not load_tokenizer(wide.tokenizer, CPU, token_bits=6).config.patchify
    with pytest.raises(CheckpointError, match=r"24 bits, which with patchify=False does not fit cells of 6"):
        check_pair(transformer, load_tokenizer(wide.tokenizer, CPU))
    with pytest.raises(CheckpointError, match="a token has 24 bits, a cell 16"):
        check_pair(transformer, load_tokenizer(square.tokenizer, CPU))


def test_sizes_from_names_alone(case: Callable):
    """Both take the model's own names, so that state dicts saved by this library can be read, too."""
    golden = case(WIDE)
    model = load_transformer(golden.transformer, CPU)
    tokenizer = load_tokenizer(golden.tokenizer, CPU, token_bits=24)
    meta = {n: t.to("meta") for n, t in model.state_dict().items()}
    assert infer_transformer(meta, Path("x")) == model.config
    meta = {n: t.to("meta") for n, t in tokenizer.state_dict().items()}
    assert infer_tokenizer(meta, Path("x"), token_bits=24) == tokenizer.config


# ------------------------------------------------------------------ finding files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of the 2B model and the tokenizer of the 8B models, by name alone."""
    for name in (RELEASES["2b"].transformer, RELEASES["2b"].tokenizer, RELEASES["8b"].tokenizer):
        (tmp_path / name).touch()
    return tmp_path


def test_beside_each_other(folder: Path):
    pair = folder / "infinity_2b_reg.pth", folder / "infinity_vae_d32reg.pth"
    for given in (folder, str(folder), pair[0], str(pair[0])):
        assert find_files(given) == pair
        assert find_files(given, model="2b") == pair
    other = folder / "infinity_vae_d56_f8_14_patchify.pth"
    assert find_files(pair[0], other) == (pair[0], other)
    assert find_files(pair[0], str(folder)) == pair
    pair[1].rename(folder / "infinity_vae_d32_reg.pth")  # as the official scripts spell it
    assert find_files(folder) == (pair[0], folder / "infinity_vae_d32_reg.pth")


def test_shards_beside_their_tokenizer(folder: Path):
    shards = write_shards({"a": torch.ones(1)}, folder / "infinity_8b_512x512_weights")
    vae = folder / "infinity_vae_d56_f8_14_patchify.pth"
    assert find_files(shards) == find_files(folder, model="8b-512") == (shards, vae)
    with pytest.raises(CheckpointError, match="found 2b, 8b-512; say which with model="):
        find_files(folder)


def test_a_file_of_another_name_takes_the_only_tokenizer(folder: Path):
    mine = folder / "ar-ckpt-giter020K-ep0-iter7-last.pth"
    mine.touch()
    message = (
        r"no single infinity_vae_\*.pth beside ar-ckpt.*, found infinity_vae_d32reg.pth, infinity_vae_d5"
    )
    with pytest.raises(CheckpointError, match=message):
        find_files(mine)
    (folder / RELEASES["8b"].tokenizer).unlink()
    assert find_files(mine) == (mine, folder / "infinity_vae_d32reg.pth")
    assert find_files(mine, model="2b") == (mine, folder / "infinity_vae_d32reg.pth")


def test_files_that_are_not_there(folder: Path):
    with pytest.raises(CheckpointError, match=r"no such file or folder: '.*nothing.pth'"):
        find_files(folder / "nothing.pth")
    with pytest.raises(CheckpointError, match=r"no such file or folder: '.*infinity_125M_256x256.pth'"):
        find_files(folder, model="125m")
    with pytest.raises(CheckpointError, match=r"no such file or folder: '.*absent.pth'"):
        find_files(folder, folder / "absent.pth")
    with pytest.raises(CheckpointError, match=r"unknown Infinity model '3b'; known: 125m, 2b, 8b, 8b-512"):
        find_files(folder, model="3b")
    (folder / RELEASES["2b"].tokenizer).unlink()
    message = (
        r"no infinity_vae_d32reg.pth beside infinity_2b_reg.pth, found infinity_vae_d56.*with tokenizer="
    )
    with pytest.raises(CheckpointError, match=message):
        find_files(folder)
    empty = folder / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match=r"should hold one released model, found none of infinity_125M"):
        find_files(empty)
    with pytest.raises(CheckpointError, match=r"no infinity_vae_d32reg.pth in '.*empty', found none"):
        find_files(folder / "infinity_2b_reg.pth", empty)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Offline; the folder of the cached official repository."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repo, revision = (
        tmp_path / "hub" / "models--FoundationVision--Infinity",
        "0123456789abcdef" * 2 + "01234567",
    )
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(revision)
    snapshot = repo / "snapshots" / revision
    snapshot.mkdir(parents=True)
    return snapshot


def test_official_files_from_the_hub(hub: Path, case: Callable):
    for release in RELEASES.values():
        (hub / release.tokenizer).touch()
    (hub / RELEASES["2b"].transformer).touch()
    write_shards(load_file(case(WIDE).transformer), hub / RELEASES["8b"].transformer)
    for model in ("2b", "8b"):
        release = RELEASES[model]
        expected = hub / release.transformer, hub / release.tokenizer
        assert find_files("FoundationVision/Infinity", model=model) == expected
    assert release_of(expected[0]) is RELEASES["8b"]
    assert load_transformer(expected[0], CPU).config.bits == 24
    own = find_files("FoundationVision/Infinity", case(WIDE).tokenizer, model="8b")
    assert own == (expected[0], case(WIDE).tokenizer)
    with pytest.raises(CheckpointError, match=r"say which model with model=, one of 125m, 2b, 8b, 8b-512"):
        find_files("FoundationVision/Infinity")
    with pytest.raises(ModelNotFoundError, match=r"cannot get infinity_125M_256x256.pth of"):
        find_files("FoundationVision/Infinity", model="125m")
    with pytest.raises(ModelNotFoundError, match=rf"cannot get infinity_8b_512x512_weights/{INDEX} of"):
        find_files("FoundationVision/Infinity", model="8b-512")
