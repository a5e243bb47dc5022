"""``nextscale generate --out``: what people type, what they are told, and launchers and signals for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from nextscale.cli.main import main
from nextscale.sampling.reading import read_run, verify


class Outcome(NamedTuple):
    stdout: str
    stderr: str


Command = Callable[..., Outcome]
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def start(
    *arguments: str | Path, launcher: tuple[str, ...] = (), command: str = "generate", **changes: str
) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", *launcher, *(["-m"] if launcher else []), "nextscale", command]
    return subprocess.Popen(
        [*program, *map(str, arguments)],
        env={**ENVIRONMENT, **changes},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.fixture
def nextscale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line in this process, which has loaded torch already, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path, code: int = 0) -> Outcome:
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        outcome = Outcome(*capsys.readouterr())
        assert ended.value.code == code, outcome
        return outcome

    return run


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures from one process."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    process = start("-m", model, "--count", "24", "--shard-size", "4", "--ssg", "0.6", "--out", folder)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert "24 pictures of airplane, automobile, bird, cat, …; seeds 0 to 23; 6 shards" in out
    return folder


def test_labels_from_a_file(nextscale: Command, model: Path, tmp_path: Path):
    (tmp_path / "labels.txt").write_text("horse\r\n3\nnone\nship\n\n\n", newline="")
    command = [
        "generate",
        "-m",
        model,
        "--labels",
        "labels.txt",
        "--count",
        "6",
        "--seed",
        "9",
        "--out",
        "run",
    ]
    command += ["--format", "folder", "--image-format", "webp", "--shard-size", "4"]
    nextscale(*command)
    found = list(read_run(tmp_path / "run"))
    assert [item.subject for item in found] == [7, 3, -1, 8, 7, 3]
    assert [item.seed for item in found] == [9, 10, 11, 12, 13, 14]
    assert "going on: 6 of 6 pictures are done" in nextscale(*command).stderr


def test_without_a_count_every_line_is_drawn_once(nextscale: Command, model: Path, tmp_path: Path):
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    nextscale("generate", "-m", model, "--labels", "labels.txt", "--format", "npz", "--out", "run")
    assert [item.subject for item in read_run(tmp_path / "run")] == [3, 5]
    assert (tmp_path / "run" / "samples.npz").exists()


@pytest.mark.parametrize("family", ["infinity", "hart"])
def test_prompts_from_a_file(
    nextscale: Command, text_model: Path, hart_model: Path, tmp_path: Path, family: str
):
    prompts = ["a red fox", "a blue bird in the sky", "a fox"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    chosen = {"infinity": text_model, "hart": hart_model}[family]
    command = ["generate", "-m", chosen, "--prompts", "prompts.txt", "--count", "5", "--format", "parquet"]
    for batch in ("2", "16"):
        nextscale(*command, "--out", f"run{batch}", "--batch-size", batch)
    assert [item.subject for item in read_run(tmp_path / "run2")] == [*prompts, *prompts[:2]]
    assert files(tmp_path / "run2") == files(tmp_path / "run16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "none.txt", "--out", "run"], "--labels: cannot read 'none.txt': No such file"),
        (["--format", "zip", "--out", "run"], "unknown format 'zip'; known: tar, parquet, folder, npz"),
        (["--image-format", "gif", "--out", "run"], "unknown image format 'gif'; known: png, webp"),
        (["--format", "npz", "--image-format", "png", "--out", "run"], "an npz holds pixels"),
        (["--format", "tar"], "--format is about runs into a folder; add --out DIR"),
        (["--output", "a.png", "--out", "run"], "--output is about a single file"),
        (["--zoom", "2", "--out", "run"], "--zoom is about a single file"),
        (["--count", "0", "--out", "run"], "--count must be at least 1, got 0"),
        (["--shard-size", "0", "--out", "run"], "--shard-size must be at least 1, got 0"),
        (["--seed", "1,2", "--out", "run"], "--seed: a run takes one number"),
        (["--seed", "18446744073709551610", "--count", "9", "--out", "run"], "seeds are from 0 up to 2^64"),
        (["--sampler", "multinomial", "--out", "run"], "--sampler multinomial draws for a batch as a whole"),
        (["--out", "missing/run"], "does not exist; make it first"),
        (["unicorn", "--out", "run"], "unicorn"),
        (["--count", "200001", "--shard-size", "1", "--out", "run"], "make the shards larger"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    nextscale: Command, model: Path, tmp_path: Path, arguments: list[str], message: str
):
    done = nextscale("generate", "-m", model, *arguments, code=2)
    assert message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_two_runs_are_not_mixed(nextscale: Command, model: Path, alone: Path, tmp_path: Path):
    common = ["generate", "-m", model, "--shard-size", "4", "--out", alone]
    before = files(alone)
    done = nextscale(*common, "--count", "24", "--ssg", "0.3", "--seed", "5", code=2)
    differs = "sampling ssg beta is 0.6 there and 0.3 here; --seed is 0 there and 5"
    assert f"holds another run: {differs}" in done.stderr
    assert files(alone) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    done = nextscale("generate", "-m", model, "--out", "other", code=2)
    assert "holds files and no manifest.json" in done.stderr


@pytest.mark.parametrize("edit", ["", "{", "[1]", '{"manifest": 1}', "null", "[" * 100_000])
def test_a_damaged_manifest_is_refused(nextscale: Command, model: Path, tmp_path: Path, edit: str):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text(edit)
    done = nextscale("generate", "-m", model, "--count", "2", "--out", "run", code=2)
    assert "cannot be used" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_torchrun_spreads_a_run_and_changes_no_byte(model: Path, alone: Path, tmp_path: Path):
    folder = tmp_path / "run"
    arguments = ("-m", model, "--count", "24", "--shard-size", "4", "--ssg", "0.6", "--out", folder)
    launcher = ("torch.distributed.run", "--nproc-per-node", "2")
    process = start(*arguments, "--batch-size", "3", launcher=launcher)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert out.count("24 pictures") == 1  # one process talks
    assert files(folder) == files(alone)
    begun = [json.loads(p.read_text().splitlines()[0]) for p in (folder / "logs").iterdir()]
    assert sorted(event["rank"] for event in begun) == [0, 1]


@pytest.mark.slow
def test_accelerate_launches_a_run(model: Path, alone: Path, tmp_path: Path):
    folder = tmp_path / "run"
    arguments = ("-m", model, "--count", "24", "--shard-size", "4", "--ssg", "0.6", "--out", folder)
    launcher = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")
    process = start(*arguments, "--device", "cpu", launcher=launcher)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert files(folder) == files(alone)
    assert len(list((folder / "logs").iterdir())) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_run_cleanly_and_it_goes_on(model: Path, tmp_path: Path, number: signal.Signals):
    folder = tmp_path / "run"
    arguments = ("-m", model, "--count", "4000", "--shard-size", "8", "--batch-size", "4", "--out", folder)
    process = start(*arguments)
    wait_for(folder / "shard-000002.tar", process)
    process.send_signal(number)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "the same command goes on" in err and "interrupted" in err and "Traceback" not in err
    assert os.listdir(folder / ".work") == []


@pytest.mark.slow
def test_plain_processes_share_a_run_and_outlive_each_other(model: Path, alone: Path, tmp_path: Path):
    """No launcher, other languages and time zones, one process killed: the same bytes."""
    folder = tmp_path / "run"
    arguments = ("-m", model, "--count", "24", "--shard-size", "4", "--ssg", "0.6", "--out", folder)
    first = start(*arguments, LC_ALL="tr_TR.UTF-8", TZ="Pacific/Kiritimati")
    wait_for(folder / "manifest.json", first)
    second = start(*arguments, LC_ALL="C", LANG="C", TZ="America/Los_Angeles", PYTHONUTF8="0")
    first.kill()
    _, err = second.communicate(timeout=600)
    first.communicate()
    assert second.returncode == 0, err
    assert files(folder) == files(alone)
    assert verify(folder) == 24


@pytest.mark.slow
def test_evaluations_are_shared_between_processes(model: Path, tmp_path: Path):
    """One result, by one process, from pictures that both have drawn."""
    launcher = ("torch.distributed.run", "--nproc-per-node", "2")
    arguments = ("-m", model, "--images", "450", "--work", tmp_path / "work", "--output", tmp_path / "e.json")
    process = start(*arguments, launcher=launcher, command="evaluate")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert out.count("features are kept in") == 1
    result = json.loads((tmp_path / "e.json").read_text())
    assert result["images"] == 450 and result["scores"]
