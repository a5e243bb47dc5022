"""What a model draws, classes or prompts: how they are typed, read, named and stored.

This is the one place that knows the two apart. Which of them a model takes is the name of its pipeline's
first argument, which is also the name they are stored under in a picture.
"""

from __future__ import annotations

import inspect
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

import typer

from nextscale.cli import options
from nextscale.errors import InvalidArgumentError, NextscaleWarning, warn

if TYPE_CHECKING:
    from nextscale.families.text import TextEncoder, TextFeatures

# Classes of ImageNet that look different from each other, for a first picture without labels.
IMAGENET_SAMPLE = (22, 207, 387, 437, 562, 933, 970, 980)
NO_CLASS = ("off", "none")
NAME_LENGTH = 60  # characters of a prompt that listings and captions show


@dataclass(frozen=True)
class SubjectOptions:
    """What to draw, as typed."""

    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="LABELS",
            help="Classes by name or number; none is no class. Default: all classes, or a few of many. "
            "For text-to-image models: prompts, each in quotes.",
            show_default=False,
        ),
    ] = None
    prompt: options.Prompt = None
    prompts: options.PromptFile = None

    def typed(self) -> Typed:
        """Raises InvalidArgumentError if the file of prompts cannot be read or holds none."""
        from_file = read_lines(self.prompts, "--prompts", "prompt") if self.prompts is not None else []
        return Typed(tuple(self.words or ()), (*(self.prompt or ()), *from_file))


@dataclass(frozen=True)
class Typed:
    """The arguments without a name, and what was said to be prompts."""

    words: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.words or self.prompts)


def read_lines(path: Path, option: str, what: str) -> list[str]:
    """A class or prompt per line, so that picture i shows line i.

    Lines end with a line feed (or a carriage return, or both); what else Unicode takes for a line's end
    belongs to the text. Blank lines at the end of the file are none.
    Raises InvalidArgumentError, naming the option, for a blank line before another one, if there is none at
    all, or if the file cannot be read as UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # which also makes every end of a line a line feed
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InvalidArgumentError(f"{option}: cannot read {str(path)!r}: {reason}") from None
    found = [line.strip() for line in text.rstrip().split("\n")]
    if found == [""]:
        raise InvalidArgumentError(f"{option}: {str(path)!r} holds no {what}; write one on every line")
    if "" in found:
        none = ", or none for no class" if what == "class" else ""
        raise InvalidArgumentError(
            f"{option}: line {found.index('') + 1} of {str(path)!r} is blank, and picture i shows line i; "
            f"write a {what} there{none}, or delete the line"
        )
    return found


class Subjects(Protocol):
    """What the pictures of a loaded model show.

    key: the name of the pipeline's argument and of the entry in a picture's settings. nouns: one and many.
    """

    key: ClassVar[str]
    nouns: ClassVar[tuple[str, str]]

    def read(self, typed: Typed) -> list[Any]:
        """Checked values for the pipeline; none if nothing was typed."""
        ...

    def default(self) -> list[Any]:
        """What to draw if nobody says."""
        ...

    def prepare(self, subjects: Sequence[Any]) -> None:
        """What is worth doing once before several calls of the pipeline."""
        ...

    def name(self, subject: Any) -> str:
        """For captions and files."""
        ...

    def quoted(self, subject: Any) -> str:
        """The name as it stands in a sentence."""
        ...

    def whole(self, subject: Any) -> str:
        """Without shortening."""
        ...

    def facts(self) -> dict[str, Any]:
        """What ``info`` says about them."""
        ...

    def summary(self) -> str:
        """The same in some words."""
        ...


class Labels:
    """Classes; as the pipelines' settings have them, numbers, and -1 for no class."""

    key: ClassVar[str] = "labels"
    nouns: ClassVar[tuple[str, str]] = ("class", "classes")

    def __init__(self, pipe: Any) -> None:
        self.model = pipe.name
        self.names: Sequence[str] = pipe.class_names
        self.count: int = pipe.transformer.config.num_classes

    def read(self, typed: Typed) -> list[int]:
        """Raises InvalidArgumentError for unknown classes and for prompts."""
        from nextscale.families.var.classes import resolve_labels

        if typed.prompts:
            raise InvalidArgumentError(
                f"{self.model} draws classes, not prompts; give labels without --prompt, as in: "
                f"nextscale generate {_as_word(self.name(0) if self.names else '0')}"
            )
        if not typed.words:
            return []
        words = [None if word in NO_CLASS else word for word in typed.words]
        numbers = resolve_labels(words, self.names, self.count)
        return [-1 if n == self.count else n for n in numbers]

    def default(self) -> list[int]:
        """All classes of a model with few, a varied handful of ImageNet's, evenly spread ones otherwise."""
        if self.count <= 12:
            return list(range(self.count))
        if self.count == 1000 and self.names:
            return list(IMAGENET_SAMPLE)
        return [i * self.count // 10 for i in range(10)]

    def prepare(self, subjects: Sequence[int]) -> None:
        pass

    def name(self, subject: int) -> str:
        if subject < 0:
            return "no class"
        return self.names[subject] if self.names else f"class {subject}"

    quoted = whole = name

    def facts(self) -> dict[str, Any]:
        return {"class_names": list(self.names), "num_classes": self.count}

    def summary(self) -> str:
        return f"{self.count} classes"


class Prompts:
    """Texts."""

    key: ClassVar[str] = "prompts"
    nouns: ClassVar[tuple[str, str]] = ("prompt", "prompts")

    def __init__(self, pipe: Any) -> None:
        self.pipe, self.model = pipe, pipe.name

    def read(self, typed: Typed) -> list[str]:
        """Raises InvalidArgumentError for prompts without a character."""
        texts = [*typed.words, *typed.prompts]
        if not all(text.strip() for text in texts):
            raise InvalidArgumentError("a prompt is empty; write what to draw")
        for text in texts:
            if not is_text(text):
                raise InvalidArgumentError(f"the prompt {text!r} is no UTF-8 text")
        return texts

    def default(self) -> list[str]:
        raise InvalidArgumentError(
            f'{self.model} draws prompts, and none was given; add --prompt "a lighthouse at dawn", say'
        )

    def prepare(self, subjects: Sequence[str]) -> None:
        """Encode all texts and free the encoder, which can be larger than the model itself."""
        if self.pipe.text_encoder is None:
            raise InvalidArgumentError(
                f"{self.model} has no text encoder; name one with --text-encoder, a folder or a hub id"
            )
        self.pipe.text_encoder = Encoded(self.pipe.text_encoder, subjects)

    def name(self, subject: str) -> str:
        return shorten(subject)

    def quoted(self, subject: str) -> str:
        return f'"{shorten(subject)}"'

    def whole(self, subject: str) -> str:
        return subject

    def facts(self) -> dict[str, Any]:
        encoder = self.pipe.text_encoder
        if encoder is None:
            return {"text_encoder": None}
        return {"text_encoder": getattr(encoder, "name", None) or type(encoder).__name__}

    def summary(self) -> str:
        return "from prompts"


class Encoded:
    """A text encoder that knows some texts already, and has nothing else in memory.

    Encoders take texts one by one, so features do not depend on which were encoded together.
    """

    def __init__(self, encoder: TextEncoder, texts: Sequence[str]) -> None:
        self._encoder = encoder
        self._known = {text: _encoded(encoder, text) for text in dict.fromkeys(texts)}
        encoder.release()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)  # what a pipeline stores about its encoder

    def __call__(self, prompts: Sequence[str]) -> TextFeatures:
        from nextscale.families.text import TextFeatures

        return TextFeatures.cat([self._known[prompt] for prompt in prompts])

    def release(self) -> None:
        """Nothing to free."""


