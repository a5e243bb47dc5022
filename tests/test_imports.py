"""Imports go one way; this reads every module and follows its imports, also those inside functions."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

import pytest

import nextscale

SOURCE = Path(nextscale.__file__).parent
PUBLIC = {f"nextscale.{name}": home for name, home in nextscale._HOMES.items()}
PUBLIC["nextscale.__version__"] = "nextscale"
MODULES = sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py"))

# What each part of the library may import besides itself; "" is the package, whose __init__ imports nothing
# at once and is tested by running it.
BASE = {"errors", "scales", "pixels", "kernels", "fused", "recording", ""}
MODEL = BASE | {"guidance", "nn", "generation", "weights", "families"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "scales": {"errors"},
    "pixels": {"errors"},
    "fused": set(),
    "kernels": {"fused"},
    "recording": set(),
    "guidance": BASE,
    "nn": BASE,
    "generation": BASE | {"guidance", "nn"},
    "weights": BASE | {"guidance", "nn"},
    "families": MODEL,
    "integrations": BASE | {"guidance"},
    "sampling": MODEL,
    "data": BASE | {"sampling"},
    "evaluation": MODEL | {"sampling", "data"},
    "training": MODEL | {"sampling", "data"},
    "benchmark": MODEL,
    "cli": MODEL | {"integrations", "sampling", "data", "evaluation", "training", "benchmark", "demo"},
    "demo": MODEL | {"integrations", "evaluation", "training"},
}

# Third-party packages that only some files may know.
MEASURING = ("evaluation/*", "training/*", "cli/*")
OWNED = {
    "typer": ("cli/*",),
    "click": ("cli/*",),
    "rich": ("cli/*",),
    "gradio": ("demo/*",),
    "transformers": ("families/text*.py", "families/*/text*.py", "evaluation/dinov2.py"),
    "accelerate": ("sampling/processes.py",),
    "datasets": ("data/*",),
    "pyarrow": ("data/*", "evaluation/*", "sampling/*"),
    "matplotlib": MEASURING,
    "scipy": (*MEASURING, "benchmark/*"),
    "triton": ("fused/*",),
    "tomllib": ("evaluation/sweep_file.py",),  # in Python from 3.11 on
    "tomli": ("evaluation/sweep_file.py",),  # the same for 3.10
    "models": ("benchmark/arms.py",),  # of a checkout of the official VAR, to be measured beside ours
}
BANNED = {
    "apex",
    "clean_fid",
    "cleanfid",
    "cv2",
    "einops",
    "flash_attn",
    "timm",
    "torch_dct",
    "torch_fidelity",
    "torchaudio",
    "torchvision",
    "xformers",
}
CORE = {"torch", "numpy", "safetensors", "huggingface_hub", "PIL"}


def top(module: str) -> str:
    """The part of the library that ``nextscale.a.b`` or ``a/b.py`` belongs to: ``a``."""
    return module.removeprefix("nextscale").lstrip(".").replace("/", ".").split(".")[0]


def imports(relative: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a module imports; ``from a import b`` counts as ``a.b``."""
    tree = ast.parse((SOURCE / relative).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                assert level == 0, f"{relative}:{node.lineno}: imports are written in full"
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)
            case ast.Call(func=function, args=[ast.Constant(value=str(name)), *_]) if ast.unparse(
                function
            ) in {"import_module", "importlib.import_module", "__import__"}:
                yield node.lineno, name


def family(module: str) -> str | None:
    """The model family ``nextscale.families.NAME...`` is about, else None."""
    parts = module.split(".")
    is_family = parts[:2] == ["nextscale", "families"] and len(parts) > 2
    return parts[2] if is_family and (SOURCE / "families" / parts[2]).is_dir() else None


def faults(relative: str) -> Iterator[str]:
    me = top(relative.removesuffix(".py"))
    own_family = family("nextscale." + relative.removesuffix(".py").replace("/", "."))
    is_model = me == "nn" or (
        own_family and PurePosixPath(relative).name in {"transformer.py", "tokenizer.py"}
    )
    for line, name in imports(relative):
        package, where = name.split(".")[0], f"{relative}:{line}: {name}"
        if package in BANNED:
            yield f"{where}: this package is not used here"
        elif package in OWNED:
            if not any(fnmatch(relative, pattern) for pattern in OWNED[package]):
                yield f"{where}: only {' and '.join(OWNED[package])} may import {package}"
        elif package == "nextscale":
            name = PUBLIC.get(name, name)
            other = top(name)
            if other != me and other not in ALLOWED[me]:
                yield f"{where}: {me} must not import {other}"
            if is_model and other == "guidance":
                yield f"{where}: a model does not know guidance"
            if own_family and family(name) not in {None, own_family}:
                yield f"{where}: families do not import each other"
        elif package not in CORE | set(sys.stdlib_module_names):
            yield f"{where}: {package} is not a dependency of nextscale"


