"""The entry point: finds the command, and turns what goes wrong into one line on stderr.

Nothing here, and nothing the command modules import at their top, loads torch, numpy or Pillow, so that
``--help`` and mistyped options answer at once.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import typer
from typer.main import get_command

from nextscale import __version__
from nextscale.cli import streams
from nextscale.cli.help import NAMES, Group
from nextscale.cli.progress import note, warnings_as_notes
from nextscale.cli.wording import worded
from nextscale.errors import NextscaleError, is_out_of_memory

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
_NO_NAMES = (errno.ENAMETOOLONG, errno.ELOOP)  # a system's words for names that no file can have
MESSAGE = 1500  # characters
OUT_OF_MEMORY = (
    "there is too little memory; use a smaller --batch-size, a smaller model, or --dtype bfloat16, where the "
    "command has them"
)

COMMANDS = {
    "generate": "Make pictures of classes, or of prompts.",
    "verify": "Check that all pictures of a run are there and whole.",
    "compare": "Without and with SSG from the same seeds, side by side.",
    "demo": "Open a page on this machine that shows what SSG does.",
    "evaluate": "Measure a model: Fréchet distance, precision, recall, and more.",
    "spectrum": "What each step adds, frequency by frequency.",
    "sweep": "Measure every combination of the settings in a file.",
    "tune": "Find the strength and schedule of SSG for a model.",
    "bench": "How fast this machine draws, and what SSG costs.",
    "info": "Describe a model, a picture, or this installation.",
    "convert": "Write official checkpoints in this library's layout.",
    "train": "Train a tokenizer, a transformer or a classifier.",
}
"""In the order of the help text, with a line for it; each is the module of that name beside this one, with an
``app``. The lines stand here because reading them from every module takes longer than all else."""

# Recent versions of typer carry their own click; this is the base of usage errors with and without.
_UsageProblem: type[BaseException] = typer.BadParameter.__mro__[2]

EPILOG = """\
nextscale generate horse ship --ssg 0.6
nextscale compare --output demo.png
nextscale demo
nextscale info cifar10
nextscale train --help
"""


class LazyCommands(Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands:
            # For an unknown name all are imported, so that typer can suggest similar ones.
            for name in (cmd_name,) if cmd_name in COMMANDS else COMMANDS:
                command = get_command(import_module(f"nextscale.cli.{name}").app)
                command.name = name
                self.commands.setdefault(name, command)
        return self.commands.get(cmd_name)


app = typer.Typer(
    cls=LazyCommands,
    invoke_without_command=True,
    epilog=EPILOG,
    rich_markup_mode=None,
    context_settings=NAMES,
)


@app.callback()
def root(
    ctx: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and stop."),
) -> None:
    """Next-scale (VAR) image generation with Scaled Spatial Guidance."""
    if version:
        print(f"nextscale {__version__}")
    elif ctx.invoked_subcommand is None:
        print(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code.

    0: done. 2: bad input, with one line ``error: …`` on stderr. 1: the disk or the memory is full, say, or
    nobody reads stdout any more. 130: interrupted. Streams that were closed from the start are no error: what
    would be written to them is lost.
    """
    streams.prepare()
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` for instance, has seen enough
        code = FAILED
    except OSError as error:  # what was printed could not be written
        code = _complain(f"cannot write to stdout: {error.strerror or error}", FAILED)
    streams.finish()
    sys.exit(code)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        with warnings_as_notes():
            code = get_command(app).main(arguments, prog_name="nextscale", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        raise
    except _UsageProblem as problem:
        message = getattr(problem, "format_message", problem.__str__)()
        return _complain(f"{message}{_help_hint(problem)}")
    except NextscaleError as error:
        return _complain(worded(str(error)))
    except OSError as error:
        return _complain(str(error), BAD_INPUT if error.errno in _NO_NAMES else FAILED)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _complain(OUT_OF_MEMORY, FAILED)
    if code == INTERRUPTED:
        note("interrupted")
    return code if isinstance(code, int) else 0


def _complain(message: str, code: int = BAD_INPUT) -> int:
    """Say what is wrong in one line; returns the exit code, whether or not anybody reads it."""
    note(f"error: {_shortened(' '.join(message.split()))}")
    return code


def _shortened(message: str) -> str:
    """Messages quote what was typed, which may be of any length."""
    half = MESSAGE // 2
    return message if len(message) <= MESSAGE else f"{message[:half]} … {message[-half:]}"


def _help_hint(problem: BaseException) -> str:
    path = getattr(getattr(problem, "ctx", None), "command_path", None)
    return f" (see {path} --help)" if path else ""


if __name__ == "__main__":
    main()