def _encoded(encoder: TextEncoder, text: str) -> TextFeatures:
    """Features of one text; what the encoder warns of names that text, and not its place among one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        features = encoder([text])
    for warning in caught:
        if issubclass(warning.category, NextscaleWarning):
            warn(str(warning.message).replace("prompt 0 ", f'the prompt "{shorten(text)}" ', 1))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return features


KINDS: Mapping[str, type[Labels] | type[Prompts]] = {kind.key: kind for kind in (Labels, Prompts)}


def subjects_of(pipe: Any) -> Subjects:
    """What a loaded model draws, by the name of its pipeline's first argument."""
    first = next(iter(inspect.signature(pipe).parameters))
    return KINDS[first](pipe)


def stored_key(settings: Mapping[str, Any]) -> str:
    """Under which name the settings of a picture hold what it shows; ``""`` if they do not."""
    return next((key for key in KINDS if key in settings), "")


def are_subjects(key: str, values: Any) -> bool:
    """Whether stored values can be what pictures show: at least one, class numbers or texts."""
    kind = int if key == Labels.key else str
    return bool(values) and isinstance(values, list) and all(type(v) is kind for v in values)


def is_text(text: str) -> bool:
    """Whether every character can be written; what the system passes on of bytes that are no text cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shorten(text: str, length: int = NAME_LENGTH) -> str:
    """A text in one line of at most ``length`` characters, cut between words where it has any."""
    line = " ".join(text.split())
    if len(line) <= length:
        return line
    cut = textwrap.shorten(line, length, placeholder=" …")
    return cut if len(cut) > length // 2 else line[: length - 2] + " …"


def _as_word(name: str) -> str:
    return f'"{name}"' if " " in name else name