def test_every_part_of_the_library_has_a_level():
    parts = {top(relative.removesuffix(".py")) for relative in MODULES}
    assert parts - {"__init__", "__main__"} <= set(ALLOWED)


def test_levels_have_no_cycle():
    for part, others in ALLOWED.items():
        assert not [other for other in others - {""} if part in ALLOWED[other] and part != other]


@pytest.mark.parametrize("relative", [m for m in MODULES if m not in {"__init__.py", "__main__.py"}])
def test_imports_go_one_way(relative: str):
    assert list(faults(relative)) == []


@pytest.mark.parametrize(
    ("relative", "line", "expected"),
    [
        ("guidance/new.py", "from nextscale.nn import cache", "guidance must not import nn"),
        ("nn/new.py", "from nextscale import guidance", "nn must not import guidance"),
        ("scales.py", "import nextscale.nn.cache", "scales must not import nn"),
        ("generation/new.py", "from nextscale.families.var import tokenizer", "must not import families"),
        ("families/var/transformer.py", "def f():\n    import nextscale.guidance", "does not know guidance"),
        ("families/var/tokenizer.py", "from nextscale.guidance.ssg import as_ssg", "does not know guidance"),
        ("families/other/pipeline.py", "import nextscale.families.var.pipeline", "not import each other"),
        ("families/other/pipeline.py", "from nextscale.families import var", "not import each other"),
        ("integrations/new.py", "import nextscale.nn.cache", "integrations must not import nn"),
        ("integrations/new.py", "from nextscale import VARPipeline", "integrations must not import families"),
        ("training/new.py", "from nextscale import cli", "training must not import cli"),
        ("training/new.py", "from nextscale.evaluation import x", "training must not import evaluation"),
        ("training/new.py", "import typer", "only cli/* may import typer"),
        ("cli/new.py", "import gradio", "only demo/* may import gradio"),
        ("families/var/pipeline.py", "import transformers", "may import transformers"),
        ("evaluation/new.py", "def f():\n    import torchvision.ops", "not used here"),
        ("nn/new.py", "import importlib\nimportlib.import_module('einops')", "not used here"),
        (
            "guidance/new.py",
            "def f():\n    from nextscale import VARPipeline",
            "guidance must not import families",
        ),
        ("cli/new.py", "import requests", "requests is not a dependency"),
    ],
)
def test_the_rules_see_a_fault(tmp_path, monkeypatch, relative: str, line: str, expected: str):
    for folder in ("var", "other"):
        (tmp_path / "families" / folder).mkdir(parents=True)
    (tmp_path / relative).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / relative).write_text(line)
    monkeypatch.setitem(globals(), "SOURCE", tmp_path)
    found = list(faults(relative))
    assert any(expected in fault for fault in found), found


HEAVY = ("torch", "numpy", "safetensors", "huggingface_hub", "PIL", "transformers")


def loaded_by(code: str) -> set[str]:
    """Which heavy packages a new interpreter has loaded after some code."""
    report = (
        f"{code}\nimport sys\nprint('LOADED', *[n for n in {HEAVY} if n in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.strip().splitlines()[-1].split()[1:])


def test_import_nextscale_is_light():
    assert loaded_by("import nextscale; nextscale.__version__; dir(nextscale)") == set()


def test_scales_are_light():
    assert loaded_by("from nextscale import ScaleSchedule; ScaleSchedule.preset('var-256')") == set()


def test_help_is_light():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "nextscale.cli.main", "--help"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    code, last_line = done.returncode, done.stderr.splitlines()[-1]
    assert code == 0, last_line
    assert "generate" in done.stdout
    modules = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "nextscale" in modules
    assert modules.isdisjoint(HEAVY)


def test_public_names_are_found_and_listed():
    assert set(nextscale.__all__) <= set(dir(nextscale))
    for name in nextscale.__all__:
        assert getattr(nextscale, name) is getattr(nextscale, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        nextscale.nothing  # noqa: B018
