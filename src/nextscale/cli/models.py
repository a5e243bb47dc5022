"""Which model a command is about, from its options, and the loading of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nextscale.cli import options
from nextscale.cli.allocator import keep_freed_memory
from nextscale.cli.checks import MAX_SIDE
from nextscale.cli.options import DEPTHS, VARIANTS
from nextscale.cli.values import flag, read_pairs, read_sides
from nextscale.errors import CheckpointError, InvalidArgumentError

DEFAULT_MODEL = "cifar10"
# Options about official files alone.
_OFFICIAL = ("tokenizer", "depth", "variant", "patch_nums", "averaged", "settings")
# Options by the keywords that the pipelines' from_official and from_pretrained have for them.
_FIELDS = {
    "tokenizer": "tokenizer",
    "depth": "depth",
    "model": "variant",
    "patch_nums": "patch_nums",
    "averaged": "averaged",
    "settings": "settings",
    "class_names": "class_names",
    "text_encoder": "text_encoder",
    "system_prompt": "system_prompt",
}
_ONE_OF = {"depth": DEPTHS, "model": VARIANTS}  # what tells the models of one hub repository apart


@dataclass(frozen=True)
class ModelOptions:
    """The options that name a model, and where it runs."""

    model: options.Model = None
    transformer: options.Transformer = None
    tokenizer: options.Tokenizer = None
    depth: options.Depth = None
    variant: options.Variant = None
    patch_nums: options.PatchNums = None
    averaged: options.Averaged = None
    settings: options.Settings = None
    class_names: options.ClassNames = None
    text_encoder: options.TextEncoder = None
    system_prompt: options.SystemPrompt = None
    device: options.Device = None
    dtype: options.Dtype = None

    def choice(self) -> ModelChoice:
        """Raises InvalidArgumentError where the options contradict each other."""
        given = {k: v for k, v in vars(self).items() if k not in ("device", "dtype")}
        return ModelChoice.given(**given)


@dataclass(frozen=True)
class ModelChoice:
    """What names a model: one in the library's layout, or official files.

    model: an embedded name, a folder, a hub id, or an official transformer file.
    transformer, tokenizer: official files. depth, variant: which official model of a folder or hub id.
    patch_nums: sides of the scales as text, where official tensors cannot tell.
    averaged: whether to take averaged weights of official files. settings: as text, what else they do not
    tell. class_names: a file with them.
    text_encoder: a folder or hub id instead of the usual one. system_prompt: a file with HART's.
    """

    model: str | None = None
    transformer: str | None = None
    tokenizer: str | None = None
    depth: int | None = None
    patch_nums: str | None = None
    variant: str | None = None
    text_encoder: str | None = None
    system_prompt: str | None = None
    averaged: bool | None = None
    settings: str | None = None
    class_names: str | None = None

    @classmethod
    def given(
        cls,
        model: str | None,
        transformer: Path | None = None,
        tokenizer: Path | None = None,
        depth: int | None = None,
        patch_nums: str | None = None,
        *,
        variant: str | None = None,
        text_encoder: str | None = None,
        system_prompt: Path | None = None,
        averaged: bool | None = None,
        settings: str | None = None,
        class_names: Path | None = None,
    ) -> ModelChoice:
        """From the options; raises InvalidArgumentError where they contradict each other."""
        if model is not None and transformer is not None:
            raise InvalidArgumentError(
                f"--model {model} and --transformer {transformer} both name a model; give one of them"
            )
        for name, file in (("system_prompt", system_prompt), ("class_names", class_names)):
            if file is not None and not file.is_file():
                raise InvalidArgumentError(f"{flag(name)}: no such file: {str(file)!r}")
        files = (_text(transformer), _text(tokenizer))
        texts = (variant, text_encoder, _text(system_prompt))
        return cls(model, *files, depth, patch_nums, *texts, averaged, settings, _text(class_names))

    @classmethod
    def stored(cls, source: Mapping[str, Any]) -> ModelChoice:
        """The inverse of :meth:`to_json`."""
        try:
            return cls(**source)
        except TypeError:
            raise InvalidArgumentError(f"the picture names its model in an unknown way: {source!r}") from None

    def over(self, stored: ModelChoice) -> ModelChoice:
        """This choice; what it leaves open is as stored, unless it names another model."""
        if self.model or self.transformer:
            return self
        return replace(stored, **{k: v for k, v in asdict(self).items() if v is not None})

    def to_json(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self._or_default()).items() if v is not None}

    def __bool__(self) -> bool:
        """Whether anything was given."""
        return self != ModelChoice()

    def __str__(self) -> str:
        if self.depth:
            return f"{self.source} d{self.depth}"
        return f"{self.source} {self.variant}" if self.variant else self.source

    def _or_default(self) -> ModelChoice:
        return self if self.model or self.transformer else replace(self, model=DEFAULT_MODEL)

    @property
    def source(self) -> str:
        """The model, or the file of its transformer."""
        return self.transformer or self.model or DEFAULT_MODEL

    @property
    def is_official(self) -> bool:
        """Whether this names official files rather than the library's layout."""
        from nextscale.families import is_official

        about_files = any(getattr(self, name) is not None for name in ("transformer", *_OFFICIAL))
        return about_files or is_official(self.source)

    def load(self, device: str | None = None, dtype: str | None = None) -> Any:
        """The pipeline. Raises ModelNotFoundError or CheckpointError, naming what is wrong."""
        keep_freed_memory()
        with _as_options():
            return self._load(device, dtype)

    def _load(self, device: str | None, dtype: str | None) -> Any:
        from nextscale import families

        where = {"device": device or "auto", "dtype": dtype or "auto"}
        wanted = self._wanted()
        if self.is_official:
            self._require_files()
            family = families.official_family(self.source, wanted)
            known = families.official_options(family)
            self._refuse_others(family, wanted, known)
            self._require_one_of(wanted, known)
            return families.pipeline_class(family).from_official(self.source, **wanted, **where)
        if wanted:
            family = families.pretrained_family(self.source)
            self._refuse_others(family, wanted, families.pretrained_options(family))
        return families.load_pretrained(self.source, **wanted, **where)

    def _wanted(self) -> dict[str, Any]:
        """Keywords for ``from_official`` or ``from_pretrained``: what was given."""
        wanted = {word: getattr(self, field) for word, field in _FIELDS.items()}
        if self.patch_nums is not None:
            wanted["patch_nums"] = read_sides(self.patch_nums, "--patch-nums", MAX_SIDE)
        if self.settings is not None:
            wanted["settings"] = read_pairs(self.settings, "--settings")
        if self.class_names is not None:
            wanted["class_names"] = _class_names(Path(self.class_names))
        if self.system_prompt is not None:
            wanted["system_prompt"] = Path(self.system_prompt)
        return {word: value for word, value in wanted.items() if value is not None}

    def _require_files(self) -> None:
        """Models in the library's layout have none; neither has the embedded one, which no name means."""
        from nextscale.families import is_layout

        path = Path(self.source)
        if is_layout(path) or (self.source == DEFAULT_MODEL and not path.exists()):
            given = next(flag(name) for name in _OFFICIAL if getattr(self, name) is not None)
            raise InvalidArgumentError(
                f"{given} is about official files, and {self.source} has none; "
                f"add --transformer FILE or --model FoundationVision/var, say"
            )

    def _refuse_others(self, family: str, wanted: Iterable[str], known: Iterable[str]) -> None:
        for word in wanted:
            if word not in known:
                raise InvalidArgumentError(
                    f"{flag(_FIELDS[word])}: {self.source} is a model of the family {family}, "
                    f"which has no such option"
                )

    def _require_one_of(self, wanted: Iterable[str], known: Iterable[str]) -> None:
        """A hub repository with several models; of a folder the family itself says so."""
        for word, values in _ONE_OF.items():
            if word in known and word not in wanted and not Path(self.source).exists():
                raise InvalidArgumentError(
                    f"{self.source} holds several models; say which with {flag(_FIELDS[word])} {values}"
                )


# Advice about official files in Python's words, and in the command line's.
_ADVICE = (
    (r"\baveraged=True\b", "--averaged"),
    (r"\baveraged=False\b", "--no-averaged"),
    (r"\bsettings=\{'(\w+)': \.\.\.\}", r"--settings \1=…"),
    (r"\bsettings=(?!\{)", "--settings"),
    (
        r"\bpatch_nums=\[\.\.\.\], the side of every scale, or \(height, width\) where",
        "--patch-nums 1,2,3,…, the side of every scale, or height x width (1x4) where",
    ),
    (r"\bpatch_nums (?=\[)", "--patch-nums "),
    (r"\b(tokenizer|depth)=(?!\w)", r"--\1"),
    (r"\bmodel=(?!\w)", "--variant"),
)


@contextmanager
def _as_options() -> Iterator[None]:
    """Say what is wrong with official files, in the words of the command line."""
    try:
        yield
    except CheckpointError as error:
        message = str(error)
        for pattern, words in _ADVICE:
            message = re.sub(pattern, words, message)
        raise CheckpointError(message) from error


def _class_names(path: Path) -> list[str]:
    from nextscale.families.var.classes import read_class_names

    return read_class_names(path)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
