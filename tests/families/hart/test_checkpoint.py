"""HART's weight files: the published ones at true size, what is read from where, what is refused and how."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nextscale.errors import CheckpointError, ModelNotFoundError
from nextscale.families.hart.checkpoint import find_files, load_tokenizer, load_transformer
from nextscale.families.hart.transformer import HARTTransformer
from nextscale.nn.placement import place
from nextscale.scales import PRESETS
from nextscale.weights.official import read_official

CASES = ["tiny_a", "tiny_b"]
CPU = place("cpu")
REPO = "mit-han-lab/hart-0.7b-1024px"


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())


def write(folder: Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Any] | None, name: str) -> Path:
    """A folder as the official trainer leaves it: weights, and their settings beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    if settings is not None:
        (folder / "config.json").write_text(json.dumps(settings))
    if name.endswith(".safetensors"):
        save_file(dict(tensors), folder / name)
    else:
        torch.save(dict(tensors), folder / name)
    return folder / name


# ------------------------------------------------------------------ the published files at true size


def hollow(shape: Sequence[int]) -> Tensor:
    """A tensor of any shape that takes four bytes, in memory and in a file."""
    return torch.tensor(0.0).expand(tuple(shape))


@pytest.fixture(scope="module")
def full_size(published: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published repository with all names and shapes, buffers and discriminator included."""
    folder = tmp_path_factory.mktemp("hart")
    for part, sub, name in (
        ("transformer", "llm", "ema_model.bin"),
        ("tokenizer", "tokenizer", "pytorch_model.bin"),
    ):
        tensors = {k: hollow(shape) for k, shape in published[part]["state_dict"].items()}
        write(folder / sub, tensors, published[part]["config"], name)
    return folder


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_every_tensor_of_the_published_transformer_has_its_place(published: dict[str, Any], full_size: Path):
    made = load_transformer(find_files(full_size)[0], CPU)
    stored, buffers = published["transformer"]["state_dict"], set(published["transformer"]["buffers"])
    wanted = {name: tuple(shape) for name, shape in stored.items() if name not in buffers}
    assert {name: tuple(p.shape) for name, p in made.named_parameters()} == wanted
    assert set(made.state_dict()) == set(wanted)
    assert parameters(made) == published["transformer"]["parameters"] == 732_620_352
    assert parameters(made.diffloss) == published["transformer"]["diffusion_head_parameters"] == 36_585_536
    told = published["transformer"]["config"]
    renamed = {"latent_channels": "z_channels"}
    dropped = {"attn_type", "mlp_type", "mlp_ratio", "use_cross_attn"}
    expected = {renamed.get(k, k): v for k, v in told.items() if k not in dropped}
    found = made.config.to_dict()
    assert {k: list(v) if k == "patch_nums" else v for k, v in found.items() if k in expected} == expected
    assert found["mlp_hidden"] == 4096
    assert made.config.sequence_length == 9750


def test_every_tensor_of_the_published_tokenizer_has_its_place(published: dict[str, Any], full_size: Path):
    made = load_tokenizer(find_files(full_size)[1], CPU)
    stored, buffers = published["tokenizer"]["state_dict"], set(published["tokenizer"]["buffers"])
    wanted = {
        name.removeprefix("vae."): tuple(shape)
        for name, shape in stored.items()
        if name not in buffers and not name.startswith("disc.")
    }
    assert {name: tuple(p.shape) for name, p in made.named_parameters()} == wanted
    assert set(made.state_dict()) == set(wanted)
    assert parameters(made) == published["tokenizer"]["parameters"] == 108_948_355
    assert made.config.patch_nums == PRESETS["var-1024"]
    assert (made.config.ch_mult, made.config.share_quant_resi, made.config.reduction) == (
        (1, 1, 2, 2, 4),
        4,
        16,
    )


def test_nothing_of_true_size_is_allocated_for_a_file_that_does_not_fit(
    published: dict[str, Any], tmp_path: Path
):
    tensors = {k: hollow(shape) for k, shape in published["transformer"]["state_dict"].items()}
    tensors["blocks.23.ffn.up_proj.weight"] = hollow((4095, 1536))
    del tensors["decoder_norm.weight"]
    file = write(tmp_path, tensors, published["transformer"]["config"], "ema_model.bin")
    with pytest.raises(
        CheckpointError, match=r"1 missing: decoder_norm\.weight; 1 of another shape: blocks\.23"
    ):
        load_transformer(file, CPU)


# ------------------------------------------------------------------ the golden files


@pytest.mark.parametrize("name", CASES)
def test_the_files_spell_out_the_sizes(name: str, case: Callable):
    config = case(name).config
    transformer = load_transformer(case(name).transformer, CPU)
    told = {**config["transformer"], **config["diffusion"]}
    told["z_channels"] = told["latent_channels"]
    found = transformer.config.to_dict()
    unnamed = {"pooling", "patch_nums"}
    assert {k: v for k, v in found.items() if k not in unnamed} == {
        k: told[k] for k in found if k not in unnamed
    }
    tokenizer = load_tokenizer(case(name).tokenizer, CPU)
    assert transformer.config.patch_nums == tokenizer.config.patch_nums == case(name).patch_nums
    named = {**config["tokenizer"], "ch_mult": tuple(config["tokenizer"]["ch_mult"])}
    sizes = tokenizer.config.to_dict()
    assert {k: v for k, v in sizes.items() if k in named} == {k: v for k, v in named.items() if k in sizes}
    assert not any(p.requires_grad for m in (transformer, tokenizer) for p in m.parameters())
    assert not transformer.training and not tokenizer.training


@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_of_the_file(name: str, case: Callable):
    for module, file in (
        (load_transformer(case(name).transformer, CPU), case(name).transformer),
        (load_tokenizer(case(name).tokenizer, CPU), case(name).tokenizer),
    ):
        stored = {k.removeprefix("vae."): v for k, v in load_file(file).items()}
        state = module.state_dict()
        assert all(torch.equal(v, stored[k]) for k, v in state.items())
        left = {k.split(".")[-1] for k in stored.keys() - state.keys()}
        assert left <= {"lvl_1L", "attn_bias_for_masking", "zero_k_bias", "ema_vocab_hit_SV"}


@pytest.fixture
def tensors(case: Callable) -> dict[str, Tensor]:
    """The transformer of ``tiny_a``."""
    return load_file(case("tiny_a").transformer)


@pytest.fixture
def settings(case: Callable) -> dict[str, Any]:
    """The transformer's settings of ``tiny_a`` as the official file has them, without sections."""
    config = case("tiny_a").config
    return {**config["transformer"], "patch_nums": config["patch_nums"], "num_sampling_steps": "4,4"}


@pytest.fixture
def stored_tokenizer(case: Callable) -> dict[str, Tensor]:
    return load_file(case("tiny_a").tokenizer)


def test_buffers_may_be_there_or_not(
    case: Callable, tensors: dict[str, Tensor], settings: Any, tmp_path: Path
):
    names = {"lvl_1L", "attn_bias_for_masking"}
    bare = {k: v for k, v in tensors.items() if k not in names and "zero_k_bias" not in k}
    assert len(bare) < len(tensors)
    made = load_transformer(write(tmp_path, bare, settings, "ema_model.bin"), CPU)
    assert same(made, load_transformer(case("tiny_a").transformer, CPU))
    assert made.config.num_sampling_steps == "4,4"


def test_other_parts_of_a_stored_tokenizer_are_left_out(
    case: Callable, stored_tokenizer: dict[str, Tensor], tmp_path: Path
):
    own = load_tokenizer(case("tiny_a").tokenizer, CPU)
    extra = {f"vae.decoder2.{k}": v for k, v in own.decoder.state_dict().items()}
    extra |= {f"vae.post_quant_conv2.{k}": v for k, v in own.post_quant_conv.state_dict().items()}
    extra |= {
        "disc.main.0.weight": torch.ones(2, 3, 4, 4),
        "disc.main.3.num_batches_tracked": torch.tensor(5),
    }
    settings = {"v_patch_nums": [1, 2, 3, 4, 5, 7], "quant_resi": 0.5, "quantizer_type": "var_hybrid"}
    file = write(tmp_path / "a", {**stored_tokenizer, **extra}, settings, "pytorch_model.bin")
    assert same(load_tokenizer(file, CPU), own)
    bare = {k.removeprefix("vae."): v for k, v in stored_tokenizer.items()}
    file = write(tmp_path / "b", bare, settings, "model.safetensors")
    assert same(load_tokenizer(file.parent, CPU), own)


def test_dtypes(case: Callable):
    half = load_transformer(case("tiny_b").transformer, place("cpu", "bfloat16"))
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    half = load_tokenizer(case("tiny_b").tokenizer, place("cpu", "float16"))
    assert {p.dtype for p in half.parameters()} == {torch.float16}


# ------------------------------------------------------------------ values that tensors do not tell


def test_without_settings(case: Callable, tensors: dict[str, Tensor], tmp_path: Path):
    """The stored levels tell text tokens and scales, and learned temperatures the heads."""
    shutil.copy(case("tiny_b").transformer, tmp_path / "b.safetensors")
    found = load_transformer(tmp_path / "b.safetensors", CPU)
    assert same(found, load_transformer(case("tiny_b").transformer, CPU))
    assert found.config == load_transformer(case("tiny_b").transformer, CPU).config

    file = write(tmp_path, tensors, None, "a.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"tensors of a\.safetensors do not tell num_heads, .* no such value; .* settings=\{'num_heads'",
    ):
        load_transformer(file, CPU)
    found = load_transformer(file, CPU, {"num_heads": 4})
    assert found.config == load_transformer(case("tiny_a").transformer, CPU).config


@pytest.mark.parametrize("missing", ["context_token", "patch_nums", "num_heads"])
def test_what_nothing_tells_is_asked_for(
    missing: str, tensors: Any, settings: dict[str, Any], tmp_path: Path
):
    del tensors["lvl_1L"]
    value = settings.pop(missing)
    file = write(tmp_path, tensors, settings, "ema_model.bin")
    with pytest.raises(
        CheckpointError, match=f"do not tell {missing}, and config.json beside it has no such"
    ):
        load_transformer(file, CPU)
    assert isinstance(load_transformer(file, CPU, {missing: value}), HARTTransformer)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_heads", "four", "do not tell num_heads, and config.json beside it says 'four'"),
        ("num_heads", 0, "do not tell num_heads, and config.json beside it says 0"),
        ("num_heads", 5, r"sizes that do not make a model: embed_dim .* got 64 and 5"),
        ("context_token", 7.5, "do not tell context_token, and config.json beside it says 7.5"),
        ("context_token", 9, r"made for 111 tokens, but 9 text tokens and the scales \[1, .* make 112"),
        ("patch_nums", "1_2_3", "do not tell patch_nums, and config.json beside it says '1_2_3'"),
        ("patch_nums", [1, 2, "x"], "sizes that do not make a model: a grid is"),
        ("patch_nums", [1, 2, 3, 4, 5, 8], "made for 111 tokens"),
        ("patch_nums", [1], "sizes that do not make a model|made for 111 tokens"),
        ("norm_eps", "small", r"say norm_eps = 'small', expected a number; correct config\.json"),
        ("num_sampling_steps", 8, "say num_sampling_steps = 8, expected a text"),
        ("num_sampling_steps", "none", "sizes that do not make a model: num_sampling_steps"),
        ("sep_aln_pooling_mode", "median", "pooling must be max or avg"),
        ("embed_dim", 128, "do not belong together: embed_dim is 64 by the tensors and 128 by the settings"),
        ("depth", 3, "do not belong together: depth is 2"),
    ],
)
def test_settings_that_cannot_be(
    name: str, value: Any, message: str, tensors: Any, settings: Any, tmp_path: Path
):
    file = write(tmp_path, tensors, {**settings, name: value}, "ema_model.bin")
    with pytest.raises(CheckpointError, match=message):
        load_transformer(file, CPU)


