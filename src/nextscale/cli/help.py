"""Help texts: plain, quick, options grouped by what they are about, and examples as they are typed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

from nextscale.cli.checks import check_numbers, check_texts
from nextscale.cli.wording import speak_of

NAMES = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _Grouped:
    """Mixed into typer's commands: checks of all values, sections after ``rich_help_panel``, an epilog that
    keeps its lines."""

    def parse_args(self: Any, ctx: Any, args: list[str]) -> Any:
        """Read the command line; raises InvalidArgumentError for values that no option takes."""
        names = option_names(self.get_params(ctx))
        speak_of(names)
        if not ctx.resilient_parsing:
            # Before types are read: a path without a character is the folder one is in.
            typed, *_ = self.make_parser(ctx).parse_args(args=list(args))
            if not typed.get("help"):
                check_texts(typed, names)
        rest = super().parse_args(ctx, args)  # type: ignore[misc]
        check_numbers(ctx.params, names, training=" train " in f" {ctx.command_path} ")
        return rest

    def format_options(self: Any, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                is_argument = parameter.param_type_name == "argument"
                panel = getattr(parameter, "rich_help_panel", None)
                sections[panel or ("Arguments" if is_argument else "Options")].append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records, col_max=26)

    def format_epilog(self: Any, ctx: Any, formatter: Any) -> None:
        if self.epilog:
            with formatter.section("Examples"):
                for line in self.epilog.strip().splitlines():
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


class Command(_Grouped, TyperCommand):
    """A command with grouped help."""


class Group(_Grouped, TyperGroup):
    """A command with sub-commands, listed after its options."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


def option_names(parameters: Sequence[Any]) -> dict[str, str]:
    """How each parameter is called on the command line: ``--top-k``, or ``LABELS`` for an argument."""
    return {
        p.name: p.metavar or p.name.upper()
        if p.param_type_name == "argument"
        else next((text for text in p.opts if text.startswith("--")), p.opts[0])
        for p in parameters
    }
