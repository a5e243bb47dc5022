"""The models that a page offers, named when it starts, and what it has to know about each."""

from __future__ import annotations

import inspect
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Lock
from typing import Any

from nextscale.demo.bounds import shown
from nextscale.demo.settings import Settings
from nextscale.errors import InvalidArgumentError
from nextscale.generation.request import default_ssg
from nextscale.guidance.schedules import SCHEDULES, schedule_weights
from nextscale.guidance.ssg import ScaledSpatialGuidance
from nextscale.scales import Grid, ScaleSchedule

KEPT = 2  # models in memory at once
FIRST = 4  # pictures of a quick model where nobody says how many
QUICK = 128  # pictures up to this many pixels a side are drawn at every change
PROMPTS = ("a lighthouse at dawn", "a red fox in the snow")  # to begin with, where nothing is trained on
SIZE = ("aspect_ratio", "pixels")
# Settings that not every pipeline has an argument for.
_SOME = ("more_smooth", "residual", "negative_prompt", *SIZE)
_ALL = ("guidance_scale", "temperature", "top_k", "top_p", "min_p", "sampler")


@dataclass(frozen=True)
class Offer:
    """A model by the name that the page has for it.

    source: what names it to the command line, by the options' names: ``{"model": "cifar10"}``, also
        ``depth`` and ``variant`` of official files.
    official: whether it is loaded from official files. placement: device and dtype, as given at the start.
    load: makes the pipeline; may take long.
    """

    name: str
    source: Mapping[str, Any]
    official: bool
    load: Callable[[], Any]
    placement: Mapping[str, str]