def test_given_settings_come_first_and_null_counts_as_absent(tensors: Any, settings: Any, tmp_path: Path):
    file = write(tmp_path, tensors, {**settings, "num_heads": 3, "norm_eps": None}, "ema_model.bin")
    found = load_transformer(file, CPU, {"num_heads": 8, "num_sampling_steps": "ddim5"}).config
    assert (found.num_heads, found.norm_eps, found.num_sampling_steps) == (8, 1e-6, "ddim5")


def test_a_tokenizers_scales(stored_tokenizer: Any, tmp_path: Path):
    file = write(
        tmp_path, stored_tokenizer, {"vocab_size": 64, "quant_resi": 1, "beta": 0.5}, "pytorch_model.bin"
    )
    with pytest.raises(
        CheckpointError, match=r"do not tell patch_nums, and config\.json beside it has no such"
    ):
        load_tokenizer(file, CPU)
    found = load_tokenizer(file, CPU, patch_nums=(1, 2, (3, 5))).config
    assert (found.patch_nums, found.quant_resi, found.beta) == ((1, 2, (3, 5)), 1, 0.5)
    found = load_tokenizer(file, CPU, settings={"v_patch_nums": [1, 3, [3, 4]]}).config
    assert found.patch_nums == (1, 3, (3, 4))


