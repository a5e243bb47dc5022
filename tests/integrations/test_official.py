"""What is read from official models and their running loops."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from nextscale.errors import GridError, InvalidArgumentError
from nextscale.integrations import guide
from nextscale.integrations.official import (
    METHOD,
    SAMPLERS,
    by_cell,
    find_frames,
    find_loops,
    read_positions,
    read_schedule,
    read_temperatures,
)

# --- which objects ------------------------------------------------------------------------------------


class NoSampler:
    patch_nums = (1, 2)

    def autoregressive_infer_cfg(self, B):
        return B


class NoFunction:
    patch_nums = (1, 2)
    autoregressive_infer_cfg = 3


@pytest.mark.parametrize(
    ("thing", "found"),
    [
        (object(), f"an object of type object: it has no method {METHOD}"),
        (torch.nn.Linear(2, 2), f"an object of type Linear: it has no method {METHOD}"),
        (types.SimpleNamespace(autoregressive_infer_cfg=None), f"it has no method {METHOD}"),
        (NoFunction(), f"it has no method {METHOD}"),
        (NoSampler(), f"no such function is among the globals of {NoSampler.__module__}"),
        (None, "an object of type NoneType"),
    ],
    ids=["object", "module", "namespace", "no function", "no sampler", "none"],
)
def test_other_objects_are_refused(thing, found):
    with pytest.raises(InvalidArgumentError) as caught:
        guide(thing, 0.6)
    message = str(caught.value)
    assert found in message
    for name in (METHOD, *SAMPLERS, "SpatialGuidanceHook", "docs/integrations.md"):
        assert name in message


def test_our_own_pipelines_are_refused():
    from nextscale import VARPipeline  # the other tests need no model of this library

    with pytest.raises(InvalidArgumentError, match=r"take ssg=\.\.\. themselves"):
        guide(VARPipeline.from_pretrained("cifar10"), 0.6)


def test_a_class_is_refused(repository):
    with pytest.raises(InvalidArgumentError, match="needs a model, but got the class VAR"):
        guide(repository("var").VAR, 0.6)


def test_a_loop_without_grids_is_refused(repository):
    module = repository("var")
    model = module.VAR()
    del model.patch_nums
    with pytest.raises(InvalidArgumentError, match="neither an argument nor an attribute scale_schedule or"):
        guide(model, 0.6)


def test_loops_are_found_along_the_mro(repository):
    module = repository("infinity")
    fork, plain = repository("subclass").make(module.Infinity)
    for cls in (module.Infinity, fork, plain):
        model = cls()
        owner, loops = find_loops(model)
        assert owner is model
        (loop,) = loops
        assert loop.namespace is vars(module)
        assert (loop.samplers, loop.name) == ((SAMPLERS[1],), METHOD)


def test_what_is_wrapped_is_found(repository):
    model = repository("var").VAR()

    class Wrapper:
        def __getattr__(self, name):
            return getattr(model, name)

    assert find_loops(Wrapper())[0] is model


def test_a_loop_that_refers_to_itself_is_no_endless_search():
    def method(self):
        return self

    method.__wrapped__ = method
    thing = types.SimpleNamespace(autoregressive_infer_cfg=method, patch_nums=(1,))
    with pytest.raises(InvalidArgumentError, match="no such function is among the globals"):
        find_loops(thing)


# --- the running loop ---------------------------------------------------------------------------------


def test_frames_end_at_the_loop():
    def loop():
        return helper()

    def helper():
        return find_frames(sys._getframe(0), globals(), {"loop"})

    assert [frame.f_code.co_name for frame in loop()] == ["helper", "loop"]
    assert helper() == []
    assert find_frames(sys._getframe(0), {}, {"loop"}) == []


def test_the_call_comes_before_the_model():
    model = types.SimpleNamespace(patch_nums=(1, 2))
    assert read_schedule(model, {"scale_schedule": [(1, 1, 1), (1, 2, 4)]}) == ((1, 1), (2, 4))
    assert read_schedule(model, {"patch_nums": (1, 3)}) == ((1, 1), (3, 3))
    assert read_schedule(model, {"scale_schedule": None}) == ((1, 1), (2, 2))
    with pytest.raises(InvalidArgumentError, match="without scale_schedule or patch_nums"):
        read_schedule(object(), {"scale_schedule": None})


def test_temperatures():
    assert read_temperatures({}, 3) == (1.0, 1.0, 1.0)
    assert read_temperatures({"tau_list": [0.5, 1, 2, 9]}, 3) == (0.5, 1.0, 2.0)
    assert read_temperatures({"tau_list": 0.5}, 2) == (0.5, 0.5)
    assert read_temperatures({"tau_list": torch.tensor([0.5, 0.25])}, 2) == (0.5, 0.25)


def test_bits_are_told_from_tokens():
    bits = torch.arange(2 * 12 * 2.0).reshape(2, 12, 2)
    assert by_cell(bits, 4).shape == (2, 4, 3, 2)
    assert torch.equal(by_cell(bits, 4)[1, 2, 0], bits[1, 6])
    assert by_cell(bits, 12) is bits
    assert by_cell(bits, 5) is bits
    tokens = torch.zeros(2, 12, 3)
    assert by_cell(tokens, 4) is tokens
    with pytest.raises(GridError, match=r"shape \(24, 2\)"):
        by_cell(bits.flatten(0, 1), 4)


LOGITS = torch.zeros(2, 2, 7)
FIRST = torch.tensor([[True, False, False, True], [False, True, True, False]])
MORE = torch.tensor([[True, True, False, True], [False, True, True, True]])


def test_cells_by_the_official_name():
    def loop():
        mask_to_pred, mask_next, more = FIRST, ~FIRST, MORE
        return read_positions([sys._getframe(0)], LOGITS, 4), mask_to_pred, mask_next, more

    assert loop()[0].tolist() == [[0, 3], [1, 2]]


def test_cells_by_the_only_mask_that_fits():
    def loop():
        to_draw, also, more, flat, rows = FIRST, FIRST, MORE, FIRST[0], FIRST.float()
        return helper(), to_draw, also, more, flat, rows

    def helper():
        here = sys._getframe(0)
        return read_positions([here, here.f_back], LOGITS, 4)

    assert loop()[0].tolist() == [[0, 3], [1, 2]]


def test_cells_that_nothing_names():
    def none():
        more = MORE
        return read_positions([sys._getframe(0)], LOGITS, 4), more

    def several():
        one, other = FIRST, ~FIRST
        return read_positions([sys._getframe(0)], LOGITS, 4), one, other

    with pytest.raises(GridError, match=r"2 of 4 cells are drawn, and no mask of shape \(2, 4\)"):
        none()
    with pytest.raises(GridError, match="one, other all mark as many; call the right one mask_to_pred"):
        several()