class Model:
    """A loaded model, and what the page asks about it."""

    def __init__(self, offer: Offer, pipe: Any) -> None:
        self.offer, self.pipe = offer, pipe

    @cached_property
    def arguments(self) -> Mapping[str, inspect.Parameter]:
        """Those of the pipeline's call; the first is what it draws."""
        return inspect.signature(self.pipe).parameters

    @property
    def draws_classes(self) -> bool:
        return next(iter(self.arguments)) == "labels"

    @property
    def key(self) -> str:
        """How the URL calls what is drawn."""
        return "label" if self.draws_classes else "prompt"

    @cached_property
    def class_names(self) -> list[str]:
        """Names of all classes, or numbers where they have none or share one; empty for prompts."""
        if not self.draws_classes:
            return []
        names, count = self.pipe.class_names, self.pipe.transformer.config.num_classes
        often = Counter(names)  # ImageNet has two kinds of cranes
        return [names[n] if names and often[names[n]] == 1 else str(n) for n in range(count)]

    @property
    def has_sizes(self) -> bool:
        """Whether pictures of several sizes can be made."""
        return "pixels" in self.arguments and self.pipe.tokenizer.schedule is None

    @property
    def batch_size(self) -> int:
        """Pictures made at once, as everywhere where nothing else is said."""
        return int(self.arguments["batch_size"].default)

    @property
    def is_quick(self) -> bool:
        """Whether a picture takes so little that every change may draw it anew."""
        return max(self.pipe.image_size) <= QUICK or self.pipe.device.type == "cuda"

    def has(self, name: str) -> bool:
        """Whether the pipeline has this setting at all."""
        return name in self.arguments and (name not in SIZE or self.has_sizes)

    def schedule(self, settings: Settings) -> ScaleSchedule:
        """The grids of the pictures."""
        if not self.has_sizes:
            return self.pipe.schedule
        return self.pipe.schedule_for(**{n: getattr(settings, n) for n in SIZE if getattr(settings, n)})

    def image_size(self, settings: Settings) -> tuple[int, int]:
        """``(width, height)`` of the pictures, in pixels."""
        pipe = self.pipe
        height, width = pipe.size_of(self.schedule(settings)) if self.has_sizes else pipe.image_size
        return width, height

    def weights(self, grids: Sequence[Grid]) -> dict[str, list[float]]:
        """What each named schedule multiplies the strength by, at every step."""
        return {name: list(schedule_weights(name, grids)) for name in SCHEDULES}  # type: ignore[arg-type]

    def call_arguments(self, settings: Settings) -> dict[str, Any]:
        """Keyword arguments of the pipeline's call, but for SSG."""
        given = {name: getattr(settings, name) for name in (*_ALL, *(n for n in _SOME if self.has(n)))}
        return {name: value for name, value in given.items() if value not in (None, "")}

    def complete(self, settings: Settings) -> Settings:
        """Settings with the model's own in place of what is open, so that a link says it all.

        Raises InvalidArgumentError for classes the model does not have, for settings it does not know, and
        for values that do not fit its steps.
        """
        for name in _SOME:
            if not self.has(name) and getattr(settings, name) not in ("", None, True):
                raise InvalidArgumentError(f"{self.offer.name} has no setting {name.replace('_', '-')}")
        pipe = self.pipe
        filled: dict[str, Any] = {"subjects": self._subjects(settings.subjects)}
        if settings.count is None:
            filled["count"] = max(1, (FIRST if self.is_quick else 1) // len(filled["subjects"]))
        for name in ("guidance_scale", "temperature", "top_k", "top_p"):
            usual = pipe.defaults[name]
            if getattr(settings, name) is None and not isinstance(usual, Sequence):
                filled[name] = usual  # one per step stays open, since the page has no such lists
        if "more_smooth" in pipe.defaults:
            filled["more_smooth"] = bool(
                pipe.defaults["more_smooth"] if settings.more_smooth is None else settings.more_smooth
            )
        elif not settings.more_smooth:
            filled["more_smooth"] = None  # off, as it is where nobody says otherwise
        if self.has_sizes:
            filled["aspect_ratio"] = settings.aspect_ratio or "1:1"
            filled["pixels"] = settings.pixels or pipe.defaults["pixels"]
        if settings.ssg is None:
            own = settings.guidance().with_defaults(default_ssg(pipe.defaults))
            filled |= spread(own, self.schedule(settings).grids)
        done = replace(settings, model=self.offer.name, **filled)
        grids = self.schedule(done).grids
        done.guidance().betas(grids)  # raises unless strengths fit the steps
        _ = done.seeds
        return done

    def _subjects(self, given: tuple[str, ...]) -> tuple[str, ...]:
        if not self.draws_classes:
            return given or getattr(self.pipe, "class_prompts", ())[:1] or PROMPTS[:1]
        names = self.class_names
        if not given:
            return (names[7 % len(names)],)
        from nextscale.families.var.classes import resolve_labels

        count = self.pipe.transformer.config.num_classes
        numbers = resolve_labels(
            [None if name == "none" else name for name in given], self.pipe.class_names, count
        )
        return tuple("none" if n == count else names[n] for n in numbers)

    def subjects_for_call(self, settings: Settings) -> list[Any]:
        """One per picture, as the pipeline takes them."""
        return [None if self.draws_classes and s == "none" else s for s in settings.wanted]


def spread(ssg: ScaledSpatialGuidance, grids: Sequence[Grid]) -> dict[str, Any]:
    """Guidance as settings of the page, which has no first and last step: they become strengths of 0."""
    whole = ssg.start <= 1 and (ssg.stop is None or ssg.stop >= len(grids))
    single = isinstance(ssg.beta, float) and whole
    return {
        "ssg": (ssg.beta,) if single else ssg.betas(grids),
        "ssg_schedule": ssg.schedule if single else "constant",
        "prior": ssg.prior,
        "norm": ssg.norm,
        "remember": ssg.remember,
    }


class Shelf:
    """The models on offer; the last ones used stay loaded."""

    def __init__(self, offers: Sequence[Offer]) -> None:
        self.offers = {offer.name: offer for offer in offers}
        self._loaded: OrderedDict[str, Model] = OrderedDict()
        # Loading may take minutes, during which those whose model is in memory do not wait.
        self._lock, self._loading = Lock(), Lock()

    @property
    def names(self) -> list[str]:
        return list(self.offers)

    def get(self, name: str) -> Model:
        """A model, loaded if it is not in memory. name: as the page has it, or as it was named at the start.

        Raises InvalidArgumentError for a name that is not on offer, whatever lies under it on the disk.
        """
        name = self._known(name)
        model = self._in_memory(name)
        if model is None:
            with self._loading:
                model = self._in_memory(name) or self._load(name)
        return model

    def _known(self, name: str) -> str:
        if name in self.offers:
            return name
        for known, offer in self.offers.items():
            if dict(offer.source) == {"model": name}:
                return known
        raise InvalidArgumentError(
            f"unknown model {shown(name)}; this page has {', '.join(self.offers)}, and others have to be "
            f"named when it is started: nextscale demo --model NAME_OR_FOLDER"
        )

    def _in_memory(self, name: str) -> Model | None:
        with self._lock:
            if name in self._loaded:
                self._loaded.move_to_end(name)
            return self._loaded.get(name)

    def _load(self, name: str) -> Model:
        with self._lock:
            while len(self._loaded) >= KEPT:  # first, so that there is room
                self._loaded.popitem(last=False)
        model = Model(self.offers[name], self.offers[name].load())
        with self._lock:
            self._loaded[name] = model
        return model

    def by_source(self, source: Mapping[str, Any]) -> str:
        """The name of the model that a picture says it was made with.

        Raises InvalidArgumentError if that is not on offer.
        """
        for name, offer in self.offers.items():
            if dict(offer.source) == dict(source):
                return name
        named = " ".join(str(value) for value in source.values())
        raise InvalidArgumentError(
            f"this picture was made with the model {shown(named)}, which this page does not have"
        )
