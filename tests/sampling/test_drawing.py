"""One arithmetic for a run: found by the process that begins it, met or refused by every other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from nextscale.errors import InvalidArgumentError
from nextscale.sampling.drawing import (
    RunPictures,
    arithmetic_of,
    fixed_arithmetic,
    is_out_of_memory,
    settle_batch,
    settle_group,
    to_uint8,
)
from nextscale.sampling.plan import RunPlan


class Limited:
    """The pipeline, but more than ``most`` pictures at once ask torch for more memory than there is."""

    def __init__(self, pipe: Any, most: int) -> None:
        self.pipe, self.most, self.device = pipe, most, pipe.device

    def __call__(self, labels: Any, **more: Any) -> Any:
        if len(labels) > self.most:
            torch.empty(2**59)
        return self.pipe(labels, **more)


@pytest.fixture
def limited(pictures: RunPictures) -> Callable[[int], RunPictures]:
    return lambda most: replace(pictures, pipe=Limited(pictures.pipe, most))


def refuse(text: str) -> None:
    raise AssertionError(text)


def test_on_a_cpu_the_group_is_the_same_for_every_batch(plan: RunPlan, pictures: RunPictures):
    one, other = (settle_group(plan, pictures, batch, refuse) for batch in (1, 64))
    assert one == other and one.group == 2 and len(one.arithmetic) == 2


def test_elsewhere_the_group_is_the_batch_or_what_fits(
    plan: RunPlan, pictures: RunPictures, limited: Callable[[int], RunPictures]
):
    elsewhere, notes = replace(plan, device="cuda"), list[str]()
    assert settle_group(elsewhere, pictures, 8, refuse).group == 8
    assert settle_group(elsewhere, limited(4), 16, notes.append).group == 4
    assert [note.split(";")[1] for note in notes] == [" drawing 8 at once", " drawing 4 at once"]
    with pytest.raises(InvalidArgumentError, match="too little memory for a single picture"):
        settle_group(elsewhere, limited(0), 2, notes.append)


def test_a_batch_is_never_smaller_than_the_group(plan: RunPlan, pictures: RunPictures):
    assert settle_batch(plan, pictures, 1, refuse) == 2
    assert settle_batch(replace(plan, count=1, arithmetic=plan.arithmetic[:1]), pictures, 16, refuse) == 2


def test_a_batch_is_no_larger_than_a_shard(plan: RunPlan, pictures: RunPictures):
    assert settle_batch(replace(plan, shard_size=3), pictures, 1000, lambda text: None) <= 3


def test_pictures_of_prompts_keep_their_groups(plan: RunPlan, pictures: RunPictures):
    assert settle_batch(replace(plan, key="prompts"), pictures, 4, refuse) == plan.group


def test_a_group_that_does_not_fit_is_halved_only_where_the_bits_agree(plan: RunPlan, apart: RunPictures):
    notes: list[str] = []
    four = settle_group(replace(plan, device="cuda"), apart, 4, refuse)
    limited = replace(apart, pipe=Limited(apart.pipe, 2))
    assert settle_batch(four, limited, 4, notes.append) == 2
    assert "4 pictures at once do not fit" in notes[0]
    odd = replace(four, arithmetic=("0" * 64,) * 4)
    with pytest.raises(InvalidArgumentError, match=r"batches of 4, which do not fit .* smaller --batch-size"):
        settle_batch(odd, limited, 4, notes.append)
    with pytest.raises(InvalidArgumentError, match="computes other last bits"):
        settle_batch(odd, apart, 4, refuse)


def test_digests_take_in_every_number(pictures: RunPictures):
    reference = arithmetic_of(pictures, 3, 2)
    assert len(set(reference)) == 3 and arithmetic_of(pictures, 3, 2) == reference
    stronger = replace(pictures, arguments={"ssg": 1e-6})
    assert arithmetic_of(stronger, 3, 2)[0] != reference[0]


def test_threads_and_kernels_come_back(pictures: RunPictures):
    torch.set_num_threads(2)
    with fixed_arithmetic(torch.device("cpu")):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with fixed_arithmetic(torch.device("cuda")):
        assert torch.backends.cudnn.deterministic and torch.get_num_threads() == 2
    assert not torch.backends.cudnn.deterministic


def test_errors_that_are_about_memory():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("MPS backend out of memory"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_pixels_are_rounded_as_single_pictures_are(pictures: RunPictures):
    drawn = pictures.draw([1, 2, 3], 4)
    assert len(drawn) == 3
    single = pictures.pipe([1], seed=6, batch_size=1).images[0]
    assert abs(to_uint8(drawn)[0].astype(int) - single).max() <= 1
