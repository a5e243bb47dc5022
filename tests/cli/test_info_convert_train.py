"""The other commands, and the small pieces they are made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from nextscale import VARPipeline
from nextscale.cli import main as cli
from nextscale.cli.info import draw_schedule
from nextscale.cli.pictures import auto_columns, auto_zoom, file_name, read_settings, save_png
from nextscale.cli.progress import TrainingLines, duration
from nextscale.cli.request import describe, seed_range, ssg_details
from nextscale.errors import InvalidArgumentError
from nextscale.families.var.tokenizer import VARTokenizer, VARTokenizerConfig
from nextscale.families.var.transformer import VARTransformer, VARTransformerConfig
from nextscale.scales import ScaleSchedule
from nextscale.training.transformer import init_transformer


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main([str(a) for a in arguments])
    return left.value.code


def test_info(model: Path, capsys: pytest.CaptureFixture[str]):
    assert run("info", model, "--json", "--device", "cpu") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"]["schedule"] == [[s, s] for s in (1, 2, 3, 4, 6, 8)]
    assert facts["model"]["class_names"][7] == "horse"
    assert facts["model"]["parameters"]["transformer"] > 10_000
    assert facts["installation"]["torch"] == torch.__version__
    assert facts["installation"]["device_reason"] == "given"
    assert run("info", model) == 0
    text = capsys.readouterr().out
    assert "32 x 32 pixels, 10 classes" in text and "\n              1x1  2x2  3x3  4x4   6x6" in text
    assert "device" in text and "\x1b" not in text
    assert run("info", "--json") == 0
    assert "model" not in json.loads(capsys.readouterr().out)


def test_schedules_are_drawn_where_they_fit():
    assert draw_schedule(ScaleSchedule.from_sides([1, 2, 3])) == [
        "          ▄▄▄",
        "▄    ██   ███",
        "1x1  2x2  3x3",
    ]
    assert draw_schedule(ScaleSchedule.preset("var-256"), 60) == [str(ScaleSchedule.preset("var-256"))]


def test_convert_official_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    official, new = tmp_path / "official", tmp_path / "new"
    official.mkdir()
    sizes = {"vocab_size": 64, "z_channels": 8}
    transformer = VARTransformer(VARTransformerConfig(**sizes, depth=2, embed_dim=128, num_classes=1000))
    init_transformer(transformer)
    torch.save(transformer.state_dict(), official / "var_d16.pth")
    assert run("convert", official, new) == 2
    assert "vae_ch160v4096z32.pth" in capsys.readouterr().err
    assert not new.exists()
    torch.save(
        VARTokenizer(VARTokenizerConfig(**sizes, ch=32)).state_dict(), official / "vae_ch160v4096z32.pth"
    )
    assert run("convert", official, new, "--dtype", "bfloat16") == 0
    assert capsys.readouterr().out.startswith(f"{new}: {official} in bfloat16")
    pipe = VARPipeline.from_pretrained(new, device="cpu", dtype="float32")
    kept = pipe.transformer.head.weight
    assert torch.equal(kept, transformer.head.weight.bfloat16().float())
    assert pipe.class_names[980] == "volcano"
    assert run("info", "--transformer", official / "var_d16.pth", "--json", "--device", "cpu") == 0
    assert json.loads(capsys.readouterr().out)["model"]["tokens"] == 680


def test_convert_a_model_of_our_own(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    new = tmp_path / "new"
    assert run("convert", model, new, "--dtype", "float16") == 0
    assert capsys.readouterr().out.startswith(f"{new}: {model} in float16")
    assert VARPipeline.from_pretrained(new, dtype="float32").class_names[0] == "airplane"
    assert run("convert", model, new) == 2
    assert "is not empty" in capsys.readouterr().err
    assert run("convert", model, tmp_path / "other", "--dtype", "int3") == 2
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_train_and_use_the_model(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 24), ("test", 8)):
        for name in ("left", "right"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    small = ("--recipe", "tiny", "--images", 32, "--device", "cpu")
    assert run("train", "tokenizer", "data", "-o", "runs/tokenizer", *small) == 0
    captured = capsys.readouterr()
    assert "step 2/2  loss " in captured.err and "images/s" in captured.err and "\x1b" not in captured.err
    assert captured.out.startswith("runs/tokenizer: the tokenizer is trained\n")
    tokenizer = ("--tokenizer", "runs/tokenizer")
    assert run("train", "transformer", "data", "-o", "runs/model", *tokenizer, *small) == 0
    assert "a complete model: --model" in capsys.readouterr().out
    assert run("generate", "left", "--model", "runs/model") == 0
    assert capsys.readouterr().out.startswith("nextscale.png: 1 picture of left; seed ")


def test_settings_travel_in_the_picture(tmp_path: Path):
    stored = {"command": "generate", "source": {}, "labels": [1], "seeds": [2], "layout": {}}
    stored |= {"guidance_scale": {"scale": 1.5}, "ssg": None, "name": "Käfer"}
    path = tmp_path / "a.png"
    save_png(Image.new("RGB", (4, 4)), path, stored)
    assert read_settings(path) == stored
    for damage, message in [
        ({"seeds": []}, "seeds is"),
        ({"labels": ["cat"]}, "labels is"),
        ({"source": None}, "source is None"),
        ({"ssg": 3}, "ssg is 3"),
        ({"batch": {"labels": [1], "seeds": [2], "index": 5}}, "index is 5"),
    ]:
        save_png(Image.new("RGB", (4, 4)), path, stored | damage)
        with pytest.raises(InvalidArgumentError, match=message):
            read_settings(path)


def test_shapes_of_grids():
    counts = (1, 3, 5, 6, 7, 8, 10, 12, 16, 40)
    assert [auto_columns(n) for n in counts] == [1, 3, 5, 3, 3, 4, 5, 4, 4, 8]
    assert auto_columns(6, per_label=3) == 3
    assert [auto_zoom((s, s)) for s in (16, 32, 64, 100, 256)] == [8, 4, 2, 1, 1]
    assert file_name(3, "great white shark", 7, "SSG 0.6") == "0003-great-white-shark-seed7-ssg-0.6.png"


def test_words():
    assert [duration(s) for s in (0.2, 59.6, 200, 7500)] == ["0 s", "1 min 00 s", "3 min 20 s", "2 h 05 min"]
    assert [seed_range(s) for s in ([4], [4, 5, 6], [4, 6])] == ["seed 4", "seeds 4 to 6", "seeds 4, 6"]
    usual = {"beta": 0.6, "schedule": "constant", "prior": "dse", "norm": "ortho", "remember": "unguided"}
    assert ssg_details(None) == ssg_details(usual) == ""
    assert ssg_details(usual | {"prior": "dct", "start": 2}) == "dct prior, steps 2 to the last"
    settings = {"model": "m", "guidance_scale": {"scale": 0}, "top_k": 0, "top_p": 1, "min_p": 0.1}
    settings |= {"temperature": [1, 0.5], "sampler": "greedy", "more_smooth": True, "ssg": usual}
    assert (
        describe(settings) == "m · no CFG · min-p 0.1 · temperature 1, 0.5 · greedy · more smooth · SSG 0.6"
    )
    settings |= {"guidance_scale": {"scale": [[1.0], [2.0]]}, "ssg": usual | {"beta": [[0.5], [0.0]]}}
    assert "CFG one a picture" in describe(settings)
    assert describe(settings).endswith("SSG one a picture")


def test_lines_of_a_training_run(capsys: pytest.CaptureFixture[str]):
    lines = TrainingLines(every=1000)
    record = {"loss": 2.0, "images_per_second": 99.6, "seconds_left": 61.0}
    lines(record, 1, 3)
    lines(record, 2, 3)  # too soon
    lines({"psnr": 24.125, "codes": 7}, 2, 3)
    lines(record, 3, 3)  # the last one is always written
    assert capsys.readouterr().err.splitlines() == [
        "step 1/3  loss 2.0000  100 images/s  1 min 01 s left",
        "held out, step 2: psnr 24.12  codes 7",
        "step 3/3  loss 2.0000  100 images/s  1 min 01 s left",
    ]