def test_settings_that_are_no_json(tensors: Any, tmp_path: Path):
    file = write(tmp_path, tensors, None, "ema_model.bin")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json' is not JSON"):
        load_transformer(file, CPU)


# ------------------------------------------------------------------ files that are something else


def test_the_gpt2_variant_is_refused(tensors: dict[str, Tensor], settings: Any, tmp_path: Path):
    for extra in ("pos_start", "blocks.0.attn.mat_qkv.weight", "blocks.0.ffn.fc1.weight"):
        file = write(tmp_path, {**tensors, extra: torch.zeros(1, 8, 64)}, settings, "ema_model.bin")
        with pytest.raises(
            CheckpointError, match=rf"gpt2 variant \(it has {extra}\), .* only the llama variant"
        ):
            load_transformer(file, CPU)


def test_files_of_other_models(case: Callable, golden: Path):
    ours, var = case("tiny_a"), golden / "var" / "a_basic"
    for file, looks in (
        (ours.tokenizer, "It looks like HART's tokenizer"),
        (ours.text_encoder, ""),
        (var / "transformer.safetensors", "It looks like a VAR transformer"),
        (var / "tokenizer.safetensors", "It looks like a tokenizer"),
    ):
        with pytest.raises(CheckpointError, match=rf"is not a HART transformer .*it lacks .*{looks}"):
            load_transformer(file, CPU)
    for file, looks in (
        (ours.transformer, "It looks like a HART transformer"),
        (var / "transformer.safetensors", "It looks like a VAR transformer"),
    ):
        with pytest.raises(CheckpointError, match=rf"is not HART's tokenizer: it lacks .*{looks}"):
            load_tokenizer(file, CPU)


