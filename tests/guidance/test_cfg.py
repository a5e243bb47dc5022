"""Classifier-free guidance under both conventions."""

from __future__ import annotations

import json
import math

import pytest
import torch

from nextscale.errors import GridError, InvalidArgumentError
from nextscale.guidance import ClassifierFreeGuidance, Guidance, GuidanceStep, classifier_free_guidance

GRIDS = ((1, 1), (2, 2), (3, 3), (4, 4), (5, 5))


def branches(grid=(2, 2), dtype=torch.float32):
    cond, uncond = torch.randn(2, 2, grid[0] * grid[1], 7).to(dtype)
    return {"cond": cond, "uncond": uncond}


def test_the_formulas_are_computed_as_written():
    rows = branches()
    cond, uncond = rows["cond"], rows["uncond"]
    extra = classifier_free_guidance(cond, uncond, scale=1.3)
    assert torch.equal(extra, (1 + 1.3) * cond - 1.3 * uncond)
    interpolated = classifier_free_guidance(cond, uncond, scale=2.3, convention="interpolate")
    assert torch.equal(interpolated, 2.3 * cond + (1 - 2.3) * uncond)


def test_neutral_scales_are_exactly_cond():
    rows = branches()
    rows["uncond"][:] = math.nan
    assert classifier_free_guidance(*rows.values(), scale=0) is rows["cond"]
    assert classifier_free_guidance(*rows.values(), scale=1, convention="interpolate") is rows["cond"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    rows = branches(dtype=dtype)
    result = classifier_free_guidance(*rows.values(), scale=1.3)
    assert result.dtype == dtype
    if dtype != torch.float64:
        exact = classifier_free_guidance(rows["cond"].float(), rows["uncond"].float(), scale=1.3)
        assert torch.equal(result, exact.to(dtype))


def test_inputs_are_not_modified_and_gradients_flow():
    rows = {name: tensor.requires_grad_() for name, tensor in branches().items()}
    kept = {name: tensor.detach().clone() for name, tensor in rows.items()}
    classifier_free_guidance(*rows.values(), scale=0.5).sum().backward()
    assert all(torch.equal(rows[name], kept[name]) for name in rows)
    torch.testing.assert_close(rows["cond"].grad, torch.full_like(kept["cond"], 1.5))
    torch.testing.assert_close(rows["uncond"].grad, torch.full_like(kept["cond"], -0.5))


def test_the_ramp_of_var():
    scales = ClassifierFreeGuidance(1.5).scales(GRIDS)
    assert scales == tuple(1.5 * (index / 4) for index in range(5))
    assert scales[0] == 0.0
    assert scales[-1] == 1.5


def test_the_ramp_of_hart_repeats_the_step_before_the_last():
    scales = ClassifierFreeGuidance(4.5, ramp="linear-hold").scales([(1, 1)] * 14)
    assert scales[-1] == scales[-2] == pytest.approx(4.1538, abs=1e-4)
    assert ClassifierFreeGuidance(4.5, ramp="linear-hold").scales([(1, 1)]) == (0.0,)


def test_infinity_takes_a_number_or_a_list():
    number = ClassifierFreeGuidance(3, convention="interpolate")
    assert number.ramp == "constant"
    assert number.scales(GRIDS) == (3.0,) * 5
    values = ClassifierFreeGuidance([2.0, 3.0, 1.0, 2.5, 1.5], convention="interpolate")
    assert values.scales(GRIDS) == (2.0, 3.0, 1.0, 2.5, 1.5)


def test_an_interpolating_ramp_starts_at_its_own_neutral_value():
    ramped = ClassifierFreeGuidance(3, convention="interpolate", ramp="linear")
    assert ramped.scales(GRIDS) == (1.0, 1.5, 2.0, 2.5, 3.0)


def test_the_conventions_agree_where_they_mean_the_same():
    rows = branches()
    extra = classifier_free_guidance(*rows.values(), scale=1.5)
    interpolated = classifier_free_guidance(*rows.values(), scale=2.5, convention="interpolate")
    torch.testing.assert_close(extra, interpolated)


def test_callables_and_constants():
    assert ClassifierFreeGuidance(lambda step: step.index).scales(GRIDS) == (0.0, 1.0, 2.0, 3.0, 4.0)
    assert ClassifierFreeGuidance(1.5, ramp="constant").scales(GRIDS) == (1.5,) * 5


def test_a_single_step_is_neutral_under_a_ramp():
    assert ClassifierFreeGuidance(1.5).scales([(1, 1)]) == (0.0,)
    assert ClassifierFreeGuidance(1.5, ramp="constant").scales([(1, 1)]) == (1.5,)


def test_branches_are_asked_for_only_if_some_step_needs_them():
    both, one = ("cond", "uncond"), ("cond",)
    assert ClassifierFreeGuidance(0).branches == one
    assert ClassifierFreeGuidance(0.1).branches == both
    assert ClassifierFreeGuidance(1, convention="interpolate").branches == one
    assert ClassifierFreeGuidance(0, convention="interpolate").branches == both
    assert ClassifierFreeGuidance([0, 0]).branches == one
    assert ClassifierFreeGuidance([1, 1, 2], convention="interpolate").branches == both
    assert ClassifierFreeGuidance(lambda step: 0.0).branches == both


def test_a_generation():
    state = ClassifierFreeGuidance(1.5).begin(GRIDS)
    for index, grid in enumerate(GRIDS):
        rows, t = branches(grid), 1.5 * (index / 4)
        result = state(GuidanceStep(index, GRIDS), rows)
        assert torch.equal(result, (1 + t) * rows["cond"] - t * rows["uncond"] if t else rows["cond"])
    state.end()


def test_missing_branches():
    state = ClassifierFreeGuidance(1.5).begin(GRIDS)
    rows = branches((1, 1))
    assert state(GuidanceStep(0, GRIDS), {"cond": rows["cond"]}) is rows["cond"]
    with pytest.raises(InvalidArgumentError, match=r"'uncond'.*\['cond'\]"):
        state(GuidanceStep(1, GRIDS), {"cond": rows["cond"]})


def test_bad_values_name_what_is_allowed():
    with pytest.raises(InvalidArgumentError, match=r"'sum'.*extra, interpolate"):
        ClassifierFreeGuidance(1.5, convention="sum")
    with pytest.raises(InvalidArgumentError, match=r"'sum'.*extra, interpolate"):
        classifier_free_guidance(torch.zeros(1), torch.zeros(1), scale=1, convention="sum")
    with pytest.raises(InvalidArgumentError, match=r"'cubic'.*constant, linear, linear-hold"):
        ClassifierFreeGuidance(1.5, ramp="cubic")
    with pytest.raises(InvalidArgumentError, match="already given per step"):
        ClassifierFreeGuidance([1, 2], ramp="linear")
    for scale in (-1, math.nan, math.inf, True, "1.5", None, [1, -1], []):
        with pytest.raises(InvalidArgumentError, match="scale"):
            ClassifierFreeGuidance(scale)
    with pytest.raises(InvalidArgumentError, match=r"2 values.*5 steps"):
        ClassifierFreeGuidance([1, 2]).begin(GRIDS)
    with pytest.raises(GridError, match=r"\(2, 3\).*\(2, 4\)"):
        classifier_free_guidance(torch.zeros(2, 3), torch.zeros(2, 4), scale=1)


@pytest.mark.parametrize(
    "settings",
    [
        ClassifierFreeGuidance(1.5),
        ClassifierFreeGuidance(4.5, ramp="linear-hold"),
        ClassifierFreeGuidance([2, 3, 1], convention="interpolate"),
    ],
)
def test_settings_survive_json_and_are_hashable(settings):
    stored = json.loads(json.dumps(settings.to_dict()))
    again = ClassifierFreeGuidance.from_dict(stored)
    assert again == settings
    assert hash(again) == hash(settings)
    assert isinstance(settings, Guidance)


def test_what_cannot_be_stored_or_read_says_so():
    with pytest.raises(InvalidArgumentError, match="cannot be stored"):
        ClassifierFreeGuidance(lambda step: 0.1).to_dict()
    with pytest.raises(InvalidArgumentError, match="need a scale"):
        ClassifierFreeGuidance.from_dict({"ramp": "linear"})
    with pytest.raises(InvalidArgumentError, match="not the settings"):
        ClassifierFreeGuidance.from_dict({"method": "scaled_spatial_guidance", "beta": 1})


@pytest.mark.parametrize("convention", ["extra", "interpolate"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_scale_a_picture(convention, dtype):
    cond, uncond = torch.randn(2, 5, 3, 7).to(dtype)
    scales = [0.0, 1.0, 2.5, 0.0, 4.0]
    together = classifier_free_guidance(cond, uncond, scale=scales, convention=convention)
    assert together.dtype == dtype
    for row, scale in enumerate(scales):
        alone = classifier_free_guidance(cond[row], uncond[row], scale=scale, convention=convention)
        assert torch.equal(together[row], alone)
    neutral = 0.0 if convention == "extra" else 1.0
    assert classifier_free_guidance(cond, uncond, scale=[neutral] * 5, convention=convention) is cond


def test_forbidden_choices_of_single_pictures_stay_so():
    cond, uncond = torch.randn(2, 3, 2, 4)
    cond[1, 0, 2] = uncond[1, 0, 2] = -math.inf
    for convention in ("extra", "interpolate"):
        guided = classifier_free_guidance(cond, uncond, scale=[0.0, 2.0, 1.0], convention=convention)
        assert guided[1, 0, 2] == -math.inf
        assert guided.isfinite().sum() == guided.numel() - 1


@pytest.mark.parametrize("scales", [[1.0], [1.0] * 4, []])
def test_scales_of_other_pictures(scales):
    with pytest.raises(GridError, match=f"{len(scales)} scales, one a picture, for branches"):
        classifier_free_guidance(torch.zeros(3, 2), torch.zeros(3, 2), scale=scales)


def test_scales_of_single_pictures_are_checked():
    with pytest.raises(InvalidArgumentError, match=r"scale\[1\] must be finite"):
        classifier_free_guidance(torch.zeros(2, 2), torch.zeros(2, 2), scale=[1.0, math.nan])
