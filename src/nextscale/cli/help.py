"""Help texts: plain, quick, options grouped by what they are about, and examples as they are typed."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from typer.core import TyperCommand, TyperGroup

NAMES = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class _Grouped:
    """Mixed into typer's commands: sections after ``rich_help_panel``, and an epilog that keeps its lines."""

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
