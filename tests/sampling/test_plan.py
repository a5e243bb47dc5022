"""Manifests: written once, read by all, and a fence between runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nextscale.errors import InvalidArgumentError
from nextscale.sampling.plan import MANIFEST, RunPlan, check_same, read_manifest, write_manifest

Fork = Callable[[Callable[[], None]], Any]


def test_a_manifest_comes_back_as_it_was(plan: RunPlan, tmp_path: Path):
    assert read_manifest(tmp_path) is None
    assert write_manifest(tmp_path, plan) == plan == read_manifest(tmp_path)
    stored = json.loads((tmp_path / MANIFEST).read_text())
    assert stored["hash"] == plan.hash and stored["shards"] == plan.shards == 5


def test_spans_cover_every_picture_once(plan: RunPlan):
    for count, size in ((1, 1), (24, 5), (25, 5), (7, 100)):
        changed = replace(plan, count=count, shard_size=size)
        assert [i for shard in range(changed.shards) for i in changed.span(shard)] == list(range(count))


def test_the_hash_names_what_was_asked_for(plan: RunPlan):
    assert replace(plan, model={**plan.model, "name": "moved"}).hash == plan.hash
    assert replace(plan, group=4, arithmetic=()).hash == plan.hash
    for change in (
        {"seed": 6},
        {"count": 25},
        {"format": "npz"},
        {"sampling": {"ssg": None}},
        {"device": "cuda"},
    ):
        assert replace(plan, **change).hash != plan.hash


def test_another_run_is_named(plan: RunPlan, tmp_path: Path):
    write_manifest(tmp_path, replace(plan, sampling={"ssg": {"beta": 0.6}, "top_k": 900}))
    wanted = replace(plan, sampling={"ssg": {"beta": 0.3}, "top_k": 900}, seed=7, nextscale="1")
    with pytest.raises(InvalidArgumentError) as caught:
        write_manifest(tmp_path, wanted)
    message = str(caught.value)
    assert (
        "nextscale is 0 there and 1 here; sampling ssg beta is 0.6 there and 0.3 here; seed is 5" in message
    )
    check_same(tmp_path, plan, replace(plan, model={**plan.model, "name": "elsewhere"}))


def test_the_quickest_of_several_begins_the_run(plan: RunPlan, tmp_path: Path, fork: Fork):
    def begin(number: int) -> Callable[[], None]:
        return lambda: (tmp_path / str(number)).write_text(
            write_manifest(tmp_path / "run", replace(plan, arithmetic=(str(number),))).arithmetic[0]
        )  # type: ignore[return-value]

    assert [p.wait() for p in [fork(begin(i)) for i in range(6)]] == [0] * 6
    assert len({(tmp_path / str(i)).read_text() for i in range(6)}) == 1
    assert not list((tmp_path / "run" / ".work").iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"shard_size": True}, "shard size must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**64 - 3}, "seeds are from 0 up to 2\\^64, and 24 of them"),
        ({"format": "../x"}, "unknown format '../x'; known: tar, parquet, folder, npz"),
        ({"image_format": "gif"}, "unknown image format 'gif'"),
        ({"count": 2_000_000, "shard_size": 1}, "2,000,000 files; make the shards larger"),
    ],
)
def test_values_are_checked(plan: RunPlan, change: dict[str, Any], message: str):
    with pytest.raises(InvalidArgumentError, match=message):
        replace(plan, **change)


def test_an_edited_manifest_is_refused(plan: RunPlan, tmp_path: Path):
    write_manifest(tmp_path, plan)
    path = tmp_path / MANIFEST
    path.write_text(path.read_text().replace('"seed": 5', '"seed": 6'))
    with pytest.raises(InvalidArgumentError, match="was edited: its hash does not fit"):
        read_manifest(tmp_path)
    path.write_text(" " * (2 << 20))
    with pytest.raises(InvalidArgumentError, match="too large"):
        read_manifest(tmp_path)
