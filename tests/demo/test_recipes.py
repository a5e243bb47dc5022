"""What the page offers to copy is run here, for every family, and makes the page's pictures."""

from __future__ import annotations

import json
import shlex
import threading
from pathlib import Path

import pytest
from PIL import Image

from nextscale.cli.main import main
from nextscale.demo import recipes
from nextscale.demo.drawing import Studio
from nextscale.demo.models import Model, Offer
from nextscale.demo.opening import from_picture
from nextscale.demo.settings import Settings
from nextscale.errors import InvalidArgumentError

QUERIES = [
    ("model", "?label=none&label=5&count=2&seed=9&ssg=0.4&ssg-schedule=cosine&norm=backward&sampler=greedy"),
    ("model", "?label=cat&count=3&seed=1,5,2&ssg=0,0.1,0.2,0.3,0.2,0&temperature=0.85&more-smooth=on"),
    (
        "text_model",
        "?prompt=--a+fox&prompt=it's+%22red%22&count=1&seed=2&ssg=0.7&negative-prompt=-x&remember=guided",
    ),
    (
        "wide_model",
        "?prompt=a+blue+bird&count=2&seed=2&ssg=0.7&aspect-ratio=16:9&pixels=0.06M&guidance-scale=2",
    ),
    ("hart_model", "?prompt=a+red+fox&count=2&seed=4&ssg=1.25&prior=bilinear&residual=off&more-smooth=on"),
    ("hart_model", "?prompt=a+blue+bird&count=1&seed=0&ssg=0.5&guidance-scale=0"),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:HART's weights")
@pytest.mark.parametrize(("kind", "query"), QUERIES)
def test_recipes_make_the_same_pictures(kind, query, request, shelf, tmp_path: Path, monkeypatch):
    model = shelf.get(str(request.getfixturevalue(kind)))
    settings = model.complete(Settings.from_query(query, model.offer.name))
    studio = Studio()
    plain, guided = (
        list(studio.draw(model, settings, ssg, threading.Event()))[-1] for ssg in (None, settings.guidance())
    )
    assert [p.tobytes() for p in plain.images] != [g.tobytes() for g in guided.images]
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(recipes.as_python(model, settings), names)
    for outcome, arm in (("plain", plain), ("guided", guided)):
        assert [i.tobytes() for i in names[outcome].images] == [i.tobytes() for i in arm.images]
    for line, arm in zip(recipes.as_command(model, settings).splitlines(), (plain, guided), strict=True):
        with pytest.raises(SystemExit) as left:
            main([*shlex.split(line)[1:], "--separate", "single"])
        assert left.value.code == 0
        for file, image in zip(sorted(Path("single").iterdir()), arm.images, strict=True):
            with Image.open(file) as made:
                assert made.tobytes() == image.tobytes()
                stored = json.loads(made.info["nextscale"])
            file.unlink()
        # What a command made opens on the page as what it was made from.
        opened, _ = from_picture(stored, shelf)
        expected = settings if arm is guided else settings.changed(ssg=0, ssg_schedule="constant")
        assert opened.guidance().betas(model.schedule(settings).grids) == expected.guidance().betas(
            model.schedule(settings).grids
        )
        alone = model.batch_size == 1  # a picture holds those that were made in one batch with it
        assert opened.wanted == (settings.wanted[-1:] if alone else settings.wanted)
        assert opened.seeds == (settings.seeds[-1:] if alone else settings.seeds)
        assert model.call_arguments(opened) == model.call_arguments(settings)


def test_models_are_named_as_they_were_at_the_start(tiny: Model):
    settings = tiny.complete(Settings("m", ("ship",), 1))
    source = {"model": "FoundationVision/Infinity", "variant": "2b"}
    offer = Offer("Infinity 2b", source, True, lambda: None, {"device": "cuda", "dtype": "bfloat16"})
    named = Model(offer, tiny.pipe)
    command = recipes.as_command(named, settings)
    assert "--model FoundationVision/Infinity --variant 2b --device cuda --dtype bfloat16" in command
    python = recipes.as_python(named, settings)
    assert "from_official('FoundationVision/Infinity', model='2b', device='cuda', dtype='bfloat16')" in python


def test_pictures_the_page_cannot_make_are_refused(shelf, tiny: Model):
    settings = tiny.complete(Settings(tiny.offer.name, ("ship",), 2))
    stored = list(Studio().draw(tiny, settings, settings.guidance(), threading.Event()))[-1].settings
    assert from_picture(stored, shelf) == (settings, 0)
    for change, message in (
        ({"command": "compare"}, "written by nextscale compare"),
        ({"source": {"model": "/etc"}}, "made with the model '/etc'"),
        ({"mask_iterations": 4}, "made with mask-iterations 4"),
        ({"temperature": [1.0] * 6}, "one temperature per step"),
        ({"labels": [1] * 9, "seeds": list(range(9))}, "9 pictures are more"),
        ({"labels": [99, 99]}, "shows class 99"),
        ({"sampler": "multinomial"}, "unknown sampler"),
        (
            {"guidance_scale": {**stored["guidance_scale"], "scale": [[1.0], [2.0]]}},
            "strength for each picture",
        ),
        ({"ssg": {**settings.guidance().to_dict(), "beta": [[0.5], [0.6]]}}, "strength for each picture"),
        ({"guidance_scale": {**stored["guidance_scale"], "ramp": "constant"}}, "the ramp 'constant'"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            from_picture({**stored, **change}, shelf)
