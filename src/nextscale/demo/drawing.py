"""Drawing for the page: every step is reported while it happens, and a visitor can stop it.

The pipeline runs in a thread of its own and calls back after every step; what it reports comes out of a
generator here. To stop, the callback raises, so that the loop ends at the next step and not at the last.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

import torch
from PIL.Image import Image

from nextscale.demo.line import Line
from nextscale.demo.models import Model
from nextscale.demo.pictures import data_uri, thumbnail
from nextscale.demo.settings import Settings
from nextscale.errors import InvalidArgumentError, is_out_of_memory
from nextscale.evaluation.residual import STATISTICS, ResidualObserver
from nextscale.generation.loop import StepInfo
from nextscale.generation.request import convert_images
from nextscale.guidance.ssg import ScaledSpatialGuidance

KEPT = 32  # drawn batches that are remembered, so that a change of SSG draws the guided pictures alone
FRAME = 256  # pixels a side, at most, of the pictures of single steps
_PATIENCE = 0.5  # seconds between two looks at whether the thread that draws is still there


class Cancelled(Exception):  # noqa: N818, since nothing went wrong
    """The visitor wants no more of this."""


@dataclass(frozen=True)
class Arm:
    """Pictures drawn in one way.

    images: one per picture. frames: for every step, of every picture, a data URI of it as it was then; empty
        where they were not wanted. statistics: for every picture, by name, a value for every step from the
        second on. settings: as a picture's file holds them, of all pictures.
    """

    images: list[Image]
    frames: list[list[str]]
    statistics: list[Mapping[str, list[float]]]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Step:
    """A step that has just been made: how many are done, of how many, and the pictures so far, if wanted.

    seconds: how long the machine has worked on these pictures so far; what else it did meanwhile, or how long
        they waited, does not count where that can be told, which is on CPUs.
    """

    done: int
    total: int
    frames: list[str]
    seconds: float


class Studio:
    """Draws one batch after the other, whoever asks, and remembers the last ones.

    line: where to wait before drawing, so that who came first is served first.
    """

    def __init__(self) -> None:
        self.line = Line()
        self._turn = threading.Lock()
        self._arms: OrderedDict[Any, Arm] = OrderedDict()
        self._at_arms = threading.Lock()

    def kept(
        self, model: Model, settings: Settings, ssg: ScaledSpatialGuidance | None, *, frames: bool = True
    ) -> Arm | None:
        """The pictures, if they were drawn lately. frames: whether they are of use only with every step."""
        key = _key(model, settings, ssg)
        with self._at_arms:
            for name in ((key, True), (key, False))[: 1 if frames else 2]:
                if name in self._arms:
                    self._arms.move_to_end(name)
                    return self._arms[name]
        return None

    def _keep(self, key: Any, arm: Arm) -> None:
        with self._at_arms:
            self._arms[key] = arm
            while len(self._arms) > KEPT:
                self._arms.popitem(last=False)

    def draw(
        self,
        model: Model,
        settings: Settings,
        ssg: ScaledSpatialGuidance | None,
        cancelled: threading.Event,
        *,
        frames: bool = True,
    ) -> Iterator[Step | Arm]:
        """Every step of the pictures, and at last the pictures.

        settings: complete ones. frames: whether every step is shown too, which costs a pass of the decoder.
        Raises Cancelled soon after ``cancelled`` is set, and what the pipeline raises.
        """
        known = self.kept(model, settings, ssg, frames=frames)
        if known is None:
            known = yield from self._draw(model, settings, ssg, cancelled, frames)
            self._keep((_key(model, settings, ssg), frames), known)
        yield known

    def _draw(
        self,
        model: Model,
        settings: Settings,
        ssg: ScaledSpatialGuidance | None,
        cancelled: threading.Event,
        frames: bool,
    ) -> Generator[Step, None, Arm]:
        said: SimpleQueue[Step | Arm | BaseException] = SimpleQueue()
        abandoned = threading.Event()
        watcher = _Watcher(model, settings, said, (cancelled, abandoned), frames)

        def work() -> None:
            try:
                with self._turn:
                    said.put(watcher.run(ssg))
            except BaseException as problem:
                said.put(problem)

        thread = threading.Thread(target=work, name="drawing", daemon=True)
        thread.start()
        try:
            while True:
                news = _next(said, thread)
                if isinstance(news, BaseException):
                    raise news
                if isinstance(news, Arm):
                    return news
                yield news
        finally:
            abandoned.set()  # whoever asked may be gone in the middle


def _key(model: Model, settings: Settings, ssg: ScaledSpatialGuidance | None) -> Any:
    """Key what the pictures depend on: the strength that draws them, and not that of the page.

    The rest of what shapes it stays, since the statistics are computed with that where there is no strength.
    """
    settings = settings.changed(ssg=0.0, ssg_schedule="constant")
    return model.offer.name, settings.to_query("of"), ssg and repr(ssg)


def _next(said: SimpleQueue[Any], thread: threading.Thread) -> Any:
    while True:
        try:
            return said.get(timeout=_PATIENCE)
        except Empty:
            if not thread.is_alive() and said.empty():
                return RuntimeError("the thread that draws ended without a word")


class _Watcher:
    """Makes one batch after the other, and notes what is seen of every step."""

    def __init__(
        self,
        model: Model,
        settings: Settings,
        said: SimpleQueue[Any],
        stops: tuple[threading.Event, ...],
        frames: bool,
    ) -> None:
        self.model, self.settings, self.said, self.stops = model, settings, said, stops
        self.wants_frames = frames
        steps, size = model.schedule(settings).num_steps, model.batch_size
        self.steps, self.batches = steps, -(-len(settings.wanted) // size)
        shape = settings.shape
        self.observer = ResidualObserver(shape["prior"], shape["norm"], shape["remember"], betas=(0.0,))
        self.frames: list[list[list[str]]] = []  # of every batch, of every step
        # Of this thread alone where it does the work itself: a busy machine does not make a model a slow one.
        self.clock = time.thread_time if model.pipe.device.type == "cpu" else time.monotonic
        self.began = 0.0

    def run(self, ssg: ScaledSpatialGuidance | None) -> Arm:
        model, settings = self.model, self.settings
        self._stop_if_asked()
        self.began = self.clock()
        out = model.pipe(
            model.subjects_for_call(settings),
            seed=settings.seeds,
            ssg=ssg,
            batch_size=model.batch_size,
            on_step=self,
            **model.call_arguments(settings),
        )
        self._stop_if_asked()
        stored = {
            **out.settings,
            "batch_size": model.batch_size,  # in the order of the command line, so that files are the same
            "command": "generate",
            "source": dict(model.offer.source),
        }
        return Arm(out.images, self._all_frames(), self._statistics(len(out.images)), stored)

    def __call__(self, info: StepInfo) -> None:
        self._stop_if_asked()
        self.observer(info)
        if info.index == 0:
            self.frames.append([])
        batch = self.frames[-1]
        frames = self._look(info) if self.wants_frames else []
        batch[info.index :] = [frames]
        before = [""] * sum(len(done[-1]) for done in self.frames[:-1])
        done = (len(self.frames) - 1) * self.steps + info.index + 1
        seconds = self.clock() - self.began
        self.said.put(Step(done, self.batches * self.steps, [*before, *frames], seconds))

    def _look(self, info: StepInfo) -> list[str]:
        decode = self.model.pipe.tokenizer.decode_latent
        pictures = torch.cat([decode(latent) for latent in info.feature_map.split(1)])
        return [data_uri(thumbnail(image, FRAME)) for image in convert_images(pictures, "pil")]

    def _stop_if_asked(self) -> None:
        if any(stop.is_set() for stop in self.stops):
            raise Cancelled

    def _all_frames(self) -> list[list[str]]:
        return [[f for frames in steps for f in frames] for steps in zip(*self.frames, strict=True)]

    def _statistics(self, count: int) -> list[Mapping[str, list[float]]]:
        if self.steps < 2:
            return [{name: [] for name in STATISTICS} for _ in range(count)]
        rows, _ = self.observer.rows()  # (N, K - 1, 6)
        return [dict(zip(STATISTICS, picture.T.tolist(), strict=True)) for picture in rows]


def out_of_memory(problem: BaseException) -> InvalidArgumentError | None:
    """What to say to a visitor if memory ran out; ``None`` for every other problem."""
    if is_out_of_memory(problem):
        return InvalidArgumentError("there is too little memory for so many pictures at once; draw fewer")
    return None
