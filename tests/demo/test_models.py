from __future__ import annotations

import pytest

from nextscale.demo.models import KEPT, Model, Offer, Shelf, spread
from nextscale.demo.settings import Settings
from nextscale.errors import InvalidArgumentError
from nextscale.families import load_pretrained
from nextscale.guidance.ssg import ScaledSpatialGuidance


def test_complete_settings_leave_nothing_to_the_model(shelf: Shelf, tiny: Model):
    settings = tiny.complete(Settings("m"))
    assert settings.subjects == ("horse",) and settings.count == 4 and settings.ssg == (0.6,)
    defaults = tiny.pipe.defaults
    assert settings.guidance_scale == defaults["guidance_scale"] and settings.top_k == defaults["top_k"]
    assert tiny.complete(settings) == settings
    for model in (shelf.get(name) for name in shelf.names):
        whole = model.complete(Settings(model.offer.name))
        assert Settings.from_query(whole.to_query(model.key), "another") == whole == model.complete(whole)


def test_strengths_of_a_link_are_a_number_off_or_the_models_own(shelf: Shelf):
    for model in (shelf.get(name) for name in shelf.names):
        usual = model.complete(Settings("m"))
        key = f"?{model.key}={usual.subjects[0]}"
        assert model.complete(Settings.from_query("?ssg=default", "m")).ssg == usual.ssg
        grids = model.schedule(usual).grids
        off = model.complete(Settings.from_query(f"{key}&ssg=off", "m"))
        assert off.guidance().betas(grids) == (0.0,) * len(grids) and "&ssg=0" in off.to_query(model.key)
        linear = model.complete(Settings.from_query(f"{key}&ssg=default&ssg-schedule=linear", "m"))
        assert (linear.ssg, linear.ssg_schedule) == (usual.ssg, "linear")


def test_classes_go_by_name_and_number(tiny: Model):
    settings = tiny.complete(Settings("m", ("Ship", "3", "none", "-1")))
    assert settings.subjects == ("ship", "cat", "none", "none")
    assert tiny.subjects_for_call(settings)[2:] == [None, None]
    with pytest.raises(InvalidArgumentError, match="unknown class 'unicorn'"):
        tiny.complete(Settings("m", ("unicorn",)))


def test_classes_that_share_a_name_go_by_number(tiny: Model, model):
    pipe = load_pretrained(model, device="cpu")
    pipe.class_names = ("crane", "emu", "crane", *pipe.class_names[3:])
    two = Model(tiny.offer, pipe)
    assert two.class_names[:3] == ["0", "emu", "2"]
    settings = two.complete(Settings("m", ("2", "emu")))
    assert settings.subjects == ("2", "emu") and two.complete(settings) == settings
    with pytest.raises(InvalidArgumentError, match="give a number"):
        two.complete(Settings("m", ("crane",)))


def test_models_draw_what_they_can(shelf: Shelf, wide_model, text_model, hart_model):
    wide, one, hart = (shelf.get(str(m)) for m in (wide_model, text_model, hart_model))
    assert wide.has_sizes and not one.has_sizes and not hart.has_sizes
    assert wide.has("negative_prompt") and not hart.has("negative_prompt")
    assert hart.has("residual") and not one.has("residual")
    settings = wide.complete(Settings("m", ("a fox",), aspect_ratio="2:1"))
    assert settings.pixels == "0.06M" and wide.image_size(settings) == (88, 44)
    with pytest.raises(InvalidArgumentError, match="has no setting aspect-ratio"):
        one.complete(Settings("m", ("a fox",), aspect_ratio="2:1"))
    with pytest.raises(InvalidArgumentError, match="has no setting residual"):
        one.complete(Settings("m", ("a fox",), residual=False))


def test_first_and_last_steps_become_strengths_of_zero():
    grids = ((1, 1), (2, 2), (3, 3), (4, 4))
    plain = spread(ScaledSpatialGuidance(0.5, schedule="linear"), grids)
    assert (plain["ssg"], plain["ssg_schedule"]) == ((0.5,), "linear")
    part = spread(ScaledSpatialGuidance(0.5, start=2, stop=3, prior="dct"), grids)
    assert (part["ssg"], part["ssg_schedule"], part["prior"]) == ((0, 0, 0.5, 0), "constant", "dct")


def test_only_what_is_on_offer_is_loaded(model, tmp_path):
    loaded: list[str] = []

    def offer(name: str) -> Offer:
        def load():
            loaded.append(name)
            return load_pretrained(model, device="cpu")

        return Offer(name, {"model": name}, False, load, {})

    shelf = Shelf([offer(name) for name in ("a", "b", "c")])
    for name in (str(model), "../a", "", "cifar10"):
        with pytest.raises(InvalidArgumentError, match=r"unknown model .* this page has a, b, c"):
            shelf.get(name)
    assert loaded == []
    for name in "ababcabc":
        assert shelf.get(name).offer.name == name
    assert KEPT == 2 and loaded == ["a", "b", "c", "a", "b", "c"]
    assert shelf.by_source({"model": "b"}) == "b"
    with pytest.raises(InvalidArgumentError, match="made with the model '/etc'"):
        shelf.by_source({"model": "/etc"})
