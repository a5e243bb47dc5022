from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextscale.demo import bounds
from nextscale.demo.settings import BUDGETS, NORMS, PRIORS, RATIOS, SAMPLERS, Settings
from nextscale.errors import InvalidArgumentError
from nextscale.families.infinity import schedules as infinity
from nextscale.guidance.prior import spatial_prior
from nextscale.guidance.schedules import SCHEDULES
from nextscale.guidance.ssg import REMEMBER, ScaledSpatialGuidance

texts = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=20)
small = st.floats(0, 1, allow_subnormal=False)


@st.composite
def settings(draw: st.DrawFn) -> Settings:
    several = draw(st.booleans())
    strengths = st.lists(
        st.floats(0, bounds.BETA), min_size=2 if several else 1, max_size=14 if several else 1
    )
    subjects = draw(st.lists(texts, min_size=1, max_size=4))
    return Settings(
        draw(texts),
        tuple(subjects),
        count=draw(st.integers(1, bounds.PICTURES // len(subjects))),
        seed=tuple(draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8))),
        ssg=tuple(draw(strengths)),
        ssg_schedule="constant" if several else draw(st.sampled_from(SCHEDULES)),
        prior=draw(st.sampled_from(PRIORS)),
        norm=draw(st.sampled_from(NORMS)),
        remember=draw(st.sampled_from(REMEMBER)),
        guidance_scale=draw(st.none() | st.floats(0, bounds.GUIDANCE_SCALE)),
        temperature=draw(st.none() | st.floats(*bounds.TEMPERATURE)),
        top_k=draw(st.none() | st.integers(0, bounds.TOP_K)),
        top_p=draw(st.none() | small),
        min_p=draw(small),
        sampler=draw(st.sampled_from(SAMPLERS)),
        more_smooth=draw(st.none() | st.booleans()),
        residual=draw(st.booleans()),
        negative_prompt=draw(st.just("") | texts),
        aspect_ratio=draw(st.sampled_from(("", *RATIOS))),
        pixels=draw(st.sampled_from(("", *BUDGETS))),
    )


@given(settings(), st.sampled_from(("label", "prompt")))
def test_a_link_says_exactly_what_the_settings_are(value: Settings, key: str):
    query = value.to_query(key)
    assert query.isascii() and " " not in query
    assert Settings.from_query(query, "another") == value
    assert Settings.from_query(query + "#17", "another") == value  # as a job has it


def test_a_link_reads_like_a_command():
    value = Settings("cifar10", ("horse", "great white shark"), 2, seed=(7,), ssg=(0.6,), guidance_scale=4.0)
    query = "?model=cifar10&label=horse&label=great+white+shark&count=2&seed=7&guidance-scale=4&ssg=0.6"
    assert value.to_query("label") == query
    assert Settings.from_query("", "usual") == Settings("usual")
    assert Settings.from_query("?__theme=dark&label=cat", "usual") == Settings("usual", ("cat",))
    assert value.seeds == [7, 8, 9, 10] and value.wanted[2:] == ["great white shark"] * 2


def test_strength_can_be_off_or_the_models_own():
    for word in ("off", "none", "0"):
        assert Settings.from_query(f"?ssg={word}", "m").ssg == (0.0,)
    assert Settings.from_query("?ssg=default", "m").ssg is None
    shaped = Settings.from_query("?ssg=default&ssg-schedule=linear&prior=dct", "m")
    assert (shaped.ssg, shaped.ssg_schedule, shaped.prior) == (None, "linear", "dct")
    for text in ("", "on", "Off", "off,0.5", "default,1", "0.1,off"):
        with pytest.raises(InvalidArgumentError, match="ssg is a number"):
            Settings.from_query(f"?ssg={text}", "m")
    with pytest.raises(InvalidArgumentError, match="from 0 to 20, default or off, got 'on'"):
        Settings.from_query("?ssg=on", "m")


@pytest.mark.parametrize("text", ["7 3", "7,3", " 7 , 3 ", "7\t3", "7\u00a03", "7\n3"])
def test_two_seeds_are_never_one_of_more_digits(text: str):
    assert Settings("m").changed(seed=text).seed == (7, 3)


@pytest.mark.parametrize(
    "text", ["7_3", "7;3", "7-3", "7\u200b3", "7.3", "7,,3", "7,", ",7", "7'3", "٧", "７", " "]
)
def test_what_is_no_seed_is_refused(text: str):
    with pytest.raises(InvalidArgumentError, match="seed is a whole number"):
        Settings("m").changed(seed=text)


def test_subjects_are_one_line_each():
    assert Settings.from_query("?prompt=a%0Ab%00c++d", "m").subjects == ("a b c d",)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?seed=1&seed=2", "'seed' appears twice"),
        ("?colour=red", "'colour' is unknown"),
        ("?seed", "whole number"),
        ("?label=%ff", "no settings"),
        ("?label=a&count=9", "from 1 to 8"),
        ("?count=2.5", "whole number"),
        ("?label=a&label=b&label=c&count=3", "9 pictures are more"),
        ("?ssg=0.1,0.2&ssg-schedule=linear", "shapes a single strength"),
        ("?ssg=" + ",".join(["1"] * 65), "one per step"),
        ("?ssg=inf", "from 0 to 20"),
        ("?top-p=1.5", "from 0 to 1"),
        ("?prior=magic", "choose one of dse"),
        ("?residual=1", "choose one of on, off"),
        ("?negative-prompt=" + "x" * 401, "at most 400"),
        ("?prompt=%20", "is empty"),
    ],
)
def test_what_is_out_of_bounds_is_named(query: str, message: str):
    with pytest.raises(InvalidArgumentError, match=message):
        Settings.from_query(query, "m")


@pytest.mark.parametrize("value", [True, None, [], "1e", float("nan"), {}, 10**400])
def test_numbers_are_numbers(value: object):
    for name in ("guidance_scale", "temperature", "min_p"):
        if value is not None:
            with pytest.raises(InvalidArgumentError, match="is a number from"):
                Settings("m").changed(**{name: value})
    with pytest.raises(InvalidArgumentError):
        Settings("m").changed(seed=[value])


def test_lists_of_choices_are_those_of_the_library():
    import torch

    for prior in PRIORS:
        for norm in NORMS:
            spatial_prior(torch.zeros(1, 1, 2), coarse=(1, 1), fine=(2, 2), kind=prior, norm=norm)
    assert tuple(infinity.BUDGETS) == BUDGETS
    sizes = {infinity.schedule_for(ratio, budget) for ratio in RATIOS for budget in BUDGETS}
    assert len(sizes) == len(RATIOS) * len(BUDGETS)
    usual = ScaledSpatialGuidance(1.0)
    plain = {f.name: f.default for f in fields(Settings)}
    assert (plain["ssg_schedule"], plain["prior"], plain["norm"], plain["remember"]) == (
        usual.schedule, usual.prior, usual.norm, usual.remember,
    )  # fmt: skip
