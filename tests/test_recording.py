"""When work is recorded, and when not. Graphs themselves need a GPU; see ``families/var/test_gpu.py``."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nextscale import recording as module
from nextscale.recording import Recordings

X = torch.arange(3.0)


class Work:
    """Doubles what it is given, and knows how often it really ran."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, x: Tensor) -> list[Tensor]:
        self.runs += 1
        return [2 * x]


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """As if there were a GPU of 800 bytes: recordings are made and replayed, and listed here."""
    made: list[Any] = []

    class Replay:
        def __init__(self, function: Callable[..., list[Tensor]], *given: Tensor) -> None:
            function(*given)
            made.append(self)

        def __call__(self, *given: Tensor) -> list[Tensor]:
            return [2 * given[0]]

    monkeypatch.setattr(module, "Recording", Replay)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (600, 800))
    monkeypatch.setattr(
        module, "_addresses", lambda modules: tuple(p.data_ptr() for p in modules[0].parameters())
    )
    return made


@torch.no_grad()
def test_on_a_cpu_everything_runs_as_it_is_written():
    work, recordings = Work(), Recordings()
    for _ in range(4):
        (found,) = recordings.run([nn.Linear(1, 1)], "a", lambda: 1, work, X)
        assert torch.equal(found, 2 * X)
    assert work.runs == 4


@torch.no_grad()
def test_the_second_run_of_a_kind_is_recorded(replays: list[Any]):
    work, recordings, layer = Work(), Recordings(), nn.Linear(1, 1)
    for count, kind in enumerate(["a", "b", "a", "a", "b", "b", "a"]):
        (found,) = recordings.run([layer], kind, lambda: 10, work, X + count)
        assert torch.equal(found, 2 * (X + count))
    assert work.runs == 4 and len(replays) == 2


@torch.no_grad()
def test_a_recording_in_use_is_not_given_to_another(replays: list[Any], monkeypatch: pytest.MonkeyPatch):
    recordings, layer, nested = Recordings(), nn.Linear(1, 1), []
    run = lambda: recordings.run([layer], "a", lambda: 10, Work(), X)  # noqa: E731
    run(), run()
    (first,) = replays

    def replay(self: Any, *given: Tensor) -> list[Tensor]:
        if self is first and not nested:  # what another thread asks for meanwhile
            nested.append(None)
            run()
        return [2 * given[0]]

    monkeypatch.setattr(type(first), "__call__", replay)
    run()
    assert len(replays) == 2


@torch.no_grad()
def test_nothing_is_recorded_that_needs_an_eighth_of_the_memory(replays: list[Any]):
    work, recordings, layer, told = Work(), Recordings(), nn.Linear(1, 1), []
    for _ in range(4):
        recordings.run([layer], "a", lambda: told.append(1) or 101, work, X)
    assert work.runs == 4 and not replays
    assert len(told) == 1  # to tell takes time, so it is asked once


@torch.no_grad()
def test_what_was_not_used_for_longest_makes_room(replays: list[Any]):
    work, recordings, layer = Work(), Recordings(), nn.Linear(1, 1)
    run = lambda kind: recordings.run([layer], kind, lambda: 40, work, X)  # noqa: E731
    for kind in "aabba":
        run(kind)
    assert len(replays) == 2
    run("c"), run("c")
    assert len(replays) == 3
    run("a")
    assert len(replays) == 3
    run("b")
    assert len(replays) == 4


@torch.no_grad()
def test_weights_that_moved_are_not_read_any_more(replays: list[Any]):
    work, recordings, layer = Work(), Recordings(), nn.Linear(1, 1)
    for _ in range(3):
        recordings.run([layer], "a", lambda: 10, work, X)
    layer.weight.data = layer.weight.data.clone()
    recordings.run([layer], "a", lambda: 10, work, X)
    assert len(replays) == 2


@torch.no_grad()
def test_settings_of_precision_are_part_of_the_kind(replays: list[Any]):
    work, recordings, layer = Work(), Recordings(), nn.Linear(1, 1)
    recordings.run([layer], "a", lambda: 10, work, X)
    with torch.backends.cudnn.flags(allow_tf32=not torch.backends.cudnn.allow_tf32):
        recordings.run([layer], "a", lambda: 10, work, X)
    assert not replays


def test_with_gradients_nothing_is_recorded(replays: list[Any]):
    work, recordings, layer = Work(), Recordings(), nn.Linear(1, 1)
    for _ in range(3):
        recordings.run([layer], "a", lambda: 10, work, X)
    assert work.runs == 3 and not replays


@torch.no_grad()
def test_what_cannot_be_recorded_runs_as_it_is_written(replays: list[Any], monkeypatch: pytest.MonkeyPatch):
    def refuse(function: Any, *given: Tensor) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(module, "Recording", refuse)
    work, recordings, layer = Work(), Recordings(), nn.Linear(1, 1)
    for _ in range(4):
        (found,) = recordings.run([layer], "a", lambda: 10, work, X)
        assert torch.equal(found, 2 * X)
    assert work.runs == 4


@torch.no_grad()
def test_copies_of_an_owner_begin_with_none(replays: list[Any]):
    recordings, layer = Recordings(), nn.Linear(1, 1)
    for _ in range(3):
        recordings.run([layer], "a", lambda: 10, Work(), X)
    assert recordings._idle
    for other in (copy.deepcopy(recordings), pickle.loads(pickle.dumps(recordings))):
        assert isinstance(other, Recordings) and not other._idle


def test_modules_elsewhere_and_modules_with_hooks_have_no_addresses():
    layer = nn.Sequential(nn.Linear(1, 1))
    assert module._addresses([layer]) is None
    with torch.device("meta"):
        assert module._addresses([nn.Linear(1, 1)]) is None
