"""Weight files: the published ones at true size, what is read from tensors, and what is refused and how."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nextscale import VARPipeline
from nextscale.errors import CheckpointError, GridError, ModelNotFoundError
from nextscale.families.var.checkpoint import DEPTHS, TOKENIZER_FILE
from nextscale.families.var.classes import imagenet_classes
from nextscale.scales import PRESETS

MODELS = [f"d{depth}" for depth in DEPTHS]


# ------------------------------------------------------------------ the published files at true size


def hollow(shape: Sequence[int], value: float = 0.0) -> Tensor:
    """A tensor of any shape that takes four bytes, in memory and in a file."""
    return torch.tensor(value).expand(tuple(shape))


def transformer_shapes(published: Mapping[str, Any], name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published transformer, from the formulas."""
    model = published["models"][name]
    sides = model["patch_nums"]
    values = {
        "C": model["width"],
        "H": model["heads"],
        "L": sum(p * p for p in sides),
        "S": len(sides),
        "V": 4096,
        "Cvae": 32,
        "num_classes": 1000,
        "patch_nums": sides,
    }
    shapes = {}
    for key, text in published["transformer_formulas"].items():
        condition = re.search(r"only when (not )?(\w+)$", text)
        if condition and model[condition[2]] == bool(condition[1]):
            continue
        formula = text[: text.rindex("]") + 1]
        shape = tuple(eval(formula, {"__builtins__": {}}, values))  # a fixture's "[3*C, C]"
        for block in range(model["depth"]) if "{i}" in key else (0,):
            shapes[key.format(i=block)] = shape
    return shapes


