"""Checkpoints as people have them, on the command line: options for what files do not tell, and messages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.families.golden_models import FAMILIES, PLACES
from torch import Tensor

from nextscale import VARPipeline
from nextscale.cli.main import main
from nextscale.cli.values import read_pairs, read_sides
from nextscale.errors import InvalidArgumentError
from nextscale.families import load_pretrained
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig


def run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    return int(left.value.code or 0)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line that a command ends with."""

    def call(*arguments: Any) -> str:
        assert run(*arguments) == 2
        text = capsys.readouterr().err.strip()
        assert text.startswith("error: ")
        assert "\n" not in text
        for word in ("averaged=", "settings=", "tokenizer=", "patch_nums", "depth=", "model="):
            assert word not in text
        return text

    return call


def prefixed(word: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {word + name: tensor for name, tensor in tensors.items()}


def halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: t * 0.5 if t.is_floating_point() and t.isfinite().all() else t for n, t in tensors.items()}


@pytest.fixture(params=FAMILIES)
def both(
    request: pytest.FixtureRequest, golden: Path, tmp_path: Path
) -> tuple[Path, Path, dict[str, Tensor]]:
    """A trainer's checkpoint with averages beside the rest, its tokenizer, and the transformer's tensors."""
    folder = golden / PLACES[request.param]
    tensors = load_file(folder / "transformer.safetensors")
    path = tmp_path / "last.ckpt"
    plain = prefixed("module._orig_mod.", tensors)
    torch.save({"trainer": {"net": plain, "net_ema": halved(plain)}, "epoch": 3}, path)
    if request.param == "hart":
        shutil.copy(folder / "config.json", tmp_path)
    return path, folder / "tokenizer.safetensors", tensors


@pytest.mark.parametrize(("option", "factor"), [((), 0.5), (("--averaged",), 0.5), (("--no-averaged",), 1.0)])
def test_averages(option: Any, factor: float, both: Any, tmp_path: Path):
    path, tokenizer, tensors = both
    new = tmp_path / "new"
    assert run("convert", path, new, "--tokenizer", tokenizer, *option) == 0
    pipe = load_pretrained(new, device="cpu", dtype="float32")
    assert torch.equal(pipe.transformer.word_embed.weight, tensors["word_embed.weight"] * factor)


def test_averages_that_are_not_there(both: Any, tmp_path: Path, refused: Callable[..., str]):
    path, tokenizer, tensors = both
    torch.save({"state_dict": tensors}, path)
    text = refused("convert", path, tmp_path / "new", "--tokenizer", tokenizer, "--averaged")
    assert text.endswith("(at 'state_dict'); --no-averaged takes those")
    torch.save({"ema_state_dict": tensors}, path)
    text = refused("convert", path, tmp_path / "new", "--tokenizer", tokenizer, "--no-averaged")
    assert text.endswith("(at 'ema_state_dict'); --averaged takes those")
    assert not (tmp_path / "new").exists()


def test_a_tokenizer_that_is_not_there(both: Any, tmp_path: Path, refused: Callable[..., str]):
    path, *_ = both
    assert refused("convert", path, tmp_path / "new").endswith("name the file with --tokenizer")


# ------------------------------------------------------------------ what the tensors of a VAR do not tell


@pytest.fixture
def mine(golden: Path, tmp_path: Path) -> Callable[..., list[Any]]:
    """Options for a VAR whose heads and grids nothing tells."""
    tokenizer = golden / PLACES["var"] / "tokenizer.safetensors"
    vocab_size, z_channels = load_file(tokenizer)["quantize.embedding.weight"].shape

    def make(grids: Any, **sizes: Any) -> list[Any]:
        shared = {"vocab_size": vocab_size, "z_channels": z_channels, "patch_nums": grids}
        own = {"num_classes": 3, "depth": 1, "embed_dim": 48, "num_heads": 4, "attn_l2_norm": False, **sizes}
        model = VARTransformer(VARTransformerConfig(**shared, **own))
        generator = torch.Generator().manual_seed(0)
        state = {n: torch.randn(t.shape, generator=generator) / 20 for n, t in model.state_dict().items()}
        lengths = torch.tensor([h * w for h, w in model.schedule.grids])
        state["lvl_1L"] = torch.repeat_interleave(torch.arange(len(lengths)), lengths)[None]
        torch.save(state, tmp_path / "mine.pth")
        return ["--transformer", tmp_path / "mine.pth", "--tokenizer", tokenizer]

    return make


def test_what_is_told(mine: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    names = tmp_path / "names.txt"
    names.write_text("ant\nqueen bee\ncrane\n\n", encoding="utf-8")
    options = mine(((1, 1), (1, 4), (2, 8)))
    options += ["--settings", "num_heads=4,norm_eps=1e-5", "--patch-nums", "1,1x4,2x8", "--device", "cpu"]
    options += ["--class-names", names]
    assert run("info", *options, "--json") == 0
    told = json.loads(capsys.readouterr().out)["model"]
    assert told["tokens"] == 1 + 4 + 16
    picture, again = tmp_path / "bee.png", tmp_path / "again.png"
    assert run("generate", "Queen-Bee", *options, "--seed", 3, "--output", picture) == 0
    assert run("generate", "--from", picture, "--device", "cpu", "--output", again) == 0
    assert picture.read_bytes() == again.read_bytes()
    assert "queen bee" in capsys.readouterr().out


def test_class_names_for_a_layout(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"kind {i}" for i in range(10)), encoding="utf-8")
    new = tmp_path / "new"
    assert run("convert", model, new, "--class-names", names) == 0
    assert VARPipeline.from_pretrained(new, device="cpu").class_names[7] == "kind 7"


