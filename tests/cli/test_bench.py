"""``nextscale bench`` with arguments that cannot be; what it measures: tests/benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextscale.cli import main as cli


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(["bench", *arguments])
    captured = capsys.readouterr()
    return left.value.code, captured.out, captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "300"), "size must be one of 256, 512, 1024, got 300"),
        (("--depth", "0"), "--depth must be at least 1, got 0"),
        (("--threads", "0"), "--threads must be at least 1, got 0"),
        (("--official", "."), "'.' has no folder models"),
        (("--output", "nowhere/b.json"), "there is no folder 'nowhere' for --output"),
    ],
)
def test_bad_input(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert code == 2 and out == "" and message in " ".join(err.split())
    assert not list(tmp_path.iterdir())
