"""A whole run, from the command line to the table, on a small VAR in place of the published shape."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nextscale import VARPipeline
from nextscale.benchmark import suite
from nextscale.benchmark.arms import random_pipeline
from nextscale.cli import main as cli
from nextscale.nn.placement import place


def test_the_table_and_every_number_behind_it(
    pipe: VARPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "random_pipeline", lambda *_: pipe)
    monkeypatch.setattr(suite, "TOP_K", 9)
    output = tmp_path / "bench.json"
    with pytest.raises(SystemExit) as left:
        cli.main(["bench", "--depth", "1", "--repeats", "1", "-o", str(output)])
    lines = capsys.readouterr().out.splitlines()
    assert left.value.code == 0, lines
    assert lines[0].startswith("VAR d1, 256 px, 1 at once, CFG 1.5, top-k 9, top-p 0.96, float32, random")
    assert "; 1 round; median [quartiles]" in lines[1]
    for row in (
        "  no SSG",
        "  SSG",
        "  SSG / no SSG",
        "  SSG by matrix products",
        "  SSG by scipy.fft",
        "  transformer",
        "  decoder",
    ):
        assert any(line.startswith(row) for line in lines), row
    assert "nextscale --help" in "\n".join(lines)
    assert lines[-1] == f"{output}: every time, and the conditions"

    found = json.loads(output.read_text())
    assert found["conditions"]["depth"] == 1 and found["conditions"]["threads"] >= 1
    seconds = found["seconds"]["generation"]
    assert set(seconds) == {"no SSG", "SSG"} and all(len(runs) == 1 for runs in seconds.values())
    plain, guided = (seconds[name][0]["total"] for name in ("no SSG", "SSG"))
    assert found["ratios"]["SSG / no SSG"]["median"] == pytest.approx(guided / plain)
    assert len(found["counts"]["steps"]) == 4
    assert set(found["start_seconds"]) == {"nextscale --help", "nextscale generate cat (embedded model)"}


def test_random_weights_at_a_published_shape() -> None:
    pipe = random_pipeline(1, 256, place("cpu", "float32"))
    assert pipe.transformer.config.patch_nums[-1] == 16 and pipe.transformer.config.embed_dim == 64
    values = [*pipe.transformer.parameters(), *pipe.tokenizer.parameters()]
    assert all(v.isfinite().all() and v.std() > 0 for v in values if v.numel() > 1)
