"""Captions made from class names, for text-to-image models that are trained on labelled pictures."""

from __future__ import annotations

from collections.abc import Sequence

from nextscale.errors import InvalidArgumentError

# {thing} is the name of a class, {a_thing} has its article before it. The first is how a class is asked for.
TEMPLATES = (
    "a photo of {a_thing}",
    "a picture of {a_thing}",
    "a small photo of {a_thing}",
    "a photo of the {thing}",
    "{a_thing}",
    "{thing}",
)


def captions(name: str, templates: Sequence[str] = TEMPLATES) -> list[str]:
    """A class's caption by every template; underscores in its name become spaces.

    Raises InvalidArgumentError for a template with other fields than ``{thing}`` and ``{a_thing}``.
    """
    thing = name.replace("_", " ")
    article = "an" if thing[:1].lower() in "aeiou" else "a"
    try:
        return [template.format(thing=thing, a_thing=f"{article} {thing}") for template in templates]
    except (KeyError, IndexError, ValueError):
        raise InvalidArgumentError(
            f"a caption template may have the fields {{thing}} and {{a_thing}}, got {list(templates)}"
        ) from None
