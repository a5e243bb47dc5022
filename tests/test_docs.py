"""What the documentation shows is run: Python blocks, and the `nextscale` lines of console and bash blocks.

All blocks of a file run in order, in one namespace and one empty folder, so a later block may use what an
earlier one made. A block that needs a download or hours stands under `<!-- not run: the reason -->`.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests import forkserver

ROOT = Path(__file__).resolve().parents[1]
DOCS = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md"))]

COMMANDS = {"console", "bash"}
SHOWN = {"text", "json", "toml", "yaml", "bibtex", "mermaid", "math", "diff"}

FENCE = re.compile(r"^(?P<indent> *)(?P<marks>`{3,})(?P<language>[^`\s]*)[^`]*$")
NOT_RUN = re.compile(r"^\s*<!-- not run: (?P<reason>.+?) -->\s*$")


@dataclass(frozen=True)
class Block:
    """A fenced block: the file, the number of its first line of code, and why it is not run, if so."""

    path: str
    line: int
    language: str
    code: str
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


def blocks(path: str, text: str) -> Iterator[Block]:
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        opening = FENCE.match(lines[number])
        number += 1
        if not opening:
            continue
        start = number
        closing = re.compile(rf"^ *{opening['marks']}`*\s*$")
        while number < len(lines) and not closing.match(lines[number]):
            number += 1
        assert number < len(lines), f"{path}:{start}: this block has no end"
        above = next((line for line in reversed(lines[: start - 1]) if line.strip()), "")
        reason = NOT_RUN.match(above)
        code = textwrap.dedent("\n".join(lines[start:number]))
        yield Block(path, start + 1, opening["language"], code, reason["reason"] if reason else None)
        number += 1


def commands(block: Block) -> list[list[str]]:
    """The `nextscale` commands of a block; with `$ ` prompts the other lines are output."""
    text = re.sub(r"\\\n\s*(> )?", " ", block.code)
    lines = [line.strip() for line in text.splitlines()]
    if any(line.startswith("$ ") for line in lines):
        lines = [line[2:].strip() for line in lines if line.startswith("$ ")]
    found = [shlex.split(line, comments=True) for line in lines if re.match(r"nextscale(\s|$)", line)]
    for words in found:
        assert not {"|", ">", "<", "&&", ";", "||"} & set(words), (
            f"{block}: one plain command a line, got {words}"
        )
    return [words[1:] for words in found]


def run_command(block: Block, arguments: list[str]) -> None:
    done = forkserver.run_command(arguments, Path.cwd(), timeout=600)
    assert done.returncode == 0, f"{block}: nextscale {shlex.join(arguments)}\n{done.stdout}\n{done.stderr}"


def run(block: Block, namespace: dict[str, Any]) -> None:
    if block.language == "python":
        padding = "\n" * (block.line - 1)  # so that a traceback shows the line of the file
        exec(compile(padding + block.code, ROOT / block.path, "exec"), namespace)
    for arguments in commands(block) if block.language in COMMANDS else []:
        run_command(block, arguments)


def read(path: str) -> list[Block]:
    file = ROOT / path
    return list(blocks(path, file.read_text(encoding="utf-8"))) if file.exists() else []


@pytest.mark.slow
@pytest.mark.parametrize("path", DOCS)
def test_examples_run(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert (ROOT / path).exists()
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in read(path):
        if block.not_run is None:
            run(block, namespace)


@pytest.mark.parametrize("path", DOCS)
def test_every_block_says_what_it_is(path: str):
    known = {"python", *COMMANDS, *SHOWN}
    unknown = [f"{block} is {block.language!r}" for block in read(path) if block.language not in known]
    assert not unknown, f"use one of {sorted(known)}; `text` is for everything else"


LEFT_OUT = [block for path in DOCS for block in read(path) if block.not_run is not None]

if LEFT_OUT:

    @pytest.mark.parametrize("block", LEFT_OUT, ids=str)
    def test_left_out(block: Block):
        """Nothing is tested: this lists, in pytest's summary, what the documentation does not run and why."""
        pytest.skip(f"{block} is not run: {block.not_run}")


EXAMPLE = """\
# Title

```python
x = 1
```

1. in a list:

   ```python
   x += 1
   raise KeyError(x)
   ```

<!-- not run: it downloads 2 GB -->

```console
$ nextscale info var-d16
a line of output
```

````text
```python
not code
```
````

```bash
make demo
nextscale generate 3 "great white shark" \\
    --seed 1   # a comment
```
"""


def test_blocks_are_found():
    found = list(blocks("example.md", EXAMPLE))
    assert [(b.line, b.language, b.not_run) for b in found] == [
        (4, "python", None),
        (10, "python", None),
        (17, "console", "it downloads 2 GB"),
        (22, "text", None),
        (28, "bash", None),
    ]
    assert found[1].code == "x += 1\nraise KeyError(x)"
    assert found[3].code == "```python\nnot code\n```"


def test_blocks_share_a_namespace_and_errors_show_their_line():
    first, second, *_ = blocks("example.md", EXAMPLE)
    namespace: dict[str, Any] = {}
    run(first, namespace)
    with pytest.raises(KeyError) as caught:
        run(second, namespace)
    assert namespace["x"] == 2
    assert caught.traceback[-1].lineno + 1 == 11


def test_commands_are_found():
    found = list(blocks("example.md", EXAMPLE))
    assert commands(found[2]) == [["info", "var-d16"]]
    assert commands(found[4]) == [["generate", "3", "great white shark", "--seed", "1"]]
    with pytest.raises(AssertionError, match="one plain command a line"):
        commands(Block("example.md", 1, "bash", "nextscale info | less", None))


def test_a_command_that_fails_fails():
    with pytest.raises(AssertionError, match="nextscale no-such-command"):
        run_command(Block("example.md", 1, "bash", "", None), ["no-such-command"])


def test_a_block_without_an_end():
    with pytest.raises(AssertionError, match="no end"):
        list(blocks("example.md", "```python\nx = 1\n"))
