"""What the families' text encoders share: models of transformers that are loaded when first needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from nextscale.errors import InvalidArgumentError, MissingDependencyError, ModelNotFoundError, warn
from nextscale.families.moving import restored_on_failure
from nextscale.nn.placement import place

SHOWN = 60  # characters of a cut-off text that a warning quotes


class PretrainedEncoder:
    """A text model and its tokenizer, from a hub id or a folder that holds both.

    Nothing is loaded before it is needed, and :meth:`release` frees it again. Families say which class of
    transformers to take and how, and turn prompts into features.
    """

    MODEL: ClassVar[str] = "AutoModel"
    MODEL_OPTIONS: ClassVar[Mapping[str, Any]] = {}
    TOKENIZER_OPTIONS: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, name: str | Path, device: str | torch.device, dtype: str | torch.dtype) -> None:
        self.name: str | None = str(name)
        self.device = place(device).device
        self._asked: str | torch.dtype | None = dtype
        self.dtype = self.dtype_on(self.device)
        self._model: Any = None
        self._tokenizer: Any = None
        self._width: int | None = None

    def adopt(self, model: Any, tokenizer: Any) -> None:
        """Take models that are loaded already; they stay where they are and cannot be loaded again."""
        self.name, self.device, self.dtype, self._asked = None, model.device, model.dtype, None
        self._model, self._tokenizer = self.text_part(model).eval(), tokenizer
        self._width = _width(model.config)

    @property
    def width(self) -> int:
        """Channels of the features."""
        if self._width is None:
            self._width = _width(self._from_pretrained("AutoConfig"))
        return self._width

    @property
    def model(self) -> Any:
        self.load()
        return self._model

    @property
    def tokenizer(self) -> Any:
        self.load()
        return self._tokenizer

    def load(self) -> None:
        """Load the models unless they are there.

        Raises MissingDependencyError without transformers, ModelNotFoundError if they cannot be had, and
        InvalidArgumentError after the release of adopted ones.
        """
        if self._model is not None:
            return
        if self.name is None:
            raise InvalidArgumentError(
                "this text encoder was made from a loaded model and has been released; make a new one"
            )
        self._tokenizer = self._from_pretrained("AutoTokenizer", **self.TOKENIZER_OPTIONS)
        model = self._from_pretrained(self.MODEL, torch_dtype=self.dtype, **self.MODEL_OPTIONS)
        self._model = self.text_part(model).eval().requires_grad_(False).to(self.device)
        self._width = _width(model.config)

    def release(self) -> None:
        """Free the weights. The next call loads them again, if this encoder knows where they came from."""
        self._model = self._tokenizer = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """The dtype of the weights on a device, which is the one asked for, or what is usual there."""
        return self.dtype if self._asked is None else place(device, self._asked).dtype

    def to(self, device: torch.device) -> None:
        """Move to a device; where another dtype is usual there, the weights are loaded anew when needed."""
        dtype = self.dtype_on(device)
        if self._model is not None and dtype != self.dtype:
            self.release()
        if self._model is not None:
            with restored_on_failure([self._model]):
                self._model.to(device)
        self.device, self.dtype = device, dtype

    @staticmethod
    def text_part(model: Any) -> Any:
        """The part of a loaded model that is used."""
        return model

    def warn_of_cut(self, ids: list[int], room: int, index: int) -> None:
        """Say what is lost of a prompt's tokens if there is room for some only."""
        if len(ids) <= room:
            return
        lost = self.tokenizer.decode(ids[room:])
        shown = lost if len(lost) <= SHOWN else lost[:SHOWN] + " …"
        warn(
            f"prompt {index} is too long: of its {len(ids)} tokens the first {room} are used, and these "
            f"{len(ids) - room} are cut off: {shown!r}"
        )

    def _from_pretrained(self, what: str, **options: Any) -> Any:
        try:
            import transformers
        except ImportError:
            raise MissingDependencyError(
                'prompts are encoded by transformers: pip install "nextscale[text]", or pass TextFeatures'
            ) from None
        try:
            return getattr(transformers, what).from_pretrained(self.name, **options)
        except (OSError, ValueError) as error:  # not there, not reachable, or another kind of model
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelNotFoundError(f"cannot load the text encoder {self.name!r}: {reason}") from None


def _width(config: Any) -> int:
    """Channels of the hidden states; models of several kinds of input describe their text part apart."""
    return int(getattr(config, "text_config", config).hidden_size)
