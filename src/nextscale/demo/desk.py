"""What happens when a visitor does something: from the values of controls to what the page shows then.

Everything is by the names of the page's parts, and nothing here knows gradio. A method returns or yields what
changes: ``{"status": html, ...}``.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL.Image import Image

from nextscale.demo import bounds, recipes, views
from nextscale.demo.controls import LIVE, Update, beta_value, controls_of, settings_of
from nextscale.demo.drawing import Arm, Cancelled, Step, Studio
from nextscale.demo.models import Model, Shelf
from nextscale.demo.opening import from_picture
from nextscale.demo.pictures import DIFFERENCES, GAINS, data_uri, thumbnail
from nextscale.demo.settings import Settings, as_text
from nextscale.demo.strip import strengths, strip_of
from nextscale.demo.views import Shown
from nextscale.demo.visits import Entry, Visit, Visits
from nextscale.errors import InvalidArgumentError
from nextscale.generation.version import version_note
from nextscale.guidance.ssg import ScaledSpatialGuidance

SLOW = 5.0
"""Seconds that pictures may take to be drawn at every change; beyond, a page waits for its button."""
Changes = dict[str, Any]
_WAITING = views.working("Waiting for its turn")
_DRAWING = views.working("Drawing")
_PRESS, _CANCELLED = "Press Draw to make the pictures.", "Cancelled."
_TURNED_OFF = f" “{LIVE}” is off now, since these take long."
# What was wrong with the controls is not wrong any more.
_MENDED: Changes = {"problem": ""}


class PictureFiles(Protocol):
    """PNG files with settings in them, as the command line writes and reads them."""

    def save_png(self, image: Image, path: Path, settings: Mapping[str, Any]) -> None: ...

    def read_settings(self, path: Path) -> dict[str, Any]: ...

    def single_settings(self, settings: Mapping[str, Any], index: int, batch_size: int) -> dict[str, Any]: ...

    def file_name(self, index: int, subject: str, seed: int, suffix: str = "") -> str: ...


@dataclass(frozen=True)
class View:
    """How a difference is shown."""

    kind: str = "signed"
    gain: int = 2

    @classmethod
    def read(cls, kind: Any, gain: Any) -> View:
        """Raises InvalidArgumentError for values that the page does not offer."""
        if gain not in GAINS:
            raise InvalidArgumentError(
                f"a difference is shown {GAINS} times as strong, not {bounds.shown(gain)}"
            )
        return cls(bounds.one_of(kind, "difference", DIFFERENCES), int(gain))


@dataclass(frozen=True)
class Waiting:
    """News of who waits for a turn: how many are before."""

    ahead: int


class Desk:
    """The page's server side: models, pictures drawn so far, visits. files: how PNG files are written.

    slow: seconds after which "draw at every change" turns itself off.
    """

    def __init__(self, shelf: Shelf, files: PictureFiles, folder: Path, *, slow: float = SLOW) -> None:
        self.shelf, self.files, self.slow = shelf, files, slow
        self.studio, self.visits = Studio(), Visits(folder)

    # ------------------------------------------------------------------ settings

    def arrive(self, visit: Visit, query: str) -> Changes:
        """A page is opened, with the settings of a link or without. Loads the model."""
        wanted = Settings.from_query(query, self.shelf.names[0])
        model = self.shelf.get(wanted.model)
        return self._set(visit, model, model.complete(wanted), draw=bool(query.strip("?")) or model.is_quick)

    def switch(self, visit: Visit, name: str, count: Any, seed: Any) -> Changes:
        """Another model is chosen: its own settings, and the seeds as they are."""
        model = self.shelf.get(bounds.text(name, "model"))
        settings = model.complete(Settings(name).changed(count=count, seed=seed))
        return self._set(visit, model, settings, draw=model.is_quick)

    def change(
        self, visit: Visit, values: Mapping[str, Any], *, draw: bool, pressed: bool = False
    ) -> Changes:
        """A control has been moved, or only left. draw: whether that is to be drawn, or waits for the button.
        pressed: somebody asks for it by a button, even if nothing has changed since it was cancelled.
        """
        model = self.shelf.get(bounds.text(values["model"], "model"))
        settings = model.complete(settings_of(values, model))
        query = settings.to_query(model.key)
        if visit.query == query and not (pressed and visit.rests):  # on the page, on its way, or not wanted
            if visit.refused is not None:
                raise visit.refused.with_traceback(None)
            return {"status": views.ready(visit.said) if visit.said else _DRAWING, **_MENDED}
        if draw:
            return {"job": visit.want(query), "status": _WAITING, **_MENDED, **_editor(model, settings)}
        return {"status": views.ready("Settings changed. Press Draw to see what they do."), **_MENDED}

    def reseed(self, visit: Visit, values: Mapping[str, Any], *, draw: bool) -> Changes:
        """Fresh random numbers, everything else as it is."""
        seed = str(secrets.randbelow(2**20))  # short enough to be read aloud
        return {"seed": Update(value=seed), **self.change(visit, {**values, "seed": seed}, draw=draw)}

    def open(self, visit: Visit, path: str) -> Changes:
        """A picture with settings in it is opened."""
        file = Path(path)
        try:
            stored = self.files.read_settings(file)
        except InvalidArgumentError as problem:  # its folder on the server is not what the visitor knows
            raise InvalidArgumentError(str(problem).replace(f"{file.parent}{os.sep}", "")) from None
        settings, visit.chosen = from_picture(stored, self.shelf)
        changed = version_note(stored)  # another picture must not appear as if it were this one
        said = _PRESS if changed is None else f"Of the picture opened: {changed}. Press Draw to see it."
        return self._set(visit, self.shelf.get(settings.model), settings, draw=changed is None, said=said)

    def recall(self, visit: Visit, index: Any) -> Changes:
        """An entry of the gallery is chosen."""
        entry = visit.gallery[bounds.whole(index, "entry", 0, len(visit.gallery) - 1)]
        settings = Settings.from_query(entry.query, self.shelf.names[0])
        return self._set(visit, self.shelf.get(settings.model), settings, draw=True)

    def take_strength(self, visit: Visit, value: Any) -> Changes:
        """A picture of the strip is chosen: its strength becomes that of the page."""
        shown = _require(visit)
        model = self.shelf.get(shown.settings.model)
        settings = model.complete(shown.settings.changed(ssg=bounds.text(value, "ssg", bounds.QUERY)))
        return self._set(visit, model, settings, draw=True)

    def reframe(self, visit: Visit, frames: bool) -> Changes:
        """Every scale is to be shown, or no longer: pictures drawn without are drawn anew."""
        shown = visit.shown
        if not frames or not visit.done or shown is None or shown.has_frames:
            return {}
        if visit.live:
            return {"job": visit.want(visit.query), "status": _WAITING}
        visit.rest(visit.query, _PRESS)
        return {"status": views.ready(_PRESS)}

    def _set(
        self, visit: Visit, model: Model, settings: Settings, *, draw: bool, said: str = _PRESS
    ) -> Changes:
        """All controls as these settings are, and a job if they are to be drawn, or what to read if not."""
        changes: Changes = {**controls_of(model, settings, self.shelf.names), **_MENDED}
        if visit.model != settings.model:  # else who uses the page has chosen that
            visit.model = settings.model
            visit.live = model.is_quick and visit.model not in visit.slow
            changes["live"] = Update(value=visit.live)
        query = settings.to_query(model.key)
        if draw:
            return {**changes, "job": visit.want(query), "status": _WAITING}
        visit.rest(query, said)
        return {**changes, "status": views.ready(said)}

    # ------------------------------------------------------------------ drawing

    def draw(self, visit: Visit, job: str, frames: bool, view: View) -> Iterator[Changes]:
        """Draw what a job names, without and with SSG, and show every step of it.

        job: settings as a URL has them; behind a ``#`` a number that makes it unlike others. One that is no
        longer the visit's newest is passed over.
        """
        if visit.job not in ("", job):
            return
        ticket = visit.ticket if visit.job == job else visit.begin()
        if ticket.is_set():  # while it waited for its turn
            yield self._cancelled(visit)
            return
        try:
            yield from self._draw(visit, job, frames, view, ticket)
        except Cancelled:
            if visit.job in ("", job):  # else something newer is on its way, and says so
                yield self._cancelled(visit)
        except Exception as problem:
            if visit.job in ("", job):
                visit.refused = problem
                yield self._cancelled(visit)
                raise

    def _draw(
        self, visit: Visit, job: str, frames: bool, view: View, ticket: threading.Event
    ) -> Iterator[Changes]:
        wanted = Settings.from_query(job, self.shelf.names[0])
        yield {"status": views.working("Getting ready")}
        model = self.shelf.get(wanted.model)
        settings = model.complete(wanted)
        started, worked, fresh = time.monotonic(), [0.0, 0.0], False
        arms: list[Arm] = []
        for news in self._make(model, settings, (None, settings.guidance()), ticket, frames=frames):
            if isinstance(news, Arm):
                arms.append(news)
            elif isinstance(news, Waiting):
                yield {"status": views.working(f"Waiting for its turn, with {news.ahead} before it")}
                started = time.monotonic()
            else:
                fresh, worked[len(arms)] = True, news.seconds
                slow = self._turn_off(visit, model, sum(worked))
                yield {**self._underway(visit, model, settings, arms, news), **slow}
        shown = Shown(settings, arms[0], arms[1], model.schedule(settings).grids)
        visit.shown, visit.strip = shown, []
        visit.chosen = min(visit.chosen, len(arms[0].images) - 1)
        query = settings.to_query(model.key)
        visit.remember(_entry(shown, visit.chosen, query))
        count = len(settings.wanted)
        took = f"in {time.monotonic() - started:.1f} s" if fresh else "as drawn before"
        visit.said, visit.done = (
            f"{count} picture{'s' * (count > 1)}, each without and with SSG, {took}",
            True,
        )
        note = f".{_TURNED_OFF}" if sum(worked) > self.slow and not visit.live else ""
        yield {
            "status": views.ready(visit.said + note),
            **self.show(visit, view),
            "link": query,
            "python": recipes.as_python(model, settings),
            "command": recipes.as_command(model, settings),
        }

    def _make(
        self,
        model: Model,
        settings: Settings,
        wanted: Sequence[ScaledSpatialGuidance | None],
        ticket: threading.Event,
        *,
        frames: bool,
    ) -> Iterator[Waiting | Step | Arm]:
        """The pictures with each guidance: at once where all are kept, and else when their turn has come."""
        kept = [self.studio.kept(model, settings, ssg, frames=frames) for ssg in wanted]
        found = [arm for arm in kept if arm is not None]
        if len(found) == len(wanted):
            yield from found
            return
        with self.studio.line.place() as place:
            for ahead in place.wait(ticket):
                yield Waiting(ahead)
            for ssg in wanted:
                yield from self.studio.draw(model, settings, ssg, ticket, frames=frames)

    def _turn_off(self, visit: Visit, model: Model, seconds: float) -> Changes:
        """Not every change is drawn any more where that takes long; once, since who insists may have it."""
        name = model.offer.name
        if not visit.live or seconds <= self.slow or name in visit.slow:
            return {}
        visit.slow.add(name)
        visit.live = False
        return {"live": Update(value=False)}

    def draw_strip(self, visit: Visit) -> Iterator[Changes]:
        """The pictures of the page at several strengths."""
        shown = _require(visit)
        model, job, ticket = self.shelf.get(shown.settings.model), visit.job, visit.begin()
        found: list[tuple[str, str, list[Any]]] = []
        arms = strengths(shown.settings)
        try:
            for news in self._make(model, shown.settings, [ssg for _, _, ssg in arms], ticket, frames=False):
                name, value, _ = arms[min(len(found), len(arms) - 1)]
                if isinstance(news, Arm):
                    found.append((name, value, news.images))
                elif isinstance(news, Waiting):
                    yield {"status": views.working(f"Strip: waiting, with {news.ahead} before it")}
                else:
                    done, total = len(found) * news.total + news.done, len(arms) * news.total
                    yield {"status": views.working(f"Strip: {name}", done, total)}
        except Cancelled:
            if visit.shown is shown and visit.job == job:
                yield self._cancelled(visit)
            return
        visit.strip = found
        yield {"status": views.ready("The strip is drawn."), "strip": strip_of(visit)}

    def _underway(
        self, visit: Visit, model: Model, settings: Settings, arms: Sequence[Arm], step: Step
    ) -> Changes:
        name = "With SSG" if arms else "Without SSG"
        total = 2 * step.total
        text = f"{name}: step {step.done} of {step.total}"
        changes = {"status": views.working(text, step.done + len(arms) * step.total, total)}
        index = min(visit.chosen, len(settings.wanted) - 1)
        frame = step.frames[index] if index < len(step.frames) else ""
        if frame:
            plain = data_uri(arms[0].images[index]) if arms else frame
            changes["slider"] = views.slider(
                plain,
                frame if arms else "",
                model.image_size(settings),
                views.strength(settings),
                f"{settings.wanted[index]} · seed {settings.seeds[index]}",
                f" · {text.lower()}",
            )
        return changes

    def _cancelled(self, visit: Visit) -> Changes:
        """What was there before."""
        before, visit.said = visit.shown, visit.said or _CANCELLED
        slider = views.finished_slider(before, visit.chosen) if before else views.waiting_slider((1, 1))
        return {"status": views.ready(_CANCELLED), "slider": slider}

    def cancel(self, visit: Visit) -> Changes:
        """Stop what is being drawn, or waits to be."""
        visit.stop()
        visit.said = visit.said or _CANCELLED
        return {"status": views.ready(_CANCELLED)}

    # ------------------------------------------------------------------ looking

    def pick(self, visit: Visit, index: Any, view: View) -> Changes:
        """Another picture of the page is to be shown large."""
        shown = _require(visit)
        visit.chosen = bounds.whole(index, "picture", 0, len(shown.plain.images) - 1)
        return self.show(visit, view)

    def show(self, visit: Visit, view: View) -> Changes:
        """Everything about the chosen picture."""
        shown, index = _require(visit), visit.chosen
        return {
            "slider": views.finished_slider(shown, index),
            "pair": views.pair(shown, index),
            "change": self.difference(visit, view)["change"],
            "thumbs": views.thumbs(shown, index),
            "film": views.film(shown, index),
            "curves": views.curves(shown, index),
            "strip": strip_of(visit),
            "gallery": views.gallery([(e.plain, e.guided, e.caption) for e in visit.gallery]),
            **self._files(visit),
        }

    def difference(self, visit: Visit, view: View) -> Changes:
        """The difference anew, shown in another way."""
        shown = _require(visit)
        return {"change": views.change(shown, visit.chosen, view.kind, view.gain)}  # type: ignore[arg-type]

    def _files(self, visit: Visit) -> Changes:
        """The two PNG files of the chosen picture; each makes itself again with ``generate --from``."""
        shown, index = _require(visit), visit.chosen
        visit.folder.mkdir(parents=True, exist_ok=True)
        found: Changes = {}
        for part, arm, suffix in (
            ("save_plain", shown.plain, "without"),
            ("save_guided", shown.guided, f"ssg-{as_text(max(shown.settings.ssg or (0.0,)))}"),
        ):
            settings = self.files.single_settings(arm.settings, index, arm.settings["batch_size"])
            name = self.files.file_name(
                index, shown.settings.wanted[index], shown.settings.seeds[index], suffix
            )
            self.files.save_png(arm.images[index], visit.folder / name, settings)
            found[part] = Update(value=str(visit.folder / name), interactive=True)
        return found


def _entry(shown: Shown, index: int, query: str) -> Entry:
    plain, guided = (
        data_uri(thumbnail(arm.images[index], views.THUMB)) for arm in (shown.plain, shown.guided)
    )
    return Entry(query, plain, guided, f"{shown.caption(index)} · {views.strength(shown.settings)}")


def _editor(model: Model, settings: Settings) -> Changes:
    return {"beta": Update(value=beta_value(model, settings))}


def _require(visit: Visit) -> Shown:
    if visit.shown is None:
        raise InvalidArgumentError("nothing has been drawn on this page yet; press Draw")
    return visit.shown
