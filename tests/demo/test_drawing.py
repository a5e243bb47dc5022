from __future__ import annotations

import threading

import pytest
import torch

from nextscale.demo.drawing import Arm, Cancelled, Step, Studio
from nextscale.demo.models import Model
from nextscale.demo.settings import Settings
from nextscale.errors import InvalidArgumentError
from nextscale.evaluation.residual import ResidualObserver


def drawn(studio: Studio, model: Model, settings: Settings, *, guided: bool = True) -> tuple[list[Step], Arm]:
    ssg = settings.guidance() if guided else None
    *steps, arm = studio.draw(model, settings, ssg, threading.Event())
    assert isinstance(arm, Arm)
    return steps, arm


def test_pictures_and_steps_are_those_of_the_pipeline(tiny: Model):
    settings = tiny.complete(
        Settings.from_query("?label=ship&label=cat&count=2&seed=3&ssg=0.8&prior=dct", "m")
    )
    steps, arm = drawn(Studio(), tiny, settings)
    observer = ResidualObserver("dct", betas=(0.0,))
    out = tiny.pipe(
        ["ship", "ship", "cat", "cat"], seed=3, ssg=settings.guidance(), on_step=observer,
        **tiny.call_arguments(settings),
    )  # fmt: skip
    assert [a.tobytes() for a in arm.images] == [b.tobytes() for b in out.images]
    assert [(s.done, s.total, len(s.frames)) for s in steps] == [(k + 1, 6, 4) for k in range(6)]
    assert [frames == step.frames for frames, step in zip(arm.frames, steps, strict=True)] == [True] * 6
    rows, _ = observer.rows()
    assert torch.tensor(arm.statistics[2]["energy"]).allclose(rows[2, :, 0].float())
    assert arm.settings["seeds"] == [3, 4, 5, 6] and arm.settings["command"] == "generate"


def test_batches_are_counted_and_put_in_order(shelf, text_model):
    model = shelf.get(str(text_model))  # makes one picture at a time
    settings = model.complete(Settings.from_query("?prompt=a+fox&prompt=a+bird&count=1&seed=1&ssg=0.5", "m"))
    steps, arm = drawn(Studio(), model, settings)
    assert [s.done for s in steps] == list(range(1, 9)) and {s.total for s in steps} == {8}
    assert [len(frames) for frames in arm.frames] == [2, 2, 2, 2] and len(arm.statistics) == 2
    assert steps[-1].frames[0] == "" and steps[-1].frames[1] == arm.frames[-1][1]


def test_cancelling_stops_the_loop_itself(tiny: Model):
    settings = tiny.complete(Settings("m", ("ship",), 1, ssg=(0.5,)))
    studio, cancelled, seen = Studio(), threading.Event(), []

    def report() -> None:
        for news in studio.draw(tiny, settings, settings.guidance(), cancelled):
            seen.append(news)
            if len(seen) == 2:
                cancelled.set()

    with pytest.raises(Cancelled):
        report()
    assert len(seen) < tiny.pipe.schedule.num_steps and not any(isinstance(news, Arm) for news in seen)
    steps, _ = drawn(studio, tiny, settings)  # nothing is left behind, and nothing half done is remembered
    assert len(steps) == tiny.pipe.schedule.num_steps


def test_nobody_listening_any_more_stops_it_too(tiny: Model):
    settings = tiny.complete(Settings("m", ("ship",), 1, ssg=(0.5,)))
    studio = Studio()
    news = studio.draw(tiny, settings, None, threading.Event())
    next(news)
    news.close()
    for thread in threading.enumerate():
        if thread.name == "drawing":
            thread.join(30)
            assert not thread.is_alive()


def test_what_was_drawn_is_not_drawn_again(tiny: Model):
    studio = Studio()
    settings = tiny.complete(Settings("m", ("ship",), 2, ssg=(0.5,)))
    _, first = drawn(studio, tiny, settings)
    steps, second = drawn(studio, tiny, settings)
    assert second is first and steps == []
    # Pictures without SSG do not depend on its strength, but on the seeds.
    _, plain = drawn(studio, tiny, settings, guided=False)
    stronger = settings.changed(ssg=0.9, ssg_schedule="linear")
    assert drawn(studio, tiny, stronger, guided=False)[1] is plain
    assert drawn(studio, tiny, settings.changed(seed=5), guided=False)[1] is not plain


def test_no_strength_is_no_guidance(tiny: Model):
    studio = Studio()
    settings = tiny.complete(Settings("m", ("ship",), 2, ssg=(0.0,)))
    _, plain = drawn(studio, tiny, settings, guided=False)
    _, guided = drawn(studio, tiny, settings)
    assert [a.tobytes() for a in plain.images] == [b.tobytes() for b in guided.images]


def test_what_the_pipeline_refuses_is_passed_on(tiny: Model):
    settings = tiny.complete(Settings("m", ("ship",), 1)).changed(top_k=65)
    with pytest.raises(InvalidArgumentError, match="the vocabulary has 64"):
        drawn(Studio(), tiny, settings)


def test_frames_can_be_left_out(tiny: Model):
    settings = tiny.complete(Settings("m", ("ship",), 1))
    *steps, arm = Studio().draw(tiny, settings, None, threading.Event(), frames=False)
    assert all(step.frames == [] for step in steps) and arm.frames == [[]] * 6
