"""The command line with text-to-image models: real processes, tiny models of Infinity and HART."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from nextscale.cli import main as cli
from nextscale.cli.models import ModelChoice
from nextscale.cli.pictures import file_name, read_settings, save_png
from nextscale.cli.request import Pictures, TokenCount, choose_pictures, describe, draw
from nextscale.cli.sheets import Block, comparison
from nextscale.cli.subjects import Encoded, Labels, Prompts, Typed, read_lines, shorten, subjects_of
from nextscale.errors import InvalidArgumentError
from nextscale.families.infinity.text import T5TextEncoder
from nextscale.families.text import TextFeatures
from nextscale.families.words import WordEncoder

FOX, BIRD = "a red fox", "a blue bird in the sky"


def settings(path: Path) -> dict:
    with Image.open(path) as image:
        return json.loads(image.info["nextscale"])


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return left.value.code, captured.out, captured.err


# ------------------------------------------------------------------ pictures, and making them again


def test_prompts_make_pictures_that_can_be_made_again(
    nextscale, text_model: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "more.txt").write_text(f"  {BIRD} \n\n", encoding="utf-8")
    options = ("--count", 2, "--seed", 5, "--ssg", 0.6, "--batch-size", 3, "--separate", "single")
    done = nextscale("generate", "--model", text_model, "-p", FOX, "--prompts", "more.txt", *options)
    assert done.stdout.startswith(f'nextscale.png: 4 pictures of "{FOX}", "{BIRD}"; seeds 5 to 8\n')
    assert done.stderr == "" and "\x1b" not in done.stdout
    grid, singles = tmp_path / "nextscale.png", sorted(tmp_path.glob("single/*.png"))
    assert settings(grid)["prompts"] == [FOX, FOX, BIRD, BIRD]
    assert [p.name for p in singles][1:3] == ["0001-a-red-fox-seed6.png", f"0002-{slug(BIRD)}-seed7.png"]

    nextscale("generate", "--from", grid)
    assert (tmp_path / "nextscale-2.png").read_bytes() == grid.read_bytes()
    monkeypatch.chdir(tmp_path)
    run(capsys, "generate", "--from", singles[1], "--output", "one.png")
    assert (tmp_path / "one.png").read_bytes() == singles[1].read_bytes()

    # Words without a name are prompts too; what is not given stays as it was.
    run(capsys, "generate", BIRD, "--from", grid, "--guidance-scale", 1, "--seed", 9, "-o", "other.png")
    other = settings(tmp_path / "other.png")
    assert (other["prompts"], other["seeds"], other["ssg"]["beta"]) == ([BIRD], [9], 0.6)
    assert other["guidance_scale"]["scale"] == 1 and "no CFG" in describe(other)


def slug(text: str) -> str:
    return text.replace(" ", "-")


@pytest.mark.filterwarnings("default:250x250")
def test_wide_pictures_side_by_side(
    wide_model: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    long = "a lighthouse that stands at dawn on a rock in the sea while gulls fly around it and nobody looks"
    where = ("--model", wide_model, "--aspect-ratio", "16:9", "--negative-prompt", "fog", "--tile", 16)
    options = ("--ssg", "0.6", "-n", 1, "--output", "c.png", "--separate", "single")
    code, out, err = run(capsys, "compare", "--prompt", FOX, "--prompt", long, *where, *options)
    assert (code, err) == (0, "")
    assert out.startswith("c.png: no SSG, SSG 0.6; 2 pictures each, seeds 0 to 1\n") and "not fog" in out
    stored = settings(tmp_path / "c.png")
    assert stored["prompts"] == [FOX, long] and stored["negative_prompt"] == ["fog"] and stored["tile"] == 16
    assert stored["schedule"][-1] == [12, 21]  # 7:4 is the nearest there is, and 7 steps of it
    singles = sorted(tmp_path.glob("single/*.png"))
    assert {Image.open(p).size for p in singles} == {(84, 48)}
    assert [len(p.name) < 90 for p in singles] == [True] * 4

    run(capsys, "compare", "--from", "c.png", "--output", "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "c.png").read_bytes()
    run(capsys, "generate", "--from", singles[3], "--output", "one.png")
    assert (tmp_path / "one.png").read_bytes() == singles[3].read_bytes()

    # A new size replaces the old one as a whole; what is not there is replaced by the nearest, which is said.
    _, _, err = run(capsys, "generate", "--from", singles[3], "--width", 250, "--height", 250, "-o", "sq.png")
    assert err.startswith("note: 250x250") and "the nearest, 256x256" in err and err.count("\n") == 1
    square = settings(tmp_path / "sq.png")
    assert square["schedule"][-1] == [16, 16] and square["negative_prompt"] == ["fog"]
    assert square["prompts"] == [long] and square["seeds"] == [1]


@pytest.mark.filterwarnings("always:HART's weights")
def test_hart(nextscale, hart_model: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    options = ("--seed", 3, "--mask-iterations", 2, "--no-residual", "--ssg", 0.6, "--batch-size", 2)
    done = nextscale("generate", FOX, BIRD, "-m", hart_model, *options, "--separate", "single")
    assert done.stdout.startswith(f'nextscale.png: 2 pictures of "{FOX}", "{BIRD}"; seeds 3 to 4\n')
    assert "no residual" in done.stdout
    assert done.stderr.startswith("note: HART's weights were trained with a system prompt")
    assert done.stderr.count("\n") == 1
    monkeypatch.chdir(tmp_path)
    run(capsys, "generate", "--from", "nextscale.png", "--output", "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "nextscale.png").read_bytes()
    single = next(tmp_path.glob("single/0001-*.png"))
    run(capsys, "generate", "--from", single, "--output", "one.png")
    assert (tmp_path / "one.png").read_bytes() == single.read_bytes()
    stored = settings(single)
    assert (stored["mask_iterations"], stored["residual"], stored["prompts"]) == (2, False, [BIRD])


def test_another_text_encoder(
    text_model: Path, t5: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    words = ("generate", FOX, "--model", text_model, "--seed", 1)
    run(capsys, *words, "-o", "words.png")
    run(capsys, *words, "--text-encoder", t5, "-o", "t5.png")
    assert (tmp_path / "t5.png").read_bytes() != (tmp_path / "words.png").read_bytes()
    run(capsys, "generate", "--from", "t5.png", "-o", "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "t5.png").read_bytes()
    # Beside --from it changes the encoder alone, not the model.
    run(capsys, "generate", "--from", "words.png", "--text-encoder", t5, "-o", "later.png")
    assert (tmp_path / "later.png").read_bytes() == (tmp_path / "t5.png").read_bytes()


# ------------------------------------------------------------------ what a model cannot do


BAD = [
    ("text", ("generate",), 'draws prompts, and none was given; add --prompt "a lighthouse at dawn", say'),
    ("text", ("compare",), "draws prompts, and none was given"),
    ("text", ("generate", "--prompt", " "), "a prompt is empty"),
    ("text", ("generate", "--prompts", "none.txt"), "--prompts: cannot read 'none.txt': No such file"),
    ("text", ("generate", "--prompts", "empty.txt"), "--prompts: 'empty.txt' holds no prompt"),
    ("text", ("generate", "x", "--aspect-ratio", "2:1"), "this model makes pictures of one size"),
    ("text", ("generate", "x", "--more-smooth"), "--more-smooth: models of the family infinity have no such"),
    ("text", ("generate", "x", "--residual"), "--residual: models of the family infinity"),
    ("text", ("generate", "x", "--depth", "16"), "--depth is about official files, and"),
    ("text", ("generate", "x", "--system-prompt", "empty.txt"), "--system-prompt: "),
    ("text", ("generate", "x", "--system-prompt", "none.txt"), "--system-prompt: no such file: 'none.txt'"),
    ("text", ("generate", "x", "--text-encoder", "nowhere"), "cannot load the text encoder 'nowhere'"),
    ("text", ("generate", "--from", "classes.png"), "shows no prompts, which is what this model draws"),
    ("wide", ("generate", "x", "--aspect-ratio", "wide"), "unknown aspect ratio 'wide'"),
    ("wide", ("generate", "x", "--pixels", "9M"), "unknown pixel budget '9M'"),
    ("wide", ("generate", "x", "--height", "9"), "give both --height and --width"),
    (
        "hart",
        ("generate", "x", "--aspect-ratio", "2:1"),
        "--aspect-ratio: pictures of this model have one",
    ),
    ("hart", ("generate", "x", "--negative-prompt", "y"), "--negative-prompt: this model takes no negative"),
    (
        "hart",
        ("generate", "x", "--system-prompt", "empty.txt"),
        "this system prompt is not the published",
    ),
    ("class", ("generate", "--prompt", "x"), "draws classes, not prompts; give labels without --prompt"),
    ("class", ("compare", "cat", "--pixels", "1M"), "--pixels: pictures of this model have one size"),
    (
        "class",
        ("generate", "--negative-prompt", "x"),
        "--negative-prompt: this model takes no",
    ),
    ("class", ("generate", "--text-encoder", "x"), "is a model of the family var, which has no such option"),
]


@pytest.mark.parametrize(
    ("kind", "arguments", "expected"), BAD, ids=lambda v: " ".join(v) if isinstance(v, tuple) else ""
)
def test_what_a_model_cannot_do_is_refused_by_name(
    kind, arguments, expected, request, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    folders = {"text": "text_model", "wide": "wide_model", "hart": "hart_model", "class": "model"}
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n \n")
    classes = {"command": "generate", "source": {}, "labels": [1], "seeds": [2], "layout": {}}
    blank = Image.new("RGB", (4, 4))
    save_png(blank, Path("classes.png"), classes | {"guidance_scale": {"scale": 3}, "ssg": None})
    folder = request.getfixturevalue(folders[kind])
    code, out, err = run(capsys, *arguments, "--model", folder)
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert lines[-1].startswith("error: ") and expected in lines[-1]
    assert [line for line in lines[:-1] if not line.startswith("note: ")] == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["classes.png", "empty.txt"]


def test_models_without_a_text_encoder(text_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pipe = ModelChoice(str(text_model)).load("cpu")
    pipe.text_encoder = None
    pipe.save_pretrained(tmp_path / "silent")
    code, _, err = run(capsys, "generate", "x", "--model", tmp_path / "silent", "-o", tmp_path / "a.png")
    assert code == 2 and "has no text encoder; name one with --text-encoder" in err
    code, out, _ = run(capsys, "info", tmp_path / "silent")
    assert code == 0 and "text encoder  none; name one with --text-encoder" in out


# ------------------------------------------------------------------ info and convert


@pytest.mark.parametrize("kind", ["text_model", "hart_model"])
def test_info_and_convert(kind, request, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = request.getfixturevalue(kind)
    code, out, _ = run(capsys, "info", folder, "--json", "--device", "cpu")
    facts = json.loads(out)["model"]
    assert code == 0 and facts["family"] == json.loads((folder / "config.json").read_text())["family"]
    assert facts["memory"]["bytes"] > 4 * sum(facts["parameters"].values())
    assert "class_names" not in facts and facts["pictures"] == "from prompts"
    code, out, _ = run(capsys, "info", folder)
    width, height = facts["image_size"][::-1]
    assert f"{width} x {height} pixels, from prompts" in out and "depth 2, width 32, 2 heads" in out
    assert "4 pixels a cell" in out and "GB at batch 1 in float32" in out
    new = tmp_path / "new"
    code, out, _ = run(capsys, "convert", folder, new, "--dtype", "float16")
    assert code == 0 and out.startswith(f"{new}: {folder} in float16")
    ours, theirs = (ModelChoice(str(f)).load("cpu", "float32") for f in (folder, new))
    kept = theirs.transformer.head.weight
    assert torch.equal(kept, ours.transformer.head.weight.half().float())
    assert type(theirs.text_encoder) is type(ours.text_encoder)


# ------------------------------------------------------------------ the pieces


def test_progress_counts_every_token_once(hart_model: Path):
    pipe = ModelChoice(str(hart_model)).load("cpu")
    counted: list[int] = []
    features = TextFeatures(torch.randn(3, 6, 16), torch.ones(3, 6, dtype=torch.bool))
    draw(pipe, Pictures(features, [0, 1, 2]), {"mask_iterations": 3}, None, 2, counted.append)
    assert sum(counted) == 3 * pipe.schedule.num_tokens and min(counted) > 0
    bits: list[int] = []
    count = TokenCount(bits.append)

    class Step:
        index, tokens = 0, torch.zeros(2, 3, 4, 5)

    count(Step())  # one step of a schedule of one, twice
    count(Step())
    assert bits == [24, 24]


def test_texts_are_encoded_once_and_the_encoder_is_freed(t5: Path):
    for encoder in (WordEncoder(16), T5TextEncoder(t5, device="cpu")):
        known = Encoded(encoder, [FOX, BIRD, FOX])
        assert getattr(encoder, "_model", None) is None
        both, wanted = known([BIRD, FOX]), encoder([BIRD, FOX])
        assert torch.equal(both.features, wanted.features) and torch.equal(both.mask, wanted.mask)
        assert known.width == 16


def test_prompts_come_from_arguments_options_and_files(tmp_path: Path, text_model: Path, model: Path):
    path = tmp_path / "p.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n two \n\r\n\n")
    assert read_lines(path, "--prompts", "prompt") == ["one", "two"]
    # What else Unicode takes for the end of a line belongs to the prompt: line i is picture i.
    odd = "\u2028 \u2029 \x85 \x0b \x0c \x1c \x1d \x1e"
    path.write_text(f"one{odd}one\ntwo\rthree\u2028\n", encoding="utf-8")
    assert read_lines(path, "--prompts", "prompt") == [f"one{odd}one", "two", "three"]
    for blank, line in [("\none", 1), ("one\n \ntwo\n", 2), ("a\nb\n\u2028\nc", 3)]:
        path.write_text(blank, encoding="utf-8")
        with pytest.raises(InvalidArgumentError, match=f"line {line} of .* is blank, and picture i"):
            read_lines(path, "--prompts", "prompt")
    path.write_bytes(b"caf\xe9")
    with pytest.raises(InvalidArgumentError, match="not UTF-8"):
        read_lines(path, "--prompts", "prompt")
    texts = subjects_of(ModelChoice(str(text_model)).load("cpu"))
    assert isinstance(texts, Prompts) and texts.read(Typed(("a",), ("b", "c"))) == ["a", "b", "c"]
    labels = subjects_of(ModelChoice(str(model)).load("cpu"))
    assert isinstance(labels, Labels) and labels.read(Typed(("cat", "none", "3"))) == [3, -1, 3]
    wanted = choose_pictures(texts, Typed(("a", "b")), 2, "7", {})
    assert (wanted.subjects, wanted.seeds) == (["a", "a", "b", "b"], [7, 8, 9, 10])
    again = choose_pictures(texts, Typed(), 1, None, {"prompts": wanted.subjects, "seeds": wanted.seeds})
    assert (again.subjects, again.seeds) == (["a", "b"], [7, 8])


def test_names_of_prompts():
    assert shorten("  a\n b ") == "a b"
    assert shorten("one two three", 10) == "one two …"
    assert shorten("x" * 30, 10) == "xxxxxxxx …"
    assert file_name(3, "Käfer: «grün»", 7) == "0003-k-fer-gr-n-seed7.png"
    assert file_name(3, "猫", 7, "SSG 0.6") == "0003-seed7-ssg-0.6.png"


def test_settings_of_prompts_travel_in_the_picture(tmp_path: Path):
    stored = {"command": "generate", "source": {}, "prompts": ["x"], "seeds": [2], "layout": {}}
    stored |= {"guidance_scale": {"scale": 3}, "ssg": None}
    path = tmp_path / "a.png"
    save_png(Image.new("RGB", (4, 4)), path, stored)
    assert read_settings(path) == stored
    nothing = {k: v for k, v in stored.items() if k != "prompts"}
    for damaged, message in [
        (stored | {"prompts": [1]}, "prompts is"),
        (stored | {"prompts": []}, "prompts is"),
        (stored | {"batch": {"labels": [1], "seeds": [1], "index": 0}}, "prompts is None"),
        (stored | {"batch": [1]}, "batch is"),
        (nothing, "what it shows is missing"),
    ]:
        save_png(Image.new("RGB", (4, 4)), path, damaged)
        with pytest.raises(InvalidArgumentError, match=message):
            read_settings(path)


def test_long_prompts_fit_beside_their_pictures():
    images = [Image.new("RGB", (96, 48), (200, 0, 0))] * 2
    short, _ = comparison([Block("a", "", images)], ["fox", "fox"], columns=1, zoom=1, caption=["c"])
    for text in ("word " * 200, "x" * 500):
        sheet, at = comparison([Block("a", "", images)], [text, "fox"], columns=1, zoom=1, caption=["c"])
        assert sheet.height == short.height and sheet.width < short.width + 160
        between = sheet.crop((0, at.top(0) + 48, at.left(0), at.top(0) + 48 + at.gap))
        assert len(between.getcolors()) == 1  # nothing of a label between two rows
        outside = sheet.crop((0, 0, at.margin // 2, sheet.height))
        assert len(outside.getcolors()) == 1
