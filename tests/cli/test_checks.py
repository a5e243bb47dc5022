"""Empty values and numbers that cannot be meant, in every option of every command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.main import get_command

from nextscale.cli.help import option_names
from nextscale.cli.main import COMMANDS, main
from nextscale.cli.pictures import read_settings, save_png
from nextscale.errors import InvalidArgumentError

HUGE = str(10**20)


def every_command() -> Iterator[tuple[tuple[str, ...], Any]]:
    for name in COMMANDS:
        command = get_command(import_module(f"nextscale.cli.{name}").app)
        below = getattr(command, "commands", {})
        if below:
            yield from (((name, word), part) for word, part in below.items())
        else:
            yield (name,), command


def every_option() -> Iterator[tuple[tuple[str, ...], str]]:
    """What takes a value: options by their long name, arguments as they stand in the help."""
    for words, command in every_command():
        for parameter in command.params:
            if not getattr(parameter, "is_flag", False) and parameter.name != "help":
                yield words, option_names([parameter])[parameter.name]


OPTIONS = list(every_option())
ARGUMENTS = {"convert": ["SRC", "DST"], "sweep": ["FILE"], "verify": ["DIR"], "train": ["DATA"]}


def needed(words: tuple[str, ...]) -> list[str]:
    """What a command does not go without."""
    more = ["--tokenizer", "t"] if words == ("train", "transformer") else []
    return [*("a" for _ in ARGUMENTS.get(words[0], ())), *more]


def failure(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    captured = capsys.readouterr()
    assert ended.value.code == 2 and captured.out == "", arguments
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    return captured.err


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("nextscale.cli.models.ModelChoice.load", fail)
    monkeypatch.setattr("nextscale.benchmark.suite.run", fail)


@pytest.mark.parametrize(("words", "option"), OPTIONS, ids=lambda v: v if isinstance(v, str) else " ".join(v))
def test_an_empty_value_is_a_mistake(words: tuple[str, ...], option: str, capsys, nothing_is_loaded):
    if option.startswith("--"):
        for typed in ([option, ""], [f"{option}="], [option, " \t"]):
            if typed[1:] == [" \t"] and option in ("--prompt", "--negative-prompt"):
                continue  # texts to draw; models say what they make of spaces
            said = failure(capsys, *words, *needed(words), *typed)
            assert said.startswith(f"error: {option} is empty; give it")
    else:
        arguments = ["" if name == option else "a" for name in ARGUMENTS.get(words[0], [option])]
        assert failure(capsys, *words, *arguments).startswith(f"error: {option} is empty; give it")
    assert list(Path().iterdir()) == []


def test_all_options_were_tried():
    for words, option in [
        (("generate",), "--model"),
        (("generate",), "--separate"),
        (("evaluate",), "--reference"),
        (("train", "tokenizer"), "DATA"),
        (("demo",), "--host"),
        (("compare",), "--ssg"),
        (("verify",), "DIR"),
    ]:
        assert (words, option) in OPTIONS
    assert len(OPTIONS) > 200


def options_of(kind: type) -> list[tuple[tuple[str, ...], str]]:
    """What takes a number of this kind."""
    found = []
    for words, command in every_command():
        for p in command.params:
            told = getattr(p, "type_descriptor", None)  # typer's own in later versions, click's in earlier
            known = told.annotation is kind if told else p.type.name == {int: "integer", float: "float"}[kind]
            if known and p.param_type_name == "option":
                found.append((words, option_names([p])[p.name]))
    return found


WHOLE, FLOATS = options_of(int), options_of(float)


@pytest.mark.parametrize(("words", "option"), WHOLE, ids=lambda v: v if isinstance(v, str) else " ".join(v))
def test_a_number_that_cannot_be_meant(words: tuple[str, ...], option: str, capsys, nothing_is_loaded):
    for number in (HUGE, "-" + HUGE, "9" * 3000, "9" * 6000):
        said = failure(capsys, *words, *needed(words), option, number)
        assert option in said and len(said) < 1700
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(("words", "option"), FLOATS, ids=lambda v: v if isinstance(v, str) else " ".join(v))
def test_numbers_that_are_none(words: tuple[str, ...], option: str, capsys, nothing_is_loaded):
    for number in ("nan", "inf", "-inf", "1e999"):
        said = failure(capsys, *words, *needed(words), option, number)
        assert f"{option} must be a finite number" in said


def test_the_usual_suspects_are_among_them():
    assert (("generate",), "--count") in WHOLE and (("evaluate",), "--images") in WHOLE
    assert (("train", "tokenizer"), "--lr") in FLOATS and len(WHOLE) > 70


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "--seed", HUGE), "--seed takes numbers up to 18,446,744,073,709,551,615"),
        (("generate", "--seed", f"1,{HUGE}"), "--seed takes numbers up to"),
        (("generate", "--seed", "-1"), "--seed: a seed is a whole number from 0 on"),
        (("compare", "--seed", HUGE), "--seed takes numbers up to"),
        (("compare", "--images", "10", "--seed", HUGE), "--seed takes numbers up to"),
        (("generate", "--out", "run", "--seed", HUGE), "--seed takes numbers up to"),
        (("generate", "--count", "10001"), "10001 pictures are more than the 10,000 of one sheet"),
        (("compare", "--count", "1000000"), "are more than the 10,000 of one sheet"),
        (("generate", "--count", "900000000", "--out", "run"), "make the shards larger"),
        (("generate", "--ssg", "nan"), "--ssg takes a number"),
        (("generate", "--temperature", "1,inf"), "--temperature takes a number"),
        (("compare", "--ssg", "0.1,nan"), "--ssg takes a number"),
        (("tune", "--beta", "inf"), "--beta takes a number"),
        (("generate", "--patch-nums", "1,99999"), "--patch-nums takes numbers up to 1,024"),
        (("generate", "--zoom", "9999"), "--zoom must be at most 64"),
        (("generate", "--ssg", "x" * 5000), "--ssg takes a number"),
    ],
)
def test_numbers_in_texts(arguments, message, model: Path, capsys):
    assert message in failure(capsys, *arguments, "-m", model)
    assert list(Path().iterdir()) == []


def test_help_is_shown_whatever_else_is_typed(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--model", "", "--help"])
    assert ended.value.code == 0 and "Usage: nextscale generate" in capsys.readouterr().out


# ---------------------------------------------------------------------------- settings in pictures

STORED: dict[str, Any] = {
    "command": "generate",
    "source": {"model": "cifar10"},
    "labels": [1, 2],
    "seeds": [2, 3],
    "ssg": None,
    "layout": {"columns": 2, "zoom": 4},
    "guidance_scale": {"scale": 1.5},
    "batch_size": 16,
}
DEEP: Any = []
for _ in range(20):
    DEEP = [DEEP]
ABSURD = [
    {"layout": {"columns": 2, "zoom": 9999}},
    {"layout": {"columns": 10**9, "zoom": 1}},
    {"layout": {"columns": 2, "zoom": 0}},
    {"layout": {"columns": True, "zoom": 1}},
    {"layout": {"columns": 2, "zoom": 4, "rows": 3}},
    {"labels": [1] * 20_000, "seeds": [1] * 20_000},
    {"labels": [1] * 9_000, "seeds": [1] * 9_000},  # no picture of that size holds so many
    {"labels": [1]},
    {"labels": [1.0, 2]},
    {"labels": [True, 2]},
    {"seeds": [1, 2**64]},
    {"seeds": [1, -2]},
    {"seeds": [1, 2.0]},
    {"seeds": "12"},
    {"batch_size": 10**9},
    {"batch_size": 0},
    {"batch_size": 2.0},
    {"batch": {"labels": [1] * 5000, "seeds": [1] * 5000, "index": 0}},
    {"batch": {"labels": [1, 2], "seeds": [1, 2], "index": -1}},
    {"batch": {"labels": [1, 2], "seeds": [1, 2], "index": True}},
    {"batch": {"labels": [1, 2], "seeds": [1], "index": 0}},
    {"height": 10**9, "width": 10**9},
    {"height": -1},
    {"schedule": [[1, 1], [4096, 4096]]},
    {"schedule": [[1, 1]] * 1000},
    {"schedule": [[1024, 1024]]},
    {"schedule": [[1]]},
    {"schedule": 7},
    {"tile": 10**12},
    {"mask_iterations": 10**12},
    {"stop_after": 10**6},
    {"top_k": -1},
    {"top_k": "all"},
    {"top_p": float("nan")},
    {"top_p": "x"},
    {"min_p": [1]},
    {"temperature": float("inf")},
    {"temperature": [1.0] * 1000},
    {"temperature": {}},
    {"more_smooth": "yes"},
    {"sampler": ["paired"]},
    {"dtype": 16},
    {"sampler_version": 10**30},
    {"sampler_version": "2"},
    {"sampler_version": True},
    {"ssg": {"beta": DEEP}},
    {"ssg": {"beta": [0.1] * 10_000}},
    {"ssg": [0.1]},
    {"guidance_scale": {"scale": {"deep": 1}}},
    {"guidance_scale": {str(i): 1 for i in range(100)}},
    {"source": {"model": 5}},
    {"source": {"model": "a\0b"}},
    {"source": {"model": "a\nb"}},
    {"source": {"model": "a" * 5000}},
    {"nextscale": "9" * 9000},
    {"command": "rm"},
    {"command": ["generate"]},
    {"source": {"depth": 10**9}},
    {"arms": [{"beta": 1}] * 1000},
    {"weights": 5},
    {"other": DEEP},
    {"command": None},
]


@pytest.mark.parametrize("change", ABSURD, ids=lambda c: json.dumps(c)[:50])
@pytest.mark.parametrize("command", ["generate", "info"])
def test_absurd_settings_are_refused_before_any_work(command, change, capsys, nothing_is_loaded):
    path = Path("a.png")
    save_png(Image.new("RGB", (64, 32)), path, STORED | change)
    arguments = ("generate", "--from", path) if command == "generate" else ("info", path)
    said = failure(capsys, *arguments)
    assert said.startswith("error: the settings in 'a.png' are damaged: ") and len(said) < 300
    assert [p.name for p in Path().iterdir()] == ["a.png"]


def test_the_settings_that_were_changed_can_be_read():
    save_png(Image.new("RGB", (64, 32)), Path("a.png"), STORED)
    assert read_settings(Path("a.png")) == STORED


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 900 + "1" + "}" * 900, "9" * 5000, "{", "\ud800", "null", '{"seeds": NaN}'],
)
def test_texts_that_are_no_settings(text: str):
    from PIL.PngImagePlugin import PngInfo

    chunk = PngInfo()
    chunk.add_itxt("nextscale", text.encode("utf-8", "replace").decode())
    Image.new("RGB", (4, 4)).save("a.png", pnginfo=chunk)
    with pytest.raises(InvalidArgumentError, match=r"the settings in 'a.png' are damaged"):
        read_settings(Path("a.png"))


def test_a_picture_that_says_it_is_huge():
    """25 bytes of header make Pillow ask for gigabytes."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 12_000, 12_000, 8, 2, 0, 0, 0))
    Path("a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(InvalidArgumentError, match="has 12000 x 12000 pixels, more than"):
        read_settings(Path("a.png"))


def test_names_that_no_file_can_have(capsys):
    for arguments in (("--model", "a" * 5000), ("--from", "b" * 300), ("-o", "c" * 300 + ".png")):
        assert "name too long" in failure(capsys, "generate", *arguments).lower()


def test_a_single_picture_is_not_enlarged_beyond_the_largest_sheet(wide_model: Path, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        main(["generate", "-p", "a", "-p", "b", "-m", str(wide_model), "--separate", "s", "--seed", "1"])
    capsys.readouterr()
    single = next(Path("s").glob("0001-*.png"))
    stored = read_settings(single)
    save_png(Image.open(single).convert("RGB"), single, stored | {"layout": {"columns": 1, "zoom": 64}})
    monkeypatch.setattr("nextscale.cli.setup.pictures.MAX_PIXELS", 64 * 64 * 64 * 64 - 1)
    said = failure(capsys, "generate", "--from", single, "-o", "again.png")
    assert "the picture would have 16,777,216 pixels" in said


def test_a_sheet_that_could_not_be_opened_again(model: Path, capsys):
    said = failure(capsys, "generate", "cat", "-n", "2000", "--zoom", "64", "-m", model)
    assert "a sheet of 2,000 pictures would have 8,388,608,000 pixels" in said
    said = failure(capsys, "compare", "cat", "-n", "2000", "--zoom", "64", "-m", model)
    assert "a sheet of 4,000 pictures" in said


# ---------------------------------------------------------------------------- other weights


def test_a_picture_of_other_weights_is_told(model: Path, tmp_path: Path, capsys):
    import shutil

    import torch

    from nextscale.families import load_pretrained

    def run(*arguments: str | Path) -> str:
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        captured = capsys.readouterr()
        assert ended.value.code == 0, captured
        return captured.err

    shutil.copytree(model, "mine")
    run("generate", "cat", "--seed", "1", "-m", "mine", "-o", "a.png")
    run("compare", "cat", "--count", "1", "-m", "mine", "-o", "c.png")
    assert run("generate", "--from", "a.png") == ""  # the same weights, another process
    assert len(read_settings(Path("a.png"))["weights"]) == 64
    pipe = load_pretrained("mine", device="cpu")
    assert pipe([3], seed=1).settings["weights"] == read_settings(Path("a.png"))["weights"]
    with torch.no_grad():
        next(pipe.transformer.parameters()).view(-1)[0] += 1
    assert pipe([3], seed=1).settings["weights"] != read_settings(Path("a.png"))["weights"]
    pipe.save_pretrained("mine")
    for command, picture in (("generate", "a.png"), ("compare", "c.png")):
        said = run(command, "--from", picture, "-o", "again.png")
        assert said == (
            f"note: the weights of mine are others than those that drew {picture}, so the pictures will "
            f"differ from it\n"
        )
    assert "it cannot be told whether" in run("generate", "--from", "a.png", "--dtype", "bfloat16")