def hollow_transformer(published: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    tensors = {k: hollow(shape) for k, shape in transformer_shapes(published, name).items()}
    sides = published["models"][name]["patch_nums"]
    level = torch.repeat_interleave(torch.arange(len(sides)), torch.tensor([p * p for p in sides]))
    length = len(level)
    return {
        **tensors,
        "lvl_1L": level[None],
        "attn_bias_for_masking": hollow((1, 1, length, length), -math.inf),
    }


def hollow_tokenizer(published: Mapping[str, Any]) -> dict[str, Tensor]:
    return {k: hollow(shape) for k, shape in published["shapes"]["tokenizer"].items()}


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {k: tuple(v.shape) for k, v in tensors.items()}


@pytest.mark.parametrize("name", ["d16", "d36"])
def test_the_formulas_give_the_maps(name: str, published: dict[str, Any]):
    explicit = {k: tuple(shape) for k, shape in published["shapes"][name].items()}
    assert transformer_shapes(published, name) == explicit


@pytest.mark.parametrize("name", MODELS)
def test_published_files_at_true_size(name: str, published: dict[str, Any], tmp_path: Path):
    """Every key is consumed, every parameter filled, and nothing else; on the meta device, so no memory."""
    facts = published["models"][name]
    transformer, tokenizer = hollow_transformer(published, name), hollow_tokenizer(published)
    assert len(transformer) == facts["state_dict_tensors"]
    assert len(tokenizer) == published["tokenizer_state_dict_tensors"]
    torch.save(transformer, tmp_path / f"var_{name}.pth")
    torch.save(tokenizer, tmp_path / TOKENIZER_FILE)

    pipe = VARPipeline.from_official(tmp_path, device="meta")
    for module, tensors, kind in (
        (pipe.transformer, transformer, "transformer"),
        (pipe.tokenizer, tokenizer, "tokenizer"),
    ):
        buffers = {
            key.format(i=i) for key in published["non_parameter_buffers"][kind] for i in range(facts["depth"])
        }
        assert shapes_of(module.state_dict()) == {
            k: s for k, s in shapes_of(tensors).items() if k not in buffers
        }
        assert set(dict(module.named_parameters())) == set(module.state_dict())
        assert {p.device.type for p in module.parameters()} == {"meta"}
    assert sum(p.numel() for p in pipe.transformer.parameters()) == facts["trainable_parameters"]
    assert sum(p.numel() for p in pipe.tokenizer.parameters()) == published["tokenizer_trainable_parameters"]

    config = pipe.transformer.config
    assert (config.depth, config.embed_dim, config.num_heads) == (
        facts["depth"],
        facts["width"],
        facts["heads"],
    )
    assert (config.shared_aln, config.attn_l2_norm) == (facts["shared_aln"], facts["attn_l2_norm"])
    assert (config.vocab_size, config.z_channels, config.num_classes) == (4096, 32, 1000)
    assert config.patch_nums == pipe.tokenizer.config.patch_nums == tuple(facts["patch_nums"])
    assert pipe.image_size == ((512, 512) if name == "d36" else (256, 256))
    assert (pipe.tokenizer.config.ch, pipe.tokenizer.config.ch_mult) == (160, (1, 1, 2, 2, 4))
    assert pipe.class_names == imagenet_classes()
    assert pipe.defaults["top_k"] == 900


@pytest.mark.parametrize("preset", ["var-256", "var-512", "var-1024", "cifar10"])
def test_without_the_buffer_the_length_tells_the_published_schedule(
    preset: str, tmp_path: Path, tiny: Callable
):
    sides = PRESETS[preset]
    pipe = tiny([1, 2, 4], ch=32, norm_groups=32)
    tensors = pipe.transformer.state_dict()
    tensors["pos_1LC"] = hollow((1, sum(p * p for p in sides), 32))
    tensors["lvl_embed.weight"] = hollow((len(sides), 32))
    torch.save(tensors, tmp_path / "var_d2.pth")
    torch.save(pipe.tokenizer.state_dict(), tmp_path / TOKENIZER_FILE)
    assert VARPipeline.from_official(tmp_path, device="meta").transformer.config.patch_nums == sides


# ------------------------------------------------------------------ small files: what is read, in which form


@pytest.fixture
def files(case: Callable, tmp_path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The state dicts of a small model; a test writes them where and how it likes."""
    folder = case("a_basic").folder
    return load_file(folder / "transformer.safetensors"), load_file(folder / "tokenizer.safetensors")


def same(a: VARPipeline, b: VARPipeline) -> bool:
    pairs = ((a.transformer, b.transformer), (a.tokenizer, b.tokenizer))
    return all(
        x.config == y.config
        and x.state_dict().keys() == y.state_dict().keys()
        and all(torch.equal(v, y.state_dict()[k]) for k, v in x.state_dict().items())
        for x, y in pairs
    )


def write(tmp_path: Path, transformer: Any, tokenizer: Any) -> tuple[Path, Path]:
    paths = tmp_path / "var_d16.pth", tmp_path / TOKENIZER_FILE
    for content, path in zip((transformer, tokenizer), paths, strict=True):
        torch.save(content, path)
    return paths


@pytest.mark.parametrize("form", ["plain", "legacy", "trainer", "half", "fortran"])
def test_pytorch_files_load_like_safetensors(form: str, files: Any, tmp_path: Path, pipeline: Callable):
    expected = pipeline("a_basic")
    transformer, tokenizer = files
    if form == "plain":
        paths = write(tmp_path, transformer, tokenizer)
    elif form == "legacy":
        paths = tmp_path / "a.pt", tmp_path / "b.pt"
        for content, path in zip(files, paths, strict=True):
            torch.save(content, path, _use_new_zipfile_serialization=False)
    elif form == "trainer":
        # What the official trainer writes; one file holds both models.
        inside = {
            "config": {"depth": 2},
            "var_wo_ddp": transformer,
            "vae_local": tokenizer,
            "var_opt": {"state": {}},
        }
        whole = {"epoch": 3, "iter": 77, "trainer": inside, "args": {"bs": 768, "note": "a run"}}
        paths = write(tmp_path, whole, whole)
    elif form == "half":
        halves = [{k: v.half() if v.is_floating_point() else v for k, v in d.items()} for d in files]
        pipe = VARPipeline.from_official(*write(tmp_path, *halves), device="cpu")
        assert pipe.dtype == torch.float32
        assert torch.equal(pipe.transformer.head.weight, transformer["head.weight"].half().float())
        return
    else:  # transposed in memory
        turned = {k: v.T.contiguous().T if v.ndim == 2 else v for k, v in transformer.items()}
        paths = write(tmp_path, turned, tokenizer)
    assert same(expected, VARPipeline.from_official(*paths, device="cpu"))


def test_found_beside_the_transformer_or_in_a_folder(files: Any, tmp_path: Path, pipeline: Callable):
    transformer, tokenizer = write(tmp_path, *files)
    expected = pipeline("a_basic")
    for given in (transformer, str(tmp_path)):
        assert same(expected, VARPipeline.from_official(given, device="cpu"))
    shutil.copy(transformer, tmp_path / "var_d20.pth")
    assert same(expected, VARPipeline.from_official(tmp_path, depth=20, device="cpu"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(tokenizer, elsewhere)
    assert same(expected, VARPipeline.from_official(transformer, elsewhere, device="cpu"))


def test_flags_and_sizes_are_inferred(tmp_path: Path, tiny: Callable):
    variants: list[dict[str, Any]] = [
        dict(),
        dict(shared_aln=True, depth=3),
        dict(attn_l2_norm=False, embed_dim=128),
        dict(num_heads=4, mlp_ratio=2.5, num_classes=7),
        dict(share_quant_resi=1, ch_mult=(1, 2, 2)),
        dict(share_quant_resi=0, num_res_blocks=2),
        dict(share_quant_resi=3, quant_conv_ks=1),
        dict(quant_resi=0.0, share_quant_resi=0),
        dict(z_channels=6, vocab_size=31, ch=64),
    ]
    for sizes in variants:
        pipe = tiny([1, 2, 4], **{"norm_groups": 32, "ch": 32, **sizes})
        paths = write(tmp_path, pipe.transformer.state_dict(), pipe.tokenizer.state_dict())
        found = VARPipeline.from_official(*paths, patch_nums=[1, 2, 4], device="cpu")
        assert same(pipe, found), sizes


def test_patch_nums_are_needed_where_nothing_tells(files: Any, tmp_path: Path):
    transformer, tokenizer = files
    del transformer["lvl_1L"]
    paths = write(tmp_path, transformer, tokenizer)
    with pytest.raises(CheckpointError, match=r"4 scales and 30 tokens, .* pass patch_nums=\[\.\.\.\]"):
        VARPipeline.from_official(*paths)
    assert VARPipeline.from_official(*paths, patch_nums=[1, 2, 3, 4], device="cpu").schedule.num_tokens == 30
    turned = [(1, 1), (1, 2), (1, 3), (4, 6)]  # as many tokens in another shape: only the caller knows
    assert VARPipeline.from_official(*paths, patch_nums=turned, device="cpu").schedule.grids == tuple(turned)


@pytest.mark.parametrize(
    ("patch_nums", "error", "message"),
    [
        (
            [1, 2, 3],
            CheckpointError,
            r"\[1, 2, 3\] make 3 scales and 14 tokens, but var_d16.pth has 4 scales and 30",
        ),
        ([1, 2, 3, 5], CheckpointError, "4 scales and 39 tokens, but .* 30 tokens"),
        ([4, 3, 2, 1], GridError, "must not shrink"),
        ([1, 2, 3, 0], GridError, "positive"),
    ],
)
def test_wrong_patch_nums(patch_nums: Any, error: type[Exception], message: str, files: Any, tmp_path: Path):
    paths = write(tmp_path, *files)
    with pytest.raises(error, match=message):
        VARPipeline.from_official(*paths, patch_nums=patch_nums)


@pytest.mark.parametrize("level", [[-1], [4, 3, 2, 1], [1, 4, 9, 15, 1], [5, 9, 16]])
def test_a_damaged_buffer_of_scale_numbers_is_not_believed(level: list[int], files: Any, tmp_path: Path):
    transformer, tokenizer = files
    counts = torch.tensor([max(n, 0) for n in level])
    transformer["lvl_1L"] = (
        torch.repeat_interleave(torch.arange(len(level)), counts)[None]
        if level != [-1]
        else -torch.ones(1, 30).long()
    )
    with pytest.raises(CheckpointError, match="pass patch_nums"):
        VARPipeline.from_official(*write(tmp_path, transformer, tokenizer))


# ------------------------------------------------------------------ what is refused, with which message


class Payload:
    """What a pickle could do: here, make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickles_with_code_are_refused(legacy: bool, files: Any, tmp_path: Path):
    trap = tmp_path / "executed"
    for content, name in (
        ({**files[0], "x": Payload(trap)}, "mkdir"),
        ({"a": Fraction(1, 2)}, "fractions.Fraction"),
    ):
        path = tmp_path / "var_d16.pth"
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(CheckpointError) as caught:
            VARPipeline.from_official(path, path)
        assert not trap.exists()
        message = str(caught.value)
        assert "would run code" in message
        assert name in message
        assert "safetensors" in message
        assert "weights_only" not in message  # torch's own advice is to load it all the same


def test_files_given_the_wrong_way_round(files: Any, tmp_path: Path):
    transformer, tokenizer = write(tmp_path, *files)
    with pytest.raises(
        CheckpointError,
        match=rf"{TOKENIZER_FILE} is not a VAR transformer .*lacks pos_start.*encoder|decoder",
    ):
        VARPipeline.from_official(tokenizer, transformer)
    with pytest.raises(CheckpointError, match=r"var_d16.pth is not VAR's tokenizer .*lacks encoder.*blocks"):
        VARPipeline.from_official(transformer, transformer)


def is_refused(tmp_path: Path, transformer: Any, tokenizer: Any, *parts: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        VARPipeline.from_official(*write(tmp_path, transformer, tokenizer))
    for part in parts:
        assert part in str(caught.value), f"{part!r} is not in {str(caught.value)!r}"


@pytest.mark.parametrize("which", [0, 1])
def test_any_missing_or_renamed_tensor_is_named(which: int, files: Any, tmp_path: Path):
    """Whatever the tensor: also those that sizes are read from."""
    ignorable = re.compile(r"lvl_1L|attn_bias_for_masking|zero_k_bias|ema_vocab")
    names = [k for k in files[which] if not ignorable.search(k)]
    chosen = names if which == 0 else names[::20] + [k for k in names if "block.0.conv1.weight" in k]
    chosen += ["encoder.conv_in.weight", "quant_conv.weight", "quantize.embedding.weight"] * which
    for name in chosen:
        damaged = [dict(files[0]), dict(files[1])]
        damaged[which][name + "_x"] = damaged[which].pop(name)
        # A flag that is told by this very tensor is read as off, which leaves others over.
        flag = name.endswith(("scale_mul_1H11", "qresi_ls.0.weight", "qresi_ls.0.bias"))
        is_refused(tmp_path, *damaged, *([] if flag else [name]))


def test_missing_block_and_left_over_tensor(files: Any, tmp_path: Path):
    transformer, tokenizer = files
    without = {k: v for k, v in transformer.items() if not k.startswith("blocks.0.attn")}
    is_refused(tmp_path, without, tokenizer, "missing", "blocks.0.attn.q_bias", "more", "var_d*.pth")
    is_refused(tmp_path, {**transformer, "extra": torch.ones(2)}, tokenizer, "1 unexpected: extra")
    is_refused(
        tmp_path, transformer, {**tokenizer, "extra": torch.ones(2)}, "1 unexpected: extra", TOKENIZER_FILE
    )


def test_wrong_shapes_and_types(files: Any, tmp_path: Path):
    transformer, tokenizer = files
    wrong = {**transformer, "blocks.1.attn.proj.weight": torch.zeros(48, 47)}
    is_refused(tmp_path, wrong, tokenizer, "blocks.1.attn.proj.weight (48, 47) instead of (48, 48)")
    wrong = {**tokenizer, "decoder.conv_in.bias": torch.zeros(3)}
    is_refused(tmp_path, transformer, wrong, "decoder.conv_in.bias (3,) instead of (32,)")
    wrong = {**transformer, "head.bias": torch.zeros(64, dtype=torch.int64)}
    is_refused(tmp_path, wrong, tokenizer, "1 of another type: head.bias int64")
    for name in ("pos_start", "head.weight", "word_embed.weight", "class_emb.weight", "lvl_embed.weight"):
        is_refused(tmp_path, {**transformer, name: torch.tensor(1.0)}, tokenizer, name, "()")
    for name in (
        "encoder.conv_in.weight",
        "quantize.embedding.weight",
        "encoder.down.2.block.0.conv1.weight",
    ):
        is_refused(tmp_path, transformer, {**tokenizer, name: torch.ones(5)}, name, "(5,)")
    is_refused(
        tmp_path, {**transformer, "pos_start": torch.ones(1, 1, 0)}, tokenizer, "pos_start", "(1, 1, 0)"
    )
    odd = {**transformer, "blocks.0.attn.scale_mul_1H11": torch.ones(1, 5, 1, 1)}
    is_refused(tmp_path, odd, tokenizer, "embed_dim must be a multiple of num_heads, got 48 and 5")
    odd = {**tokenizer, "encoder.conv_in.weight": torch.ones(40, 3, 3, 3)}
    is_refused(tmp_path, transformer, odd, "multiple of the 32 groups", "got 40")


def test_shapes_are_checked_before_anything_is_allocated(files: Any, tmp_path: Path):
    """These shapes would take terabytes."""
    transformer, tokenizer = files
    huge = 2**41
    is_refused(
        tmp_path, {**transformer, "head.weight": hollow((huge, 48))}, tokenizer, f"(64,) instead of ({huge},)"
    )
    wrong = {**transformer, "blocks.0.ffn.fc2.weight": hollow((huge, 192))}
    is_refused(tmp_path, wrong, tokenizer, f"({huge}, 192) instead of (48, 192)")
    is_refused(
        tmp_path, transformer, {**tokenizer, "post_quant_conv.weight": hollow((huge, 8, 3, 3))}, str(huge)
    )


def test_damaged_files(files: Any, tmp_path: Path, case: Callable):
    for source in ("transformer.safetensors", "pth", "legacy"):
        path = tmp_path / "var_d16.pth"
        if source.endswith("safetensors"):
            shutil.copyfile(case("a_basic").folder / source, path)
        else:
            torch.save(files[0], path, _use_new_zipfile_serialization=source == "pth")
        content = path.read_bytes()
        for length in (0, 1, 8, 9, 100, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:length])
            with pytest.raises(CheckpointError, match=r"var_d16\.pth is not a .* damaged or incomplete"):
                VARPipeline.from_official(path, path)
    for text in (
        "<!DOCTYPE html><html>404</html>",
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "{}",
    ):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"var_d16\.pth is not a .* damaged or incomplete"):
            VARPipeline.from_official(path, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, expected a dictionary"),
        ({"a": 1}, "no tensors .* keys are a"),
        ({}, "no tensors"),
    ],
)
def test_files_of_something_else(content: Any, message: str, tmp_path: Path):
    path = tmp_path / "var_d16.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        VARPipeline.from_official(path, path)


