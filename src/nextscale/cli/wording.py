"""The library's messages in the words of the command line: options instead of Python's arguments.

The library says ``top_k must be …``, as its callers write; on the command line that is ``--top-k``.
Which words are options is known from the command that runs, so what stands in files (a sweep's settings,
say) keeps its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# Arguments whose option has another name; the first of them that the command has.
_ALIASES: Mapping[str, tuple[str, ...]] = {
    "beta": ("beta", "ssg"),
    "start": ("ssg_start",),
    "stop": ("ssg_stop",),
    "schedule": ("ssg_schedule", "schedule"),
    "rows": ("tile",),
    "scale": ("guidance_scale",),
}
# Words of one part are options only where they are spoken of as such: they are plain English as well.
_SPOKEN_OF = ("beta", "temperature", "start", "stop", "rows", "height", "width", "seed", "pixels", "scale")
# What can be said in Python alone, and what stands for it here.
_PHRASES: tuple[tuple[str, str], ...] = (
    (r", or pass TextFeatures", ""),
    (r" To use another one on purpose, make HARTTextEncoder\(\.\.\., verify=False\)", ""),
    (r"\bclass name or None\b", "class name or none"),
    (r"\bNone or -1 is no class", "none is no class"),
    (r"for official files use from_official\b", "for official files use --transformer FILE"),
    (r"; give (a [^;]*?) with settings=\{('\w+'): \.\.\.\}", r"; write \2 there, \1"),
    (r",? or give settings=\{'\w+': \.\.\.\}", ""),
    (
        r"aspect_ratio and pixels, or height and width, or schedule",
        "--aspect-ratio and --pixels, or --height and --width",
    ),
    (r"give both height and width, got .*", "give both --height and --width"),
    (r"\bresume=False\b", "--no-resume"),
    (r"\b(say which with )model=", r"\1--variant"),
    (r"Pass (\w+)=: a file of it", r"Give \1=FILE, a file of it"),
    (r"\bsave_pretrained makes? one\b", "nextscale convert makes one"),
)
_ASSIGNED = re.compile(r"(?<![\w-])([a-z][a-z_]*)=('[\w.-]+'|[\w.-]+|\[\.\.\.\]|)(?![\w=])")
_FROM_FILES = ("the settings in '",)  # messages about what stands in a file, under its own names

_options: dict[str, str] = {}


def speak_of(options: Mapping[str, str]) -> None:
    """Set the options of the command that runs, by their parameters: ``{"top_k": "--top-k"}``."""
    _options.clear()
    _options.update({name: text for name, text in options.items() if text.startswith("--")})
    for name, parameters in _ALIASES.items():
        found = next((_options[p] for p in parameters if p in _options), None)
        if found is not None:
            _options[name] = found


def worded(message: str) -> str:
    """A message of the library, as the command that runs would say it."""
    if message.startswith(_FROM_FILES):
        return message
    for pattern, words in _PHRASES:
        message = re.sub(pattern, words, message)
    message = _ASSIGNED.sub(_assignment, message)
    # Quoted parts are values and file names; an apostrophe opens none.
    parts = re.split(r"((?<!\w)'[^']*'|\"[^\"]*\")", message)
    return "".join(part if i % 2 else _named(part) for i, part in enumerate(parts))


def _assignment(found: re.Match[str]) -> str:
    """``sampler='greedy'`` as ``--sampler greedy``."""
    name, value = found[1], found[2].strip("'")
    option = _options.get(name)
    if option is None:
        return found[0]
    return f"{option} 1,2,…" if value == "[...]" else f"{option} {value}".rstrip()


def _named(text: str) -> str:
    for name, option in _options.items():
        if "_" in name:
            text = re.sub(rf"(?<![\w./-]){name}(?![\w./=(])", option, text)
        elif name in _SPOKEN_OF:
            spoken = rf"(?:(?<=^)|(?<=[:;,] )|(?<=but )|(?<=below )|(?<=and ))(?<!-){name}"
            text = re.sub(rf"{spoken}(?=(\[\d+\])? (must|is|has|\(\d))", option, text)
    return text
