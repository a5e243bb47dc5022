"""What each part of the page sets off, and how what handlers say comes back to it."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from inspect import isgeneratorfunction
from typing import Any

import gradio as gr

from nextscale.demo import bounds, views
from nextscale.demo.controls import NAMES, Update
from nextscale.demo.desk import Changes, Desk, View
from nextscale.demo.drawing import out_of_memory
from nextscale.demo.visits import Visit
from nextscale.errors import InvalidArgumentError, SamplingError

AT_ONCE = 16  # of each kind of request are answered side by side
# Those that draw wait in the studio's line, and not at all if there is nothing left to draw.
THREADS = bounds.QUEUE + 4 * AT_ONCE

# Controls that are read when they are used, and those where typing has to end first. What is typed into a
# list of choices, or removed from it, gradio calls a change and no input.
CHOSEN = (
    "count", "prior", "norm", "remember", "sampler", "more_smooth", "residual", "aspect_ratio",
    "pixels",
)  # fmt: skip
# Parts that the server reads or listens to, and never changes.
UNCHANGED = (
    "kind",
    "gain",
    "frames",
    "picture",
    "arrival",
    "address",
    "go",
    "cancel",
    "reseed",
    "draw_strip",
)
TYPED = ("prompts", "negative_prompt", "seed", "guidance_scale", "temperature", "top_k", "top_p", "min_p")


def connect(blocks: Any, parts: Mapping[str, Any], desk: Desk) -> None:
    """Set all events of the page. parts: by their names, those of the controls among them."""
    Connection(parts, desk).connect(blocks)


class Connection:
    """Between the parts of a page and a desk."""

    def __init__(self, parts: Mapping[str, Any], desk: Desk) -> None:
        self.parts, self.desk = parts, desk
        self.outputs = [part for name, part in parts.items() if name not in UNCHANGED]

    def connect(self, blocks: Any) -> None:
        desk, parts = self.desk, self.parts
        view, controls = ["kind", "gain"], list(NAMES)
        self.on([blocks.load], desk.arrive, ["arrival"], js="() => window.nextscaleArrival()")
        self.on(
            [parts["job"].change],
            self.draw,
            ["job", "frames", *view],
            slow=True,
            api_name="draw",
            api_visibility="undocumented",
            trigger_mode="multiple",
            show_progress="minimal",
            show_progress_on=parts["status"],
        )
        self.on([parts["model"].select], desk.switch, ["model", "count", "seed"])
        moved = [parts[n].input for n in CHOSEN] + [parts[n].submit for n in TYPED]
        moved += [parts[n].blur for n in TYPED] + [parts["beta"].input, parts["classes"].change]
        moved += [parts["picture"].clear]  # with what was said about it
        self.on(moved, self.changed, ["live", *controls], trigger_mode="always_last")
        self.on([parts["live"].input], self.switched, ["live", *controls])
        self.on([parts["go"].click], self.pressed, controls)
        self.on([parts["reseed"].click], self.reseeded, ["live", *controls])
        self.on([parts["frames"].input], desk.reframe, ["frames"])
        self.on([parts["cancel"].click], desk.cancel)
        self.on([parts["picture"].upload], desk.open, ["picture"])
        self.on([parts["draw_strip"].click], desk.draw_strip, slow=True)
        self.on([parts["kind"].input, parts["gain"].input], self.differ, view)
        self.on_click("thumbs", self.pick, view)
        self.on_click("gallery", desk.recall)
        self.on_click("strip", desk.take_strength)
        show = "(query) => window.nextscaleLink(query)"
        parts["link"].change(None, parts["link"], parts["address"], js=show, api_visibility="private")
        blocks.unload(self._leave)

    # ------------------------------------------------------------------ handlers

    def draw(self, visit: Visit, job: Any, frames: Any, kind: Any, gain: Any) -> Iterator[Changes]:
        yield from self.desk.draw(
            visit, bounds.text(job, "job", bounds.QUERY), bool(frames), View.read(kind, gain)
        )

    def changed(self, visit: Visit, live: Any, *values: Any) -> Changes:
        visit.live = bool(live)
        return self.desk.change(visit, dict(zip(NAMES, values, strict=True)), draw=visit.live)

    def pressed(self, visit: Visit, *values: Any) -> Changes:
        return self.desk.change(visit, dict(zip(NAMES, values, strict=True)), draw=True, pressed=True)

    def switched(self, visit: Visit, live: Any, *values: Any) -> Changes:
        visit.live = bool(live)  # on: what waits for the button is drawn
        return self.desk.change(
            visit, dict(zip(NAMES, values, strict=True)), draw=visit.live, pressed=visit.live
        )

    def reseeded(self, visit: Visit, live: Any, *values: Any) -> Changes:
        visit.live = bool(live)
        return self.desk.reseed(visit, dict(zip(NAMES, values, strict=True)), draw=bool(live))

    def differ(self, visit: Visit, kind: Any, gain: Any) -> Changes:
        return self.desk.difference(visit, View.read(kind, gain))

    def pick(self, visit: Visit, index: Any, kind: Any, gain: Any) -> Changes:
        return self.desk.pick(visit, index, View.read(kind, gain))

    # ------------------------------------------------------------------ how they are called

    def on(
        self,
        triggers: list[Any],
        method: Callable[..., Any],
        inputs: list[str] | None = None,
        *,
        slow: bool = False,
        **options: Any,
    ) -> None:
        """Let triggers call a method with the visit and the values of some parts. slow: it draws."""
        usual = {"show_progress": "hidden", "api_visibility": "private"}
        queue = {"concurrency_limit": None if slow else AT_ONCE}
        given = [self.parts[name] for name in inputs or []]
        gr.on(triggers, self._handler(method), given, self.outputs, **{**usual, **queue, **options})

    def on_click(self, part: str, method: Callable[..., Any], inputs: list[str] | None = None) -> None:
        """The same for a click on a button inside of a part; the button's value comes before the others."""

        def handler(request: gr.Request, event: gr.EventData, *values: Any) -> dict[Any, Any]:
            value = (event._data or {}).get("value") if isinstance(event._data, dict) else None
            return self._answer(lambda: method(self._visit(request), value, *values))

        given = [self.parts[name] for name in inputs or []]
        self.parts[part].click(
            handler,
            given,
            self.outputs,
            show_progress="hidden",
            api_visibility="private",
            concurrency_limit=AT_ONCE,
        )

    def _handler(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def once(request: gr.Request, *values: Any) -> dict[Any, Any]:
            return self._answer(lambda: method(self._visit(request), *values))

        def often(request: gr.Request, *values: Any) -> Iterator[dict[Any, Any]]:
            yield self._for_gradio({})  # gradio empties all parts if there is nothing at all
            try:
                for changes in method(self._visit(request), *values):
                    yield self._for_gradio(changes)
            except Exception as problem:
                yield self._for_gradio(_said(problem))

        return often if isgeneratorfunction(method) else once

    def _answer(self, call: Callable[[], Changes]) -> dict[Any, Any]:
        try:
            changes = call()
        except Exception as problem:
            changes = _said(problem)
        return self._for_gradio(changes)

    def _for_gradio(self, changes: Changes) -> dict[Any, Any]:
        if not changes:
            return {self.parts["status"]: gr.skip()}
        return {
            self.parts[name]: gr.update(**value) if isinstance(value, Update) else value
            for name, value in changes.items()
        }

    def _visit(self, request: gr.Request) -> Visit:
        return self.desk.visits.of(request.session_hash)

    def _leave(self, request: gr.Request) -> None:
        self.desk.visits.leave(request.session_hash)


def _said(problem: Exception) -> Changes:
    """A message for the page, in place of what is going on, whose next step leaves the message there.

    What is not the visitor's doing is explained in the terminal alone: it may name files.
    """
    known = out_of_memory(problem) or problem
    said = str(known)
    if not isinstance(known, InvalidArgumentError | SamplingError):
        print("error: the page could not do something:", file=sys.stderr)
        traceback.print_exception(problem)
        said = "Something went wrong on the server; its terminal says what."
    return {"problem": views.problem(said), "status": ""}
