"""Help, bad input, interruption: what every command has in common."""

from __future__ import annotations

import inspect
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest

from nextscale.cli import main as cli
from nextscale.cli import options
from nextscale.errors import ModelNotFoundError

HEAVY = ("torch", "numpy", "PIL", "safetensors", "huggingface_hub")
EVERY = [(), ("generate",), ("compare",), ("info",), ("convert",), ("train",), ("train", "tokenizer")]
EVERY += [
    ("verify",),
    ("evaluate",),
    ("sweep",),
    ("tune",),
    ("train", "transformer"),
    ("train", "classifier"),
]


def run_in_process(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        cli.main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return left.value.code, captured.out, captured.err


def test_help_of_every_command_is_light_and_has_examples():
    code = (
        "import sys\nfrom nextscale.cli.main import main\n"
        f"for words in {EVERY!r}:\n"
        "    print('==', *words)\n"
        "    try:\n        main([*words, '--help'])\n"
        "    except SystemExit as left:\n        assert left.code == 0, (words, left.code)\n"
        f"print('LOADED', *[m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED"
    texts = done.stdout.split("== ")[1:]
    for words, text in zip(EVERY, [done.stdout.split("==\n")[1], *texts], strict=False):
        assert "\nExamples:\n  nextscale " in text, words
    assert "\x1b" not in done.stdout


def test_the_choices_in_the_help_are_those_of_the_library(capsys: pytest.CaptureFixture[str]):
    from typing import get_args

    from nextscale.cli.models import DEPTHS, VARIANTS
    from nextscale.families.infinity.checkpoint import RELEASES
    from nextscale.families.infinity.schedules import BUDGETS
    from nextscale.families.var import checkpoint
    from nextscale.generation.tokens import Sampler
    from nextscale.guidance.prior import Norm, PriorKind
    from nextscale.guidance.schedules import SCHEDULES
    from nextscale.guidance.ssg import REMEMBER
    from nextscale.nn.placement import DTYPES

    _, text, _ = run_in_process(capsys, "generate", "--help")
    kinds = (get_args(Sampler), get_args(Norm), get_args(PriorKind), SCHEDULES, REMEMBER, DTYPES, BUDGETS)
    for names in kinds:
        assert [name for name in names if name not in text] == []
    assert [d for d in checkpoint.DEPTHS if str(d) not in DEPTHS] == []
    assert VARIANTS.replace(" or ", ", ").split(", ") == list(RELEASES)


BAD = [
    (("generate", "hors"), "unknown class 'hors'; did you mean 'horse'?"),
    (("generate", "--ssg", "abc"), "--ssg takes a number, or several separated by commas; got 'abc'"),
    (("generate", "--ssg", "-1"), "--ssg must be finite and at least 0; got -1.0"),
    (("generate", "--prior", "dct"), "--prior shapes SSG, which is off"),
    (("generate", "--ssg", "1", "--norm", "odd"), "unknown norm 'odd'"),
    (("generate", "--seed", "x"), "--seed takes a whole number"),
    (("generate", "--seed", "1,2"), "2 seeds for 10 images"),
    (("generate", "--count", "0"), "--count must be at least 1, got 0"),
    (("generate", "--top-k", "many"), "--top-k"),
    (("generate", "--top-p", "3"), "--top-p must be between 0 and 1"),
    (("generate", "--output", "no/such.png"), "the folder 'no' does not exist"),
    (("generate", "--output", "a.jpg"), "give a name that ends in .png, got 'a.jpg'"),
    (("generate", "--separate", "no/such"), "does not exist; make it first"),
    (("generate", "--from", "nothing.png"), "no such picture: 'nothing.png'"),
    (("generate", "--from", "note.txt"), "'note.txt' cannot be read as a picture"),
    (("generate", "--from", "plain.png"), "'plain.png' holds no settings"),
    (("generate", "--device", "abacus"), "cannot use the device 'abacus'"),
    (("generate", "--dtype", "int3"), "unknown dtype 'int3'"),
    (("generate", "--bogus"), "--bogus"),
    (("compare", "--ssg", "0.3,x"), "--ssg takes a number"),
    (("compare", "--seed", "-1"), "a seed is a whole number from 0"),
    (("gnerate",), "Did you mean 'generate'?"),
    (("train", "transformer", "data"), "--tokenizer"),
    (("train", "tokenizer", "no/such/data"), "no/such/data"),
    (("train", "tokenizer", "no/such/data", "--recipe", "huge"), "no tokenizer recipe 'huge'"),
]


@pytest.mark.parametrize(
    ("arguments", "expected"), BAD, ids=lambda v: " ".join(v) if isinstance(v, tuple) else ""
)
def test_bad_input_is_one_line_and_writes_nothing(
    arguments, expected, model: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Path("note.txt").write_text("not a picture")
    Image.new("RGB", (4, 4)).save("plain.png")
    drawn = arguments[0] in ("generate", "compare") and "--from" not in arguments
    code, out, err = run_in_process(capsys, *arguments, *(("--model", model) if drawn else ()))
    assert code == 2
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and expected in err
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["note.txt", "plain.png"]


def test_models_that_are_not_there(monkeypatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    for arguments, expected in [
        (("info", "nowhere"), "no model 'nowhere'"),
        (("generate", "--model", "FoundationVision/var"), "say which with --depth 16, 20, 24, 30 or 36"),
        (("generate", "--model", "FoundationVision/Infinity"), "say which with --variant 125m, 2b, 8b or 8b"),
        (("generate", "--depth", "16"), "add --transformer FILE"),
        (("generate", "--model", "a", "--transformer", "b.pth"), "give one of them"),
        (("convert", "missing.pth", "new"), "missing.pth"),
    ]:
        code, out, err = run_in_process(capsys, *arguments)
        assert (code, out) == (2, "") and err.count("\n") == 1 and expected in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (ModelNotFoundError("no model,\n  anywhere"), 2, "error: no model, anywhere\n"),
        (
            OSError(28, "No space left on device", "a.png"),
            1,
            "error: [Errno 28] No space left on device: 'a.png'\n",
        ),
        (BrokenPipeError(), 1, ""),
    ],
    ids=["interrupt", "ours", "disk", "pipe"],
)
def test_what_goes_wrong_becomes_an_exit_code(raised, code, line, monkeypatch, capfd):
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr("nextscale.cli.models.ModelChoice.load", fail)
    with pytest.raises(SystemExit) as left:
        cli.main(["info", "cifar10"])
    assert left.value.code == code
    assert capfd.readouterr().err == line


def test_interrupting_a_process_leaves_one_line_and_no_file(model: Path, tmp_path: Path):
    code = (
        "import os, signal, sys, time\n"
        "from nextscale.cli import main, request\n"
        # A shell's background jobs, and with them a test run, ignore the signal from birth.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def draw(*_):\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(60)\n"
        "request.draw = draw\n"
        "main.main(['generate', '--model', sys.argv[1]])\n"
    )
    words = [sys.executable, "-c", code, str(model)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
    assert list(tmp_path.iterdir()) == []


@dataclass(frozen=True)
class Pair:
    left: int | None = None
    right: str = "r"


def test_several_options_as_one_parameter():
    @options.bundled
    def command(*, first: Annotated[int, "a note"] = 1, pair: Pair, last: bool = False) -> None:
        """What it does."""
        seen.append((first, pair, last))

    seen: list[object] = []
    signature = inspect.signature(command)
    assert list(signature.parameters) == ["first", "left", "right", "last"]
    assert signature.parameters["left"].annotation == (int | None)
    assert signature.parameters["first"].annotation == Annotated[int, "a note"]
    assert (command.__name__, command.__doc__) == ("command", "What it does.")
    command(first=2, left=3, right="x", last=True)
    assert seen == [(2, Pair(3, "x"), True)]