def test_what_is_not_told(mine: Callable, refused: Callable[..., str]):
    grids = ((1, 1), (1, 4), (2, 8))
    options = [*mine(grids), "--device", "cpu"]
    assert refused("info", *options).endswith("published files; give --settings num_heads=…")
    text = refused("info", *options, "--settings", "num_heads=4")
    assert "(4 can be 2x2 and 1x4); pass --patch-nums 1,2,3,…, the side of every scale" in text
    text = refused("info", *options, "--settings", "num_heads=many")
    assert text.endswith("say num_heads = 'many', expected a whole number; correct --settings num_heads=…")
    text = refused("info", *options, "--settings", "num_heads=4", "--patch-nums", "1,2,3")
    assert "--patch-nums [1, 2, 3] make 3 scales and 14 tokens, but mine.pth has 3 scales and 21" in text
    assert "known: num_heads, norm_eps" in refused("info", *options, "--settings", "heads=4")


@pytest.mark.parametrize("family", ["hart", "infinity"])
def test_class_names_are_for_classes(family: str, golden: Path, tmp_path: Path, refused: Callable[..., str]):
    names = tmp_path / "names.txt"
    names.write_text("ant\n")
    files = [golden / PLACES[family] / f"{part}.safetensors" for part in ("transformer", "tokenizer")]
    text = refused("info", "--transformer", files[0], "--tokenizer", files[1], "--class-names", names)
    assert text.startswith("error: --class-names: ")
    assert f"a model of the family {family}, which has no such option" in text


def test_settings_of_hart(golden: Path, tmp_path: Path, refused: Callable[..., str]):
    folder = golden / PLACES["hart"]
    tensors = load_file(folder / "transformer.safetensors")
    text = int((tensors.pop("lvl_1L") == 0).sum())
    torch.save(tensors, tmp_path / "mine.pth")
    shutil.copy(folder / "tokenizer.safetensors", tmp_path)
    files = ["--transformer", tmp_path / "mine.pth", "--tokenizer", tmp_path / "tokenizer.safetensors"]
    assert refused("info", *files).endswith("give a positive whole number with --settings context_token=…")
    sides = json.loads((folder / "config.json").read_text())["patch_nums"]
    known = json.dumps({"context_token": text, "patch_nums": sides})
    assert run("info", *files, "--settings", known, "--device", "cpu") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,2,3", [1, 2, 3]),
        ("1, 1x4 ,2X8", [1, (1, 4), (2, 8)]),
    ],
)
def test_sides(text: str, expected: Any):
    assert read_sides(text, "--patch-nums") == expected


@pytest.mark.parametrize("text", ["", "1,", "1x", "1x2x3", "a", "1x4;2x8", "1.5"])
def test_sides_that_are_none(text: str):
    with pytest.raises(
        InvalidArgumentError, match=r"--patch-nums takes sides separated by commas, .*1x4; got"
    ):
        read_sides(text, "--patch-nums")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("num_heads=8", {"num_heads": 8}),
        (" num_heads = 8, norm_eps=1e-5 ", {"num_heads": 8, "norm_eps": 1e-5}),
        ("using_znorm=true,kind=max", {"using_znorm": True, "kind": "max"}),
        ('{"num_heads": 8, "patch_nums": [1, 2]}', {"num_heads": 8, "patch_nums": [1, 2]}),
    ],
)
def test_pairs(text: str, expected: Any):
    assert read_pairs(text, "--settings") == expected


@pytest.mark.parametrize("text", ["", "8", "num_heads", "num_heads=8,", "{", '{"a": 1', "a=1,[2]"])
def test_pairs_that_are_none(text: str):
    with pytest.raises(
        InvalidArgumentError, match="--settings takes NAME=VALUE, several separated by commas"
    ):
        read_pairs(text, "--settings")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ant\n\nbee\n", "line 2 of"),
        (b"", "line 1 of"),
        (b"\xff\xfe\x00", "cannot read class names"),
        (b"ant\nbee\n", "2 class names do not fit 10 classes"),
    ],
)
def test_class_names_that_are_none(
    content: bytes, message: str, model: Path, tmp_path: Path, refused: Callable[..., str]
):
    names = tmp_path / "names.txt"
    names.write_bytes(content)
    assert message in refused("generate", "0", "--model", model, "--class-names", names)


def test_a_file_of_class_names_that_is_not_there(model: Path, refused: Callable[..., str]):
    text = refused("generate", "0", "--model", model, "--class-names", "nowhere.txt")
    assert text == "error: --class-names: no such file: 'nowhere.txt'"
