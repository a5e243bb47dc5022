"""Scaled Spatial Guidance: the function, the settings, and what a generation remembers."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextscale.errors import GridError, InvalidArgumentError
from nextscale.guidance import (
    DEFAULT_BETA,
    NORMS,
    PRIOR_KINDS,
    SCHEDULES,
    Guidance,
    GuidanceStep,
    ScaledSpatialGuidance,
    as_ssg,
    prior_operator,
    scaled_spatial_guidance,
    spatial_prior,
)

GRIDS = ((1, 1), (2, 2), (3, 4), (5, 6))


def logits_of(grid, batch=2, channels=7, *, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, grid[0] * grid[1], channels, generator=generator).to(dtype)


def run(settings_, grids=GRIDS, *, trail=None, seed=0):
    """A whole generation; the guided logits of every step, and in `trail` what went in."""
    state, results = settings_.begin(grids), []
    for index, grid in enumerate(grids):
        logits = logits_of(grid, seed=seed + index)
        results.append(state(GuidanceStep(index, grids), {"cond": logits}))
        if trail is not None:
            trail.append(logits)
    state.end()
    return results


# --- the function ---------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", PRIOR_KINDS)
@pytest.mark.parametrize(
    "grids", [((2, 3), (4, 5)), ((2, 3), (2, 5)), ((30, 20), (40, 28)), ((2, 3), (2, 3))]
)
def test_it_is_the_formula(kind, norm, grids):
    coarse, fine = grids
    logits, previous = logits_of(fine, dtype=torch.float64), logits_of(coarse, dtype=torch.float64, seed=1)
    guided = scaled_spatial_guidance(
        logits, previous, coarse=coarse, fine=fine, beta=0.7, kind=kind, norm=norm
    )
    prior = prior_operator(coarse, fine, kind, norm=norm, dtype=torch.float64) @ previous
    torch.testing.assert_close(guided, logits + 0.7 * (logits - prior), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fine", [(4, 5), (64, 48), (2, 3)])
def test_beta_zero_is_a_bit_identical_copy(fine):
    logits, previous = logits_of(fine), logits_of((2, 3))
    logits[0, 0, 0] = -0.0
    guided = scaled_spatial_guidance(logits, previous, coarse=(2, 3), fine=fine, beta=0)
    assert torch.equal(guided.view(torch.int32), logits.view(torch.int32))
    guided.fill_(-math.inf)
    assert logits.isfinite().all()


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(0, 6),
    st.integers(0, 6),
    st.floats(0, 5),
    st.sampled_from(PRIOR_KINDS),
    st.sampled_from(NORMS),
)
def test_linear_in_both_and_inputs_never_modified(h, w, dh, dw, beta, kind, norm):
    coarse, fine = (h, w), (h + dh, w + dw)
    logits, previous = logits_of(fine, dtype=torch.float64), logits_of(coarse, dtype=torch.float64, seed=1)
    kept = logits.clone(), previous.clone()
    options = {"coarse": coarse, "fine": fine, "beta": beta, "kind": kind, "norm": norm}
    guided = scaled_spatial_guidance(logits, previous, **options)
    assert torch.equal(logits, kept[0])
    assert torch.equal(previous, kept[1])
    doubled = scaled_spatial_guidance(2 * logits, 2 * previous, **options)
    torch.testing.assert_close(doubled, 2 * guided, rtol=1e-12, atol=1e-12)
    memory = guided.data_ptr(), logits.data_ptr(), previous.data_ptr()
    assert len(set(memory)) == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("fine", [(4, 5), (40, 28), (2, 3)])
def test_half_precision_is_computed_in_float32(dtype, fine):
    logits, previous = logits_of(fine, dtype=dtype), logits_of((2, 3), dtype=dtype, seed=1)
    guided = scaled_spatial_guidance(logits, previous, coarse=(2, 3), fine=fine, beta=0.7)
    exact = scaled_spatial_guidance(logits.float(), previous.float(), coarse=(2, 3), fine=fine, beta=0.7)
    assert guided.dtype == dtype
    assert torch.equal(guided, exact.to(dtype))


def test_the_result_has_the_dtype_of_the_logits():
    logits, previous = logits_of((2, 2), dtype=torch.bfloat16), logits_of((1, 1), dtype=torch.float64)
    guided = scaled_spatial_guidance(logits, previous, coarse=(1, 1), fine=(2, 2), beta=1.0)
    assert guided.dtype == torch.bfloat16


@pytest.mark.parametrize("fine", [(4, 5), (40, 28)])
def test_autocast_changes_nothing(fine):
    logits, previous = logits_of(fine), logits_of((2, 3), seed=1)
    expected = scaled_spatial_guidance(logits, previous, coarse=(2, 3), fine=fine, beta=0.7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        guided = scaled_spatial_guidance(logits, previous, coarse=(2, 3), fine=fine, beta=0.7)
    assert torch.equal(guided, expected)


@pytest.mark.parametrize("leading", [(), (1,), (5,), (2, 3), (0,)])
def test_leading_axes(leading):
    logits, previous = torch.randn(*leading, 20, 3), torch.randn(*leading, 6, 3)
    guided = scaled_spatial_guidance(logits, previous, coarse=(2, 3), fine=(4, 5), beta=0.7)
    expected = logits + 0.7 * (logits - spatial_prior(previous, coarse=(2, 3), fine=(4, 5)))
    torch.testing.assert_close(guided, expected)


@pytest.mark.parametrize("bits", [16, 4, 1, 5])
def test_bit_logits_of_any_number_of_bits(bits):
    """16 bits on a 4x4 grid, or 4 bits after a 2x2 one: the shapes decide together."""
    logits, previous = torch.randn(2, 16, bits, 2), torch.randn(2, 4, bits, 2)
    guided = scaled_spatial_guidance(logits, previous, coarse=(2, 2), fine=(4, 4), beta=0.7)
    flat = scaled_spatial_guidance(
        logits.flatten(2), previous.flatten(2), coarse=(2, 2), fine=(4, 4), beta=0.7
    )
    assert guided.shape == logits.shape
    assert torch.equal(guided.flatten(2), flat)


def test_two_channels_behind_two_leading_axes_are_no_bits():
    logits, previous = torch.randn(3, 7, 16, 2), torch.randn(3, 7, 4, 2)
    guided = scaled_spatial_guidance(logits, previous, coarse=(2, 2), fine=(4, 4), beta=0.7)
    for row in range(7):
        single = scaled_spatial_guidance(
            logits[:, row], previous[:, row], coarse=(2, 2), fine=(4, 4), beta=0.7
        )
        torch.testing.assert_close(guided[:, row], single)


def test_an_image_does_not_depend_on_its_batch_neighbours():
    logits, previous = logits_of((8, 8), batch=5, channels=33), logits_of((6, 6), batch=5, channels=33)
    together = scaled_spatial_guidance(logits, previous, coarse=(6, 6), fine=(8, 8), beta=0.7)
    alone = scaled_spatial_guidance(logits[3:4], previous[3:4], coarse=(6, 6), fine=(8, 8), beta=0.7)
    torch.testing.assert_close(together[3:4], alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fine", [(2, 3), (3, 4), (30, 20)])
def test_gradients_flow_to_both(fine):
    logits, previous = logits_of(fine, 1, 1), logits_of((2, 3), 1, 1)
    logits, previous = logits.double().requires_grad_(), previous.double().requires_grad_()
    scaled_spatial_guidance(logits, previous, coarse=(2, 3), fine=fine, beta=0.7).sum().backward()
    torch.testing.assert_close(logits.grad, torch.full_like(logits, 1.7))
    column_sums = prior_operator((2, 3), fine, dtype=torch.float64).sum(0)
    torch.testing.assert_close(previous.grad.flatten(), -0.7 * column_sums)


@pytest.mark.parametrize("kind", PRIOR_KINDS)
def test_gradcheck(kind):
    logits = torch.randn(2, 12, 2, dtype=torch.float64, requires_grad=True)
    previous = torch.randn(2, 6, 2, dtype=torch.float64, requires_grad=True)

    def guide(x, y):
        return scaled_spatial_guidance(x, y, coarse=(2, 3), fine=(3, 4), beta=0.7, kind=kind)

    assert torch.autograd.gradcheck(guide, (logits, previous))


def test_shapes_that_do_not_belong_together_are_named():
    good = {"coarse": (2, 2), "fine": (3, 3), "beta": 0.5}
    cases = [
        (torch.zeros(2, 9, 4), torch.zeros(3, 4, 4)),
        (torch.zeros(2, 9, 4), torch.zeros(2, 4, 5)),
        (torch.zeros(2, 9, 4), torch.zeros(4, 4)),
        (torch.zeros(2, 9, 4), torch.zeros(2, 5, 4)),
        (torch.zeros(2, 8, 4), torch.zeros(2, 4, 4)),
    ]
    for logits, previous in cases:
        with pytest.raises(GridError) as caught:
            scaled_spatial_guidance(logits, previous, **good)
        assert str(tuple(logits.shape)) in str(caught.value)
        assert str(tuple(previous.shape)) in str(caught.value)


@pytest.mark.parametrize("beta", [math.nan, math.inf, -0.1, True, "0.5", None, [0.5], 1j])
def test_a_beta_that_is_none(beta):
    with pytest.raises(InvalidArgumentError, match="beta"):
        scaled_spatial_guidance(torch.zeros(4, 1), torch.zeros(1, 1), coarse=(1, 1), fine=(2, 2), beta=beta)


def test_errors_do_not_hide_behind_beta_zero():
    zeros = torch.zeros(4, 1), torch.zeros(1, 1)
    with pytest.raises(InvalidArgumentError, match="cubic"):
        scaled_spatial_guidance(*zeros, coarse=(1, 1), fine=(2, 2), beta=0, kind="cubic")
    with pytest.raises(GridError):
        scaled_spatial_guidance(*zeros, coarse=(1, 1), fine=(3, 3), beta=0)


# --- a generation ---------------------------------------------------------------------------------


def test_a_generation_guides_every_step_from_the_unguided_one_before():
    trail: list = []
    results = run(ScaledSpatialGuidance(0.6), trail=trail)
    assert results[0] is trail[0]
    for index in range(1, len(GRIDS)):
        expected = scaled_spatial_guidance(
            trail[index], trail[index - 1], coarse=GRIDS[index - 1], fine=GRIDS[index], beta=0.6
        )
        assert torch.equal(results[index], expected)


def test_remember_guided_builds_on_the_guided_logits():
    trail: list = []
    results = run(ScaledSpatialGuidance(0.6, remember="guided"), trail=trail)
    for index in range(1, len(GRIDS)):
        expected = scaled_spatial_guidance(
            trail[index], results[index - 1], coarse=GRIDS[index - 1], fine=GRIDS[index], beta=0.6
        )
        assert torch.equal(results[index], expected)


@pytest.mark.parametrize("remember", ["unguided", "guided"])
def test_in_place_filters_do_not_reach_the_memory(remember):
    settings_ = ScaledSpatialGuidance(0.6, remember=remember)
    expected = run(settings_)
    state = settings_.begin(GRIDS)
    for index, grid in enumerate(GRIDS):
        logits = logits_of(grid, seed=index)
        guided = state(GuidanceStep(index, GRIDS), {"cond": logits})
        assert torch.equal(guided, expected[index])
        guided.fill_(-math.inf)
        logits.fill_(-math.inf)


def test_beta_zero_returns_the_logits_themselves():
    trail: list = []
    for settings_ in (ScaledSpatialGuidance(0), ScaledSpatialGuidance([0.0] * 4)):
        trail.clear()
        assert all(a is b for a, b in zip(run(settings_, trail=trail), trail, strict=True))


def test_start_and_stop():
    betas = ScaledSpatialGuidance(0.6, start=2, stop=3).betas(GRIDS)
    assert betas == (0.0, 0.0, 0.6, 0.0)
    assert ScaledSpatialGuidance(0.6, start=0).betas(GRIDS) == (0.0, 0.6, 0.6, 0.6)
    assert ScaledSpatialGuidance(0.6, stop=99).betas(GRIDS) == (0.0, 0.6, 0.6, 0.6)
    assert ScaledSpatialGuidance(0.6, start=1, stop=1).betas(GRIDS) == (0.0,) * 4
    trail: list = []
    results = run(ScaledSpatialGuidance(0.6, start=2, stop=3), trail=trail)
    assert [a is b for a, b in zip(results, trail, strict=True)] == [True, True, False, True]


def test_lists_are_indexed_by_step_and_the_first_value_is_unused():
    settings_ = ScaledSpatialGuidance([9.0, 0.1, 0.2, 0.3])
    assert settings_.betas(GRIDS) == (0.0, 0.1, 0.2, 0.3)


def test_a_callable_gets_the_step():
    seen = []

    def beta(step):
        seen.append((step.index, step.grid, step.num_steps, step.positions))
        return step.index / 10

    assert ScaledSpatialGuidance(beta).betas(GRIDS) == (0.0, 0.1, 0.2, 0.3)
    assert seen == [(index, grid, 4, None) for index, grid in enumerate(GRIDS)]
    with pytest.raises(InvalidArgumentError, match=r"beta\(step 2\).*nan"):
        ScaledSpatialGuidance(lambda step: math.nan if step.index == 2 else 0.1).begin(GRIDS)


def test_schedules_shape_a_number():
    assert ScaledSpatialGuidance(0.6, schedule="bandwidth").betas(GRIDS)[1] == pytest.approx(0.6 * 0.75)
    assert ScaledSpatialGuidance(0.6, schedule="linear").betas(GRIDS)[-1] == pytest.approx(0.6)


def test_no_beta_means_a_default():
    assert ScaledSpatialGuidance().betas(GRIDS) == ScaledSpatialGuidance(DEFAULT_BETA).betas(GRIDS)
    assert ScaledSpatialGuidance(schedule="linear").with_defaults(0.2) == ScaledSpatialGuidance(
        0.2, schedule="linear"
    )
    assert ScaledSpatialGuidance(0.4).with_defaults(0.2).beta == 0.4
    assert ScaledSpatialGuidance().with_defaults([0, 1, 2]).beta == (0.0, 1.0, 2.0)
    assert ScaledSpatialGuidance().with_defaults(None).beta is None


def test_without_a_strength_everything_that_is_open_is_the_models():
    model = ScaledSpatialGuidance(
        0.3, schedule="bandwidth", prior="dct", norm="forward", remember="guided", start=2, stop=4
    )
    assert ScaledSpatialGuidance().with_defaults(model) == model
    for named in ({"schedule": "constant"}, {"prior": "dse"}, {"norm": "ortho"}, {"stop": 3}, {"start": 0}):
        expected = dataclasses.replace(model, **named)
        assert ScaledSpatialGuidance(**named).with_defaults(model) == expected != model
    # A strength makes it complete: it means the same with every model.
    assert ScaledSpatialGuidance(0.3).with_defaults(model) == ScaledSpatialGuidance(
        0.3, schedule="constant", prior="dse", norm="ortho", remember="unguided", start=1
    )
    open_ = ScaledSpatialGuidance(norm="backward")
    assert open_.schedule is None and ScaledSpatialGuidance(0.3).schedule == "constant"
    assert ScaledSpatialGuidance.from_dict(open_.to_dict()) == open_


def test_what_is_open_without_a_model_is_the_librarys():
    trail: list = []
    expected = run(ScaledSpatialGuidance(DEFAULT_BETA), trail=trail)
    assert all(torch.equal(a, b) for a, b in zip(run(ScaledSpatialGuidance()), expected, strict=True))


@pytest.mark.parametrize("name", ["schedule", "prior", "norm", "remember"])
@pytest.mark.parametrize("beta", [None, 0.5])
def test_no_name_at_all_is_a_wrong_one(name, beta):
    with pytest.raises(InvalidArgumentError, match=f"unknown .*{name}|unknown {name}"):
        ScaledSpatialGuidance(beta, **{name: ""})


def test_a_skipped_step_leaves_nothing_to_compare_with():
    state = ScaledSpatialGuidance(0.6).begin(GRIDS)
    state(GuidanceStep(0, GRIDS), {"cond": logits_of(GRIDS[0])})
    logits = logits_of(GRIDS[2])
    assert state(GuidanceStep(2, GRIDS), {"cond": logits}) is logits
    last = logits_of(GRIDS[3])
    assert state(GuidanceStep(3, GRIDS), {"cond": last}) is not last


def test_partial_draws_read_the_prior_at_their_positions():
    settings_ = ScaledSpatialGuidance(0.6)
    full = run(settings_)[-1]
    state = settings_.begin(GRIDS)
    for index, grid in enumerate(GRIDS[:-1]):
        state(GuidanceStep(index, GRIDS), {"cond": logits_of(grid, seed=index)})
    last = logits_of(GRIDS[-1], seed=3)
    order = torch.stack([torch.randperm(30), torch.randperm(30)])
    for cells in (order[:, :7], order[:, 7:8], order[:, 8:]):
        part = torch.stack([row[cell] for row, cell in zip(last, cells, strict=True)])
        guided = state(GuidanceStep(3, GRIDS, positions=cells), {"cond": part})
        expected = torch.stack([row[cell] for row, cell in zip(full, cells, strict=True)])
        torch.testing.assert_close(guided, expected)


def test_partial_draws_leave_no_memory_but_keep_the_one_there_is():
    state = ScaledSpatialGuidance(0.6).begin(GRIDS)
    state(GuidanceStep(0, GRIDS), {"cond": logits_of(GRIDS[0])})
    cells = torch.tensor([[2, 0], [1, 3]])
    step = GuidanceStep(1, GRIDS, positions=cells)
    part = torch.randn(2, 2, 7, dtype=torch.bfloat16)
    first = state(step, {"cond": part})
    assert first.dtype == torch.bfloat16
    assert torch.equal(state(step, {"cond": part}), first)
    following = logits_of(GRIDS[2])
    assert state(GuidanceStep(2, GRIDS), {"cond": following}) is following


def test_partial_draws_of_bits():
    grids, state = ((1, 2), (2, 4)), ScaledSpatialGuidance(0.6).begin(((1, 2), (2, 4)))
    previous, logits = torch.randn(2, 2, 8, 2), torch.randn(2, 8, 8, 2)
    state(GuidanceStep(0, grids), {"cond": previous})
    everywhere = torch.arange(8).expand(2, -1)
    part = state(GuidanceStep(1, grids, positions=everywhere), {"cond": logits})
    expected = scaled_spatial_guidance(
        logits, previous, coarse=grids[0], fine=grids[1], beta=0.6, position_dim=1
    )
    torch.testing.assert_close(part, expected)
    wrong = GuidanceStep(1, grids, positions=everywhere[:, :3])
    with pytest.raises(GridError, match="positions"):
        state(wrong, {"cond": logits})


def test_bits_equal_to_the_number_of_cells_are_not_confused_in_a_generation():
    grids = ((2, 2), (4, 4))
    previous, logits = torch.randn(1, 4, 16, 2), torch.randn(1, 16, 16, 2)
    state = ScaledSpatialGuidance(0.6).begin(grids)
    state(GuidanceStep(0, grids), {"cond": previous})
    guided = state(GuidanceStep(1, grids), {"cond": logits})
    flat = scaled_spatial_guidance(
        logits.flatten(2), previous.flatten(2), coarse=(2, 2), fine=(4, 4), beta=0.6
    )
    assert torch.equal(guided.flatten(2), flat)


def test_memory_lives_only_where_it_is_needed_and_ends_with_the_generation():
    state = ScaledSpatialGuidance(0.6, stop=2).begin(GRIDS)
    state(GuidanceStep(0, GRIDS), {"cond": logits_of(GRIDS[0])})
    assert state._memory is not None
    state(GuidanceStep(1, GRIDS), {"cond": logits_of(GRIDS[1])})
    assert state._memory is None
    state.end()
    with pytest.raises(InvalidArgumentError, match="ended"):
        state(GuidanceStep(2, GRIDS), {"cond": logits_of(GRIDS[2])})


def test_generations_of_one_setting_do_not_share_memory():
    settings_ = ScaledSpatialGuidance(0.6)
    one, two = settings_.begin(GRIDS), settings_.begin(GRIDS)
    one(GuidanceStep(0, GRIDS), {"cond": logits_of(GRIDS[0])})
    logits = logits_of(GRIDS[1])
    assert two(GuidanceStep(1, GRIDS), {"cond": logits}) is logits


def test_other_grids_than_begun_with_are_refused():
    state = ScaledSpatialGuidance(0.6).begin(GRIDS)
    with pytest.raises(GridError, match="began with"):
        state(GuidanceStep(0, GRIDS[:-1]), {"cond": logits_of(GRIDS[0])})
    with pytest.raises(InvalidArgumentError, match="cond"):
        state(GuidanceStep(0, GRIDS), {"uncond": logits_of(GRIDS[0])})


def test_begin_checks_settings_against_the_steps():
    with pytest.raises(InvalidArgumentError, match=r"3 values.*4 steps"):
        ScaledSpatialGuidance([0.1, 0.2, 0.3]).begin(GRIDS)
    with pytest.raises(GridError, match="smaller"):
        ScaledSpatialGuidance(0.1).begin(((2, 2), (1, 4)))
    ScaledSpatialGuidance([0, 0]).begin(((2, 2), (1, 4)))
    with pytest.raises(GridError, match="at least one"):
        ScaledSpatialGuidance(0.1).begin(())


# --- the settings ---------------------------------------------------------------------------------


def test_it_is_a_frozen_hashable_guidance_method():
    settings_ = ScaledSpatialGuidance([0, 0.5, 1])
    assert isinstance(settings_, Guidance)
    assert settings_.branches == ("cond",)
    assert settings_ == ScaledSpatialGuidance(torch.tensor([0, 0.5, 1]))
    assert hash(settings_) == hash(ScaledSpatialGuidance((0.0, 0.5, 1.0)))
    assert settings_ != ScaledSpatialGuidance([0, 0.5, 1], norm="forward")
    assert "beta=(0.0, 0.5, 1.0)" in repr(settings_)
    assert dataclasses.replace(settings_, start=2).start == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings_.beta = 1.0


@pytest.mark.parametrize(
    "settings_",
    [
        ScaledSpatialGuidance(),
        ScaledSpatialGuidance(0.6, schedule="bandwidth", prior="bilinear", norm="forward"),
        ScaledSpatialGuidance([0, 0.5, 1], remember="guided", start=2, stop=3),
    ],
)
def test_settings_survive_json(settings_):
    stored = json.loads(json.dumps(settings_.to_dict()))
    assert ScaledSpatialGuidance.from_dict(stored) == settings_


def test_what_cannot_be_stored_or_read_says_so():
    with pytest.raises(InvalidArgumentError, match="cannot be stored"):
        ScaledSpatialGuidance(lambda step: 0.1).to_dict()
    with pytest.raises(InvalidArgumentError, match=r"\['strength'\]"):
        ScaledSpatialGuidance.from_dict({"strength": 1})
    with pytest.raises(InvalidArgumentError, match="not the settings"):
        ScaledSpatialGuidance.from_dict({"method": "classifier_free_guidance"})
    with pytest.raises(InvalidArgumentError, match="not the settings"):
        ScaledSpatialGuidance.from_dict("0.6")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": -1}, "-1"),
        ({"beta": math.nan}, "nan"),
        ({"beta": math.inf}, "inf"),
        ({"beta": True}, "True"),
        ({"beta": "0.6"}, "0.6"),
        ({"beta": [0, 0.1, -2.0]}, r"beta\[2\].*-2.0"),
        ({"beta": [0, math.nan]}, r"beta\[1\].*nan"),
        ({"beta": [0, False]}, r"beta\[1\].*False"),
        ({"beta": []}, "empty"),
        ({"schedule": "cubic"}, ", ".join(SCHEDULES)),
        ({"beta": [0, 1], "schedule": "linear"}, "already given per step"),
        ({"beta": lambda step: 1, "schedule": "linear"}, "already given per step"),
        ({"prior": "cubic"}, ", ".join(PRIOR_KINDS)),
        ({"norm": "unit"}, ", ".join(NORMS)),
        ({"remember": "all"}, "unguided, guided"),
        ({"start": -1}, "start.*-1"),
        ({"start": 1.0}, "start.*1.0"),
        ({"start": None}, "start.*None"),
        ({"stop": True}, "stop.*True"),
        ({"start": 3, "stop": 2}, r"stop \(2\).*start \(3\)"),
    ],
)
def test_bad_settings_name_the_value_and_what_is_allowed(arguments, message):
    with pytest.raises(InvalidArgumentError, match=message):
        ScaledSpatialGuidance(**arguments)


def test_what_a_pipeline_takes():
    assert as_ssg(None) is None
    assert as_ssg(0.6) == ScaledSpatialGuidance(0.6)
    assert as_ssg([0, 1]) == ScaledSpatialGuidance([0, 1])
    settings_ = ScaledSpatialGuidance(0.6, norm="forward")
    assert as_ssg(settings_) is settings_
    with pytest.raises(InvalidArgumentError, match="True"):
        as_ssg(True)


def test_strengths_of_other_pictures_are_named():
    grids = ((1, 1), (2, 2))
    state = ScaledSpatialGuidance([[0.5], [1.0]]).begin(grids)
    state(GuidanceStep(0, grids), {"cond": torch.randn(3, 1, 5)})
    with pytest.raises(GridError, match=r"2 strengths, one a picture, for logits \(3, 4, 5\)"):
        state(GuidanceStep(1, grids), {"cond": torch.randn(3, 4, 5)})
