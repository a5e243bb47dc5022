from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nextscale.cli.demo import is_local, read_choice
from nextscale.cli.main import main
from nextscale.cli.models import ModelChoice


def test_models_are_named_in_one_text(tmp_path: Path, monkeypatch):
    assert read_choice("cifar10") == ModelChoice(model="cifar10")
    assert read_choice("FoundationVision/var d16") == ModelChoice(model="FoundationVision/var", depth=16)
    assert read_choice("FoundationVision/Infinity 2b") == ModelChoice(
        model="FoundationVision/Infinity", variant="2b"
    )
    for choice in (ModelChoice(model="a/var", depth=30), ModelChoice(model="a/b", variant="8b-512")):
        assert read_choice(str(choice)) == choice
    monkeypatch.chdir(tmp_path)
    Path("my model").mkdir()
    assert read_choice("my model") == ModelChoice(model="my model")
    assert is_local(read_choice("my model")) and is_local(read_choice("cifar10"))
    assert not is_local(read_choice("FoundationVision/var d16"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--port", "0"), "--port is a number from 1 to 65535, got 0"),
        (("--model", "nowhere"), "nowhere"),
        (("--model", "cifar10 d16"), "cifar10"),
        (("--device", "toaster"), "toaster"),
        (("--host", "192.0.2.1"), "cannot listen at '192.0.2.1': Cannot assign requested address; --host"),
        (("--host", "192.0.2.1", "--port", "8000"), "cannot listen at '192.0.2.1'"),
        (("--host", "nowhere.invalid"), "cannot listen at 'nowhere.invalid': "),
        (("--host", "http://127.0.0.1"), "cannot listen at 'http://127.0.0.1': "),
        (("--host", "x" * 300), "cannot listen at 'xxx"),
    ],
)
def test_bad_options_end_with_one_line(arguments, message, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        main(["demo", "--no-open", *arguments])
    said = capsys.readouterr().err.strip().splitlines()
    assert left.value.code == 2 and said[-1].startswith("error: ") and message in said[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_other_machines_are_warned_of_and_the_end_leaves_nothing(
    model: Path, tmp_path: Path, sent, code: int
):
    # The signal is ignored from birth in a process of a shell's background.
    code_of_it = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from nextscale.cli.main import main\nmain(sys.argv[1:])\n"
    )
    command = [sys.executable, "-c", code_of_it, "demo", "--no-open", "--host", "0.0.0.0"]
    (tmp_path / "temporary").mkdir()
    with (tmp_path / "said").open("wb") as said:
        process = subprocess.Popen(
            [*command, "--model", str(model)],
            stdout=said,
            stderr=said,
            cwd=tmp_path,
            env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
        )
    pause = threading.Event()
    for _ in range(1200):
        if "Ctrl+C" in (tmp_path / "said").read_text() or process.poll() is not None:
            break
        pause.wait(0.1)
    assert list((tmp_path / "temporary").glob("nextscale-demo-*"))
    process.send_signal(sent)
    assert process.wait(timeout=60) == code
    assert not list((tmp_path / "temporary").glob("nextscale-demo-*"))
    text = (tmp_path / "said").read_text()
    assert text.startswith("warning: 0.0.0.0 can be reached from other machines")
    assert "http://localhost:" in text and "Traceback" not in text
    assert text.strip().endswith("interrupted") is (sent == signal.SIGINT)
