"""Which model a command is about, from its options, and the loading of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nextscale.cli.options import read_whole_numbers
from nextscale.errors import InvalidArgumentError

if TYPE_CHECKING:
    from nextscale.families.var.pipeline import VARPipeline

DEFAULT_MODEL = "cifar10"
OFFICIAL_REPO = "foundationvision/var"
DEPTHS = "16, 20, 24, 30 or 36"


@dataclass(frozen=True)
class ModelChoice:
    """What names a model: one in the library's layout, or official files.

    model: an embedded name, a folder, a hub id, or an official transformer file.
    transformer, tokenizer: official files. depth: which official transformer of a folder or hub id.
    patch_nums: sides of the scales as text, where official tensors cannot tell.
    """

    model: str | None = None
    transformer: str | None = None
    tokenizer: str | None = None
    depth: int | None = None
    patch_nums: str | None = None

    @classmethod
    def given(
        cls,
        model: str | None,
        transformer: Path | None = None,
        tokenizer: Path | None = None,
        depth: int | None = None,
        patch_nums: str | None = None,
    ) -> ModelChoice:
        """From the options; raises InvalidArgumentError where they contradict each other."""
        if model is not None and transformer is not None:
            raise InvalidArgumentError(
                f"--model {model} and --transformer {transformer} both name a model; give one of them"
            )
        return cls(model, _text(transformer), _text(tokenizer), depth, patch_nums)

    @classmethod
    def stored(cls, source: Mapping[str, Any]) -> ModelChoice:
        """The inverse of :meth:`to_json`."""
        try:
            return cls(**source)
        except TypeError:
            raise InvalidArgumentError(f"the picture names its model in an unknown way: {source!r}") from None

    def to_json(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self._or_default()).items() if v is not None}

    def __bool__(self) -> bool:
        """Whether anything was given."""
        return self != ModelChoice()

    def __str__(self) -> str:
        name = self.transformer or self.model or DEFAULT_MODEL
        return f"{name} d{self.depth}" if self.depth else name

    def _or_default(self) -> ModelChoice:
        return self if self.model or self.transformer else replace(self, model=DEFAULT_MODEL)

    @property
    def is_official(self) -> bool:
        """Whether this names official files rather than the library's layout."""
        if self.transformer or self.tokenizer or self.depth or self.patch_nums:
            return True
        path = Path(self.model or DEFAULT_MODEL)
        if path.is_dir() and not (path / "config.json").exists():
            return any(path.glob("var_d*.pth"))
        return path.is_file()

    def load(self, device: str | None = None, dtype: str | None = None) -> VARPipeline:
        """The pipeline. Raises ModelNotFoundError or CheckpointError, naming what is wrong."""
        from nextscale.families.var.pipeline import VARPipeline

        choice = self._or_default()
        where: dict[str, Any] = {"device": device or "auto", "dtype": dtype or "auto"}
        source = choice.transformer or choice.model or DEFAULT_MODEL
        if not choice.is_official:
            if source.lower() == OFFICIAL_REPO:
                raise InvalidArgumentError(f"{source} holds several models; say which with --depth {DEPTHS}")
            return VARPipeline.from_pretrained(source, **where)
        if source == DEFAULT_MODEL and not Path(source).exists():
            raise InvalidArgumentError(
                f"--tokenizer, --depth and --patch-nums describe official files, and {source} has none; "
                f"add --transformer FILE or --model FoundationVision/var"
            )
        sides = read_whole_numbers(choice.patch_nums, "--patch-nums") if choice.patch_nums else None
        return VARPipeline.from_official(
            source, choice.tokenizer, depth=choice.depth, patch_nums=sides, **where
        )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
