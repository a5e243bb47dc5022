"""What the shell and the system pass on besides arguments: permissions, streams, variables, memory."""

from __future__ import annotations

import inspect
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nextscale.cli.main import main
from nextscale.cli.pictures import read_settings
from nextscale.families.var.pipeline import VARPipeline
from nextscale.sampling.processes import SET_BY_LAUNCHERS

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def run(*arguments: str | Path, code: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    assert ended.value.code == code


@pytest.fixture
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("umask", [0o027, 0o002, 0o077], indirect=True)
def test_every_file_has_the_permissions_of_the_umask(umask: int, model: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("generate", "cat", "-m", model, "--separate", "single")
    run("compare", "cat", "-m", model, "--count", "1")
    run("convert", model, "copy")
    for kind in ("tar", "parquet", "folder", "npz"):
        run("generate", "-m", model, "--count", "3", "--format", kind, "--out", kind)
    run("evaluate", "-m", model, "--images", "20", "--reference", "none", "--save-images", "all.npz")
    found = [p for p in tmp_path.rglob("*") if not p.is_symlink()]
    assert len(found) > 30
    for path in found:
        expected = (0o777 if path.is_dir() else 0o666) & ~umask
        assert oct(stat.S_IMODE(path.stat().st_mode)) == oct(expected), path


# ---------------------------------------------------------------------------- memory


def short_of_memory(most: int, words: str = "DefaultCPUAllocator: can't allocate memory"):
    """What a pipeline's call is on a machine with room for so many pictures at once."""
    call = VARPipeline.__call__

    def limited(self: VARPipeline, labels: list[int], *, batch_size: int = 16, **options: object) -> object:
        if min(batch_size, len(labels)) > most:
            raise RuntimeError(words)
        return call(self, labels, batch_size=batch_size, **options)

    limited.__signature__ = inspect.signature(call)
    return limited


def test_short_of_memory_a_batch_is_halved(model: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    common = ("generate", "cat", "--count", "6", "-m", model, "--seed", "3", "--batch-size")
    run(*common, "1", "-o", "one.png")
    capsys.readouterr()
    monkeypatch.setattr(VARPipeline, "__call__", short_of_memory(1))
    run(*common, "4", "-o", "four.png", "--separate", "single")
    err = capsys.readouterr().err.splitlines()
    assert err == [
        "note: 4 pictures at once do not fit into the memory of cpu; drawing 2 at once",
        "note: 2 pictures at once do not fit into the memory of cpu; drawing 1 at once",
    ]
    assert (tmp_path / "four.png").read_bytes() == (tmp_path / "one.png").read_bytes()
    assert read_settings(tmp_path / "four.png")["batch_size"] == 1
    single = next((tmp_path / "single").glob("0004-*.png"))
    assert read_settings(single)["batch"] == {"labels": [3], "seeds": [7], "index": 0}
    run("generate", "--from", single, "-o", "again.png")
    assert (tmp_path / "again.png").read_bytes() == single.read_bytes()


def test_all_blocks_of_a_comparison_are_drawn_alike(model: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    plain, less = short_of_memory(4), short_of_memory(2)
    sizes = []

    def guided_takes_more(self: VARPipeline, labels: list[int], **options: object) -> object:
        out = (plain if options["ssg"] is None else less)(self, labels, **options)
        sizes.append(options["batch_size"])
        return out

    guided_takes_more.__signature__ = inspect.signature(VARPipeline.__call__)
    monkeypatch.setattr(VARPipeline, "__call__", guided_takes_more)
    run("compare", "cat", "--count", "4", "-m", model, "--ssg", "0.6")
    assert capsys.readouterr().err.count("drawing 2 at once") == 1
    assert sizes == [16, 2, 2] and read_settings(tmp_path / "compare.png")["batch_size"] == 2


@pytest.mark.parametrize(("most", "sampler"), [(0, "paired"), (2, "multinomial")])
def test_what_cannot_be_halved_is_one_line(most, sampler, model: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(VARPipeline, "__call__", short_of_memory(most))
    run("generate", "cat", "-n", "4", "-m", model, "--sampler", sampler, code=2)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: cpu has too little memory for ")
    assert list(tmp_path.iterdir()) == []


def test_evaluations_halve_their_batches(model: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    common = ("evaluate", "-m", model, "--images", "30", "--reference", "none")
    run(*common, "--batch-size", "4", "--save-images", "a.npz", "--work", "a", "-o", "a.json")
    monkeypatch.setattr(VARPipeline, "__call__", short_of_memory(4))
    capsys.readouterr()
    run(*common, "--batch-size", "16", "--save-images", "b.npz", "--work", "b", "-o", "b.json")
    err = capsys.readouterr().err
    assert "16 pictures at once do not fit" in err and "drawing 4 at once" in err
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    run(*common, "--sampler", "multinomial", "--batch-size", "16", "--work", "c", code=2)
    assert "use a smaller --batch-size" in capsys.readouterr().err


@pytest.mark.parametrize("raised", [MemoryError(), RuntimeError("[enforce fail] can't allocate memory")])
def test_too_little_memory_anywhere_is_one_line(raised: Exception, tmp_path: Path, monkeypatch, capsys):
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr("nextscale.cli.models.ModelChoice.load", fail)
    run("info", "cifar10", code=1)
    err = capsys.readouterr().err
    assert err.startswith("error: there is too little memory; use a smaller --batch-size")
    assert err.count("\n") == 1


# ---------------------------------------------------------------------------- streams


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    text = f'nextscale() {{ {sys.executable} -m nextscale "$@"; }}\n{line}'
    return subprocess.run(
        ["bash", "-c", text], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )


def test_closed_streams(model: Path, tmp_path: Path):
    draw = f"nextscale generate cat -m {model} --seed 1"
    done = shell(f"{draw} -o a.png >&-; echo $?", tmp_path)
    assert (done.stdout, done.stderr) == ("0\n", "")
    done = shell(f"{draw} -o b.png >&- 2>&-; {draw} -o c.png <&- >&- 2>&-; echo $?", tmp_path)
    assert (done.stdout, done.stderr) == ("0\n", "")
    drawn = {p.read_bytes() for p in tmp_path.glob("?.png")}
    assert len(drawn) == 1 and len(list(tmp_path.iterdir())) == 3  # nothing was printed into a picture
    done = shell("nextscale generate --count 0 2>&-; echo $?", tmp_path)
    assert done.stdout == "2\n"  # what belongs on stderr does not appear on stdout


def test_readers_that_leave(tmp_path: Path):
    done = shell("nextscale generate --help | true; echo ${PIPESTATUS[0]}", tmp_path)
    assert done.stderr == "" and done.stdout in ("0\n", "1\n")
    done = shell("nextscale info cifar10 --json | head -1; echo ${PIPESTATUS[1]}", tmp_path)
    assert (done.stdout, done.stderr) == ("{\n0\n", "")
    # The line cannot be read, and the exit code still says that the input is bad.
    shell("(sleep 0.2; nextscale generate --count 0; echo $? >code) 2>&1 | true; wait", tmp_path)
    done = shell("while [ ! -s code ]; do sleep 0.1; done; cat code", tmp_path)
    assert (done.stdout, done.stderr) == ("2\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_full(tmp_path: Path):
    done = shell("nextscale --version >/dev/full; echo $?", tmp_path)
    assert done.stdout == "1\n"
    assert done.stderr.startswith("error: ") and done.stderr.endswith("No space left on device\n")
    assert done.stderr.count("\n") == 1


# ---------------------------------------------------------------------------- variables of launchers

LEFT_OVER = [
    ({"WORLD_SIZE": "4"}, "WORLD_SIZE is 4, as in a launch of 4 processes, but RANK is not set"),
    ({"WORLD_SIZE": "4", "RANK": "1"}, "but LOCAL_RANK is not set; if they are left over, unset RANK and"),
    ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "but MASTER_ADDR is not set"),
    ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'; accelerate launch and torchrun set it to a number"),
    ({"WORLD_SIZE": ""}, "WORLD_SIZE is ''"),
    ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE is '999"),
    (
        {"WORLD_SIZE": "2", "RANK": "7", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"},
        "RANK is 7 and WORLD_SIZE 2, which is no launch",
    ),
    (
        {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "port"},
        "the processes of this launch do not find each other at x:port",
    ),
]


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in SET_BY_LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(("variables", "message"), LEFT_OVER, ids=lambda v: str(v)[:40])
@pytest.mark.parametrize("command", ["generate", "evaluate", "train"])
def test_left_over_variables_are_one_line(command, variables, message, model, tmp_path, launch, capsys):
    launch.chdir(tmp_path)
    for name, value in variables.items():
        launch.setenv(name, value)
    arguments = {
        "generate": ("generate", "-m", model, "--out", "run", "--device", "cpu"),
        "evaluate": ("evaluate", "-m", model, "--images", "4", "--device", "cpu"),
        "train": ("train", "classifier", "data", "-o", "run", "--device", "cpu"),
    }
    run(*arguments[command], code=2)
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("variables", [{"RANK": "3"}, {"WORLD_SIZE": "1", "RANK": "0"}, {"LOCAL_RANK": "x"}])
def test_variables_without_a_launch_change_nothing(variables, model: Path, tmp_path: Path, launch, capsys):
    launch.chdir(tmp_path)
    for name, value in variables.items():
        launch.setenv(name, value)
    run("generate", "-m", model, "--count", "3", "--out", "run", "--device", "cpu")
    captured = capsys.readouterr()
    assert captured.out.startswith("run: 3 pictures") and captured.err == ""


def test_whoever_waits_for_others_says_so(tmp_path: Path):
    code = (
        "from nextscale.cli import main\nfrom nextscale.sampling import processes\n"
        "processes.WAITING = 0.1\n"
        "main.main(['evaluate', '--images', '4', '--device', 'cpu'])\n"
    )
    where = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "9",
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**ENVIRONMENT, **where},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if line.startswith("note: "))
    finally:
        process.kill()
        process.communicate()
    assert line.startswith(
        "note: WORLD_SIZE is 2: waiting for the other processes at 127.0.0.1:9; if they are"
    )