def test_names_and_shapes_that_do_not_fit(tensors: Any, stored_tokenizer: Any, settings: Any, tmp_path: Path):
    del tensors["head_nm.ln_wo_grad.weight"]
    tensors["blocks.1.attn.q_bias"] = torch.zeros(63)
    tensors["blocks.0.extra.weight"] = torch.zeros(2)
    file = write(tmp_path / "llm", tensors, settings, "ema_model.bin")
    with pytest.raises(
        CheckpointError,
        match=r"1 missing: head_nm\.ln_wo_grad.*1 unexpected: blocks\.0\.extra.*q_bias \(63,\) instead of",
    ):
        load_transformer(file, CPU)
    del stored_tokenizer["vae.post_quant_conv.bias"]
    file = write(tmp_path / "tokenizer", stored_tokenizer, {"patch_nums": [1, 2]}, "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"1 missing: post_quant_conv\.bias.*Is it HART's tokenizer"):
        load_tokenizer(file, CPU)


# ------------------------------------------------------------------ where files lie


@pytest.fixture
def repository(tensors: Any, stored_tokenizer: Any, settings: Any, tmp_path: Path) -> Callable[..., Path]:
    """The published layout in small: averaged weights all 1, the others as they are."""

    def make(folder: Path | None = None, *, ema: bool = True, weights: str = "model.safetensors") -> Path:
        folder = folder or tmp_path / "hart"
        averaged = {k: torch.ones_like(v) if "weight" in k else v for k, v in tensors.items()}
        if ema:
            write(folder / "llm", averaged, settings, "ema_model.bin")
        write(folder / "llm", tensors, settings, weights)
        write(folder / "tokenizer", stored_tokenizer, {"v_patch_nums": settings["patch_nums"]}, weights)
        return folder

    return make


def is_averaged(file: Path) -> bool:
    return bool((read_official(file)["head.weight"] == 1).all())


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder(weights: str, repository: Callable, case: Callable):
    folder = repository(weights=weights)
    for place_ in (folder, folder / "llm"):
        transformer, tokenizer = find_files(place_)
        assert transformer == folder / "llm" / "ema_model.bin"
        assert is_averaged(transformer)
        assert same(load_tokenizer(tokenizer, CPU), load_tokenizer(case("tiny_a").tokenizer, CPU))
        assert is_averaged(find_files(place_, averaged=True)[0])
        assert not is_averaged(find_files(place_, averaged=False)[0])
    file = folder / "llm" / weights
    assert find_files(file)[0] == file
    elsewhere = case("tiny_a").tokenizer
    assert find_files(folder, elsewhere)[1] == elsewhere
    assert find_files(elsewhere.parent / "transformer.safetensors", folder / "tokenizer")[1] in (
        folder / "tokenizer",
        folder / "tokenizer" / weights,
    )


def test_a_folder_without_averaged_weights(repository: Callable):
    folder = repository(ema=False)
    assert not is_averaged(find_files(folder)[0])
    transformer, _ = find_files(folder, averaged=True)  # which may hold averages, too
    with pytest.raises(CheckpointError, match=r"holds no averaged weights .*averaged=False takes those"):
        load_transformer(transformer, CPU, averaged=True)


def test_a_relative_folder(repository: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(repository() / "llm")
    transformer, tokenizer = find_files(".")
    assert transformer.name == "ema_model.bin"
    assert tokenizer.name == "tokenizer"


def test_several_files_with_an_index(repository: Callable, tensors: Any, case: Callable):
    folder = repository(ema=False) / "llm"
    (folder / "model.safetensors").unlink()
    names, shards = sorted(tensors), ["model-1-of-2.safetensors", "model-2-of-2.safetensors"]
    weight_map = {name: shards[i % 2] for i, name in enumerate(names)}
    for shard in shards:
        save_file({n: tensors[n] for n in names if weight_map[n] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    found = load_transformer(find_files(folder)[0], CPU)
    assert same(found, load_transformer(case("tiny_a").transformer, CPU))


def test_files_that_are_not_there(repository: Callable, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no such file or folder: 'nowhere\.safetensors'"):
        find_files("nowhere.safetensors")
    folder = repository()
    with pytest.raises(CheckpointError, match=r"no such file or folder: 'vae\.bin'"):
        find_files(folder, "vae.bin")
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(
        CheckpointError, match=r"no folder 'tokenizer' in or beside .*; name the file with tokenizer="
    ):
        find_files(folder)
    (folder / "tokenizer").mkdir()
    with pytest.raises(
        CheckpointError, match=r"has none of the weights model\.safetensors, .* and pytorch_model"
    ):
        find_files(folder)


# ------------------------------------------------------------------ the hub, from a local cache


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Offline, with an empty cache; calling it makes the folder of one cached repository."""
    constants = "huggingface_hub.constants."
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants + "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants + "HF_HUB_CACHE", str(cache))

    def make(name: str) -> Path:
        revision = "0123456789abcdef0123456789abcdef01234567"
        folder = cache / ("models--" + name.replace("/", "--"))
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(revision)
        snapshot = folder / "snapshots" / revision
        snapshot.mkdir(parents=True)
        return snapshot

    return make


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_files_from_the_hub(weights: str, hub: Callable, repository: Callable, case: Callable):
    repository(hub(REPO), weights=weights)
    transformer, tokenizer = find_files(REPO)
    assert is_averaged(transformer)
    assert same(load_tokenizer(tokenizer, CPU), load_tokenizer(case("tiny_a").tokenizer, CPU))
    assert not is_averaged(find_files(REPO, averaged=False)[0])
    assert find_files(REPO, case("tiny_a").tokenizer)[1] == case("tiny_a").tokenizer


def test_a_repository_without_averaged_weights(hub: Callable, repository: Callable):
    repository(hub("someone/hart"), ema=False)
    assert not is_averaged(find_files("someone/hart")[0])
    with pytest.raises(
        ModelNotFoundError, match=r"cannot get llm/ema_model\.bin of 'someone/hart' from the hub"
    ):
        find_files("someone/hart", averaged=True)


def test_repositories_that_do_not_help(hub: Callable, repository: Callable):
    with pytest.raises(
        ModelNotFoundError, match=r"cannot get llm/config\.json of 'someone/nothing' from the hub"
    ):
        find_files("someone/nothing")
    snapshot = repository(hub(REPO))
    (snapshot / "tokenizer" / "model.safetensors").unlink()
    with pytest.raises(
        ModelNotFoundError, match=r"has tokenizer/config\.json, but none of model\.safetensors, "
    ):
        find_files(REPO)