def test_names_that_are_not_text_are_left_out(files: Any, tmp_path: Path, pipeline: Callable):
    paths = write(tmp_path, {**files[0], 3: torch.ones(1), "step": 7}, files[1])
    assert same(pipeline("a_basic"), VARPipeline.from_official(*paths, device="cpu"))


def test_files_that_are_not_there(files: Any, tmp_path: Path):
    transformer, tokenizer = write(tmp_path, *files)
    with pytest.raises(CheckpointError, match=r"no such file or folder: '.*var_d99.pth'"):
        VARPipeline.from_official(tmp_path / "var_d99.pth")
    with pytest.raises(CheckpointError, match=r"no such file or folder: 'folder/var_d16\.pth'"):
        VARPipeline.from_official("folder/var_d16.pth")
    with pytest.raises(CheckpointError, match=r"no such weight file: .*vae\.pth"):
        VARPipeline.from_official(transformer, tmp_path / "vae.pth")
    with pytest.raises(CheckpointError, match=r"no such weight file: .*var_d30\.pth"):
        VARPipeline.from_official(tmp_path, depth=30)
    tokenizer.unlink()
    for given in (transformer, tmp_path):
        with pytest.raises(CheckpointError, match=rf"no {TOKENIZER_FILE} beside var_d16.pth; .*tokenizer="):
            VARPipeline.from_official(given)


