"""``nextscale verify``: whole runs, and everything that can have happened to one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nextscale.cli.main import main

FORMATS = {"tar": "png", "parquet": "webp", "folder": "webp", "npz": None}


def run(*arguments: str | Path, code: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    assert ended.value.code == code


@pytest.fixture(scope="module")
def runs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """12 pictures in 3 files, in every format; a joined npz is one."""
    root, made = tmp_path_factory.mktemp("runs"), {}
    for kind, image in FORMATS.items():
        made[kind] = root / kind
        more = () if image is None else ("--image-format", image)
        common = ("-m", model, "--count", "12", "--shard-size", "4", "--ssg", "0.6")
        run("generate", "cat", "dog", *common, "--format", kind, *more, "--out", made[kind])
    return made


@pytest.fixture
def copy(runs: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda kind: Path(shutil.copytree(runs[kind], tmp_path / kind))


def some_file(folder: Path) -> Path:
    """The second of a run's files with pictures; a picture, where they lie singly."""
    found = sorted(p for p in folder.iterdir() if p.name.startswith(("shard", "train", "samples")))
    path = found[min(1, len(found) - 1)]
    return sorted(path.iterdir())[2] if path.is_dir() else path


@pytest.mark.parametrize("kind", FORMATS)
def test_whole_runs(kind: str, runs: dict[str, Path], copy: Callable, capsys: pytest.CaptureFixture[str]):
    capsys.readouterr()
    run("verify", runs[kind])
    captured = capsys.readouterr()
    files = "1 file" if kind == "npz" else "3 files"
    assert captured.out.startswith(f"{runs[kind]}: 12 pictures in {files}, all whole\n")
    assert captured.out.rstrip().endswith("SSG 0.6") and captured.err == ""
    without = copy(kind)
    shutil.rmtree(without / "logs")  # what they say is an addition
    run("verify", without)
    assert "all whole" in capsys.readouterr().out


@pytest.mark.parametrize("logs", [True, False])
@pytest.mark.parametrize("lost", [1, 12, 700])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_that_was_cut_off_later(kind: str, lost: int, logs: bool, copy: Callable, capsys):
    folder = copy(kind)
    if not logs:
        shutil.rmtree(folder / "logs", ignore_errors=True)
    path = some_file(folder)
    content = path.read_bytes()
    path.write_bytes(content[: -min(lost, len(content) // 2)])
    run("verify", folder, code=1)
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1 and "Traceback" not in captured.err
    assert str(path if path.parent == folder else path.parent) in captured.out
    files, whole = (1, 0) if kind == "npz" else (3, 8)
    assert captured.err == (
        f"error: 1 damaged of {files} files, {whole} of 12 pictures are whole; delete what is damaged, and "
        f"give the command of the run again to make the rest\n"
    )


@pytest.mark.parametrize("kind", FORMATS)
def test_a_bit_that_changed(kind: str, model: Path, tmp_path: Path, capsys):
    run("generate", "-m", model, "--count", "3", "--format", kind, "--out", tmp_path / "run")
    path = some_file(tmp_path / "run")
    content = bytearray(path.read_bytes())
    for place in (len(content) // 3, len(content) // 2, len(content) - 5):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        run("verify", tmp_path / "run", code=1)
    path.write_bytes(content)
    run("verify", tmp_path / "run")


def test_missing_and_exchanged_files_and_how_to_go_on(model: Path, tmp_path: Path, capsys):
    folder = tmp_path / "run"
    command = ("generate", "-m", model, "--count", "12", "--shard-size", "4", "--out", folder)
    run(*command)
    first, second, third = sorted(folder.glob("*.tar"))
    whole = first.read_bytes()
    first.write_bytes(second.read_bytes())
    third.unlink()
    capsys.readouterr()
    run("verify", folder, code=1)
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        f"{str(first)!r} has picture 4 where 0 belongs",
        f"{third}: missing",
    ]
    assert captured.err.startswith("error: 1 missing and 1 damaged of 3 files, 4 of 12 pictures are whole")
    first.unlink()
    run(*command)
    run("verify", folder)
    assert first.read_bytes() == whole


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("count", [12, 11])
def test_pictures_of_something_else(number: int, count: int, model: Path, tmp_path: Path, capsys):
    """Runs that differ in what they show alone, and a shard that went from one to the other."""
    for name in ("cat", "dog"):
        common = ("-m", model, "--count", str(count), "--shard-size", "4")
        run("generate", name, "bird", *common, "--out", tmp_path / name)
    shutil.copy(tmp_path / "dog" / f"shard-00000{number}.tar", tmp_path / "cat")
    capsys.readouterr()
    run("verify", tmp_path / "cat", code=1)
    captured = capsys.readouterr()
    where = str(tmp_path / "cat" / f"shard-00000{number}.tar")
    assert captured.out == f"{where!r} was changed: it is not what the run has written\n"
    assert "1 damaged of 3 files" in captured.err  # the others are not blamed
    shutil.rmtree(tmp_path / "cat" / "logs")
    run("verify", tmp_path / "cat", code=1)
    assert "shows something else than the run" in capsys.readouterr().out


def test_what_a_picture_is_said_to_be(copy: Callable, capsys):
    folder = copy("folder")
    listing = folder / "shard-000001" / "metadata.jsonl"
    whole = listing.read_text()
    shutil.rmtree(folder / "logs")  # which would say of any change that it was made later
    for old, new, said in [
        ('"seed": 5', '"seed": 9', "picture 5 is said to have the seed 9, and it is 5"),
        ('"label": 5', '"label": 3', "shows something else than the run"),
        ('"index": 6', '"index": 7', "has picture 7 where 6 belongs"),
    ]:
        assert old in whole
        listing.write_text(whole.replace(old, new, 1))
        run("verify", folder, code=1)
        assert said in capsys.readouterr().out
    listing.write_text(whole + whole.splitlines()[0].replace('"index": 4', '"index": 8') + "\n")
    shutil.copy(listing.with_name("000000004.webp"), listing.with_name("000000008.webp"))
    run("verify", folder, code=1)
    assert "has picture 8 after its last one" in capsys.readouterr().out


def test_an_npz_whose_parts_are_not_joined(copy: Callable, capsys):
    folder = copy("npz")
    (folder / "samples.npz").rename(folder / "shard-000001.npz")
    run("verify", folder, code=1)
    assert "error: 2 missing and 1 damaged of 3 files" in capsys.readouterr().err


def test_what_is_no_run(copy: Callable, tmp_path: Path, capsys):
    (tmp_path / "file").write_text("x")
    for name in ("nowhere", "file", "."):
        run("verify", tmp_path / name, code=2)
        err = capsys.readouterr().err
        assert "holds no run; name the folder of --out" in err and err.count("\n") == 1
    folder = copy("tar")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"count": 10**20}))
    run("verify", folder, code=2)
    assert "cannot be used" in capsys.readouterr().err