def test_a_folder_with_several_depths_or_none(files: Any, tmp_path: Path):
    write(tmp_path, *files)
    shutil.copy(tmp_path / "var_d16.pth", tmp_path / "var_d20.pth")
    with pytest.raises(CheckpointError, match=r"found var_d16.pth, var_d20.pth; say which with depth="):
        VARPipeline.from_official(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(CheckpointError, match=r"should hold one var_d\*.pth, found none"):
        VARPipeline.from_official(empty)


# ------------------------------------------------------------------ the hub, from a local cache


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Offline, with an empty cache; calling it makes the folder of one cached repository."""
    constants = "huggingface_hub.constants."
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr(constants + "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants + "HF_HUB_CACHE", str(cache))

    def repository(name: str) -> Path:
        revision = "0123456789abcdef0123456789abcdef01234567"
        folder = cache / ("models--" + name.replace("/", "--"))
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(revision)
        snapshot = folder / "snapshots" / revision
        snapshot.mkdir(parents=True)
        return snapshot

    return repository


def test_official_files_from_the_hub(hub: Callable, files: Any, tmp_path: Path, pipeline: Callable):
    write(hub("FoundationVision/var"), *files)
    found = VARPipeline.from_official("FoundationVision/var", depth=16, device="cpu")
    assert same(pipeline("a_basic"), found)
    assert found.name == "FoundationVision/var d16"
    with pytest.raises(
        ModelNotFoundError, match=r"cannot get var_d20.pth of 'FoundationVision/var' from the hub"
    ):
        VARPipeline.from_official("FoundationVision/var", depth=20)
    for depth in (None, 17):
        with pytest.raises(
            CheckpointError, match=rf"depth must be one of \(16, 20, 24, 30, 36\), got {depth}"
        ):
            VARPipeline.from_official("FoundationVision/var", depth=depth)


@pytest.mark.parametrize("name", ["someone/birds", "someone/birds-v1.5", "some.one/VAR.2_tiny"])
def test_own_layout_from_the_hub(name: str, hub: Callable, pipeline: Callable):
    pipeline("a_basic").save_pretrained(hub(name))
    assert same(pipeline("a_basic"), VARPipeline.from_pretrained(name, device="cpu"))


def test_hub_repositories_that_do_not_help(hub: Callable, files: Any):
    with pytest.raises(ModelNotFoundError, match="cannot get 'someone/nothing' from the hub"):
        VARPipeline.from_pretrained("someone/nothing")
    write(hub("FoundationVision/var"), *files)
    with pytest.raises(ModelNotFoundError, match=r"not in this library's layout; .* from_official"):
        VARPipeline.from_pretrained("FoundationVision/var")


# ------------------------------------------------------------------ the library's own layout


def test_round_trip_is_bit_exact(tmp_path: Path, pipeline: Callable):
    for name in ("a_basic", "b_shared_adaln"):
        pipe = pipeline(name)
        pipe.save_pretrained(tmp_path / name)
        found = VARPipeline.from_pretrained(tmp_path / name, device="cpu")
        assert same(pipe, found)
        assert found.defaults == pipe.defaults
        a, b = (p([3, 7], seed=0, output_type="pt").images for p in (pipe, found))
        assert torch.equal(a, b)


def test_round_trip_keeps_names_defaults_and_unusual_sizes(tmp_path: Path, tiny: Callable):
    names = ["kät", "dog", "horse", "ship", "car"]
    pipe = tiny(
        [(1, 1), (2, 3), (4, 5)], class_names=names, shared_aln=True, share_quant_resi=0, using_znorm=True
    )
    pipe = VARPipeline(
        pipe.transformer, pipe.tokenizer, class_names=names, defaults={"top_k": 3, "ssg": {"beta": 0.9}}
    )
    pipe.save_pretrained(tmp_path)
    found = VARPipeline.from_pretrained(str(tmp_path), device="cpu")
    assert same(pipe, found)
    assert found.class_names == tuple(names)
    assert found.defaults == pipe.defaults
    assert found.name == str(tmp_path)


def test_half_on_disk(tmp_path: Path, pipeline: Callable):
    pipe = pipeline("a_basic")
    pipe.save_pretrained(tmp_path, dtype=torch.float16)
    stored = load_file(tmp_path / "transformer" / "model.safetensors")
    assert {v.dtype for v in stored.values()} == {torch.float16}
    found = VARPipeline.from_pretrained(tmp_path, device="cpu")
    assert found.dtype == torch.float32
    for key, value in pipe.transformer.state_dict().items():
        assert torch.equal(found.transformer.state_dict()[key], value.half().float())
    half = VARPipeline.from_pretrained(tmp_path, device="cpu", dtype="float16")
    assert half.dtype == half.tokenizer.dtype == torch.float16


def test_saving_over_the_folder_it_came_from(tmp_path: Path, pipeline: Callable):
    pipeline("a_basic").save_pretrained(tmp_path)
    found = VARPipeline.from_pretrained(tmp_path, device="cpu")
    found.save_pretrained(tmp_path)
    assert same(pipeline("a_basic"), found)
    assert same(found, VARPipeline.from_pretrained(tmp_path, device="cpu"))
    assert not list(tmp_path.rglob("*.partial"))


@pytest.fixture
def saved(tmp_path: Path, tiny: Callable) -> Path:
    """A folder in the library's layout."""
    tiny().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("file", "content", "error", "message"),
    [
        ("config.json", None, ModelNotFoundError, "no config.json; .* from_official"),
        ("config.json", "{", CheckpointError, r"config.json' is not JSON"),
        ("config.json", b"\xff\xfe\x00", CheckpointError, r"config.json' is not JSON"),
        ("config.json", "[1]", CheckpointError, "holds no JSON object"),
        ("config.json", "{}", CheckpointError, "family None, not 'var'"),
        ("config.json", '{"family": "hart"}', CheckpointError, "family 'hart', not 'var'"),
        ("transformer/config.json", None, ModelNotFoundError, r"transformer/config.json' is missing"),
        ("transformer/config.json", '{"dept": 2}', CheckpointError, "dept"),
        (
            "transformer/config.json",
            '{"embed_dim": "48"}',
            CheckpointError,
            "transformer/config.json' does not describe",
        ),
        ("transformer/config.json", '{"depth": 1, "vocab_size": -5}', CheckpointError, "does not describe"),
        ("transformer/config.json", '{"depth": 1, "patch_nums": [3, 1]}', CheckpointError, "must not shrink"),
        ("tokenizer/config.json", '{"ch": 33}', CheckpointError, "32 groups of the norms, got 33"),
        ("tokenizer/config.json", '{"norm_groups": 0}', CheckpointError, "does not describe"),
        ("tokenizer/config.json", '{"ch_mult": 3}', CheckpointError, "does not describe"),
        ("transformer/model.safetensors", None, CheckpointError, "no such weight file"),
        ("tokenizer/model.safetensors", "?", CheckpointError, "not a PyTorch or safetensors weight file"),
    ],
)
def test_damaged_folders(file: str, content: Any, error: type[Exception], message: str, saved: Path):
    path = saved / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=message):
        VARPipeline.from_pretrained(saved, device="cpu")


def test_sizes_and_weights_that_do_not_belong_together(saved: Path):
    path = saved / "transformer" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "depth": 3}))
    with pytest.raises(
        CheckpointError, match=r"missing: blocks\.2\..*Do config.json and model.safetensors belong"
    ):
        VARPipeline.from_pretrained(saved, device="cpu")
    path.write_text(json.dumps({**config, "num_classes": 2**41}))
    with pytest.raises(CheckpointError, match=r"class_emb.weight \(6, 32\) instead of"):
        VARPipeline.from_pretrained(saved, device="cpu")


def test_a_tensor_of_another_shape_in_an_own_layout(saved: Path):
    path = saved / "transformer" / "model.safetensors"
    tensors = load_file(path)
    tensors["head.bias"] = torch.zeros(25)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"head.bias \(25,\) instead of \(24,\)"):
        VARPipeline.from_pretrained(saved, device="cpu")


@pytest.mark.parametrize(
    "name", ["cifar100", "no such model", "/nowhere/at/all", "a/b/c", "file.safetensors"]
)
def test_unknown_names(name: str, hub: Callable):
    with pytest.raises(ModelNotFoundError, match=r"neither embedded \(cifar10\), nor a folder, nor a hub id"):
        VARPipeline.from_pretrained(name)
