"""Running a sweep: every cell as the protocol says, stopped and continued, and its tables."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pyarrow import parquet
from torch import Tensor

from nextscale import VARPipeline
from nextscale.errors import InvalidArgumentError
from nextscale.evaluation import shards as shards_module
from nextscale.evaluation.features import FeatureSpace, open_space
from nextscale.evaluation.images import CalledImages
from nextscale.evaluation.reference import Reference
from nextscale.evaluation.runner import PipelineImages, plan, run
from nextscale.evaluation.sweep import Measurement, Results, plan_sweep
from nextscale.evaluation.sweep_file import Sweep
from nextscale.evaluation.sweep_table import CellMean, gain, means, rows, write_csv, write_parquet

STORED: dict[str, Any] = {
    "seeds": [0, 100],
    "axes": {"beta": [0, 0.8], "schedule": ["constant", "linear"]},
    "settings": {"top_k": 9},
    "cell": [{"name": "hot", "temperature": 1.5, "ssg": "off"}],
}
IMAGES = 30


@pytest.fixture(scope="module")
def space() -> FeatureSpace:
    return open_space("cifar10-classifier", device="cpu")


@pytest.fixture(scope="module")
def reference(pictures: Tensor) -> Reference:
    return Reference.of_images("made", CalledImages(lambda index: pictures[index], 60, (32, 32)))


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "SHARD", 20)


def planned(pipe: VARPipeline, space: Any, reference: Any, **changes: Any) -> tuple[Measurement, ...]:
    return plan_sweep(Sweep.from_dict({**STORED, **changes}), pipe, IMAGES, space, reference)


def measure(
    measurements: tuple[Measurement, ...],
    folder: Path,
    pipe: VARPipeline,
    space: Any,
    reference: Any,
    **more: Any,
) -> Results:
    results = Results(folder / "results")
    for one in results.missing(measurements):
        results.measure(one, pipe, space, reference, folder / "work", 10, **more)
    return results


@pytest.fixture(scope="module")
def whole(
    pipe: VARPipeline, space: FeatureSpace, reference: Reference, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tuple[Measurement, ...], Results]:
    """The sweep above, from begin to end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards_module, "SHARD", 20)
        measurements = planned(pipe, space, reference)
        return measurements, measure(measurements, tmp_path_factory.mktemp("whole"), pipe, space, reference)


def numbers(table: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Everything but the time it took."""
    return [{k: v for k, v in row.items() if "second" not in k} for row in table]


def test_cells_are_protocols(pipe: VARPipeline, space: FeatureSpace, reference: Reference, whole: Any):
    measurements, results = whole
    assert len(measurements) == 5 * 2
    hashes = [m.protocol.hash for m in measurements]
    assert len(set(hashes)) == 2 * (5 - 1)  # without guidance the schedule makes no difference
    assert hashes[:2] == hashes[2:4] and len({m.protocol.ruler for m in measurements}) == 1
    guided = measurements[6]
    arguments = {"ssg": guided.cell.arguments(pipe)["ssg"], "top_k": 9}
    assert guided.protocol == plan(pipe, IMAGES, space, reference, arguments=arguments)
    assert len(list(results.folder.glob("*.json"))) == len(set(hashes))


def test_results_are_those_of_a_measurement_alone(
    pipe: VARPipeline, space: FeatureSpace, reference: Reference, whole: Any, tmp_path: Path
):
    measurements, results = whole
    protocol = measurements[5].protocol
    alone = run(protocol, PipelineImages(pipe, protocol), space, reference, tmp_path, batch_size=10)
    stored = results.get(protocol)
    assert stored is not None and stored["scores"] == alone.figures.scores
    assert stored["protocol"]["seed"] == 100 and stored["protocol_hash"] == protocol.hash


class StopError(Exception):
    pass


def test_a_stopped_sweep_goes_on_and_ends_the_same(
    pipe: VARPipeline, space: FeatureSpace, reference: Reference, whole: Any, tmp_path: Path
):
    measurements, results = whole
    done = 0

    def stop(pictures: int) -> None:
        nonlocal done
        done += pictures
        if done > 85:  # in the second file of the third measurement
            raise StopError

    with pytest.raises(StopError):
        measure(measurements, tmp_path, pipe, space, reference, advance=stop)
    assert len(rows(measurements, Results(tmp_path / "results"))) == 4  # two, and those that are the same
    drawn: list[int] = []
    resumed = measure(measurements, tmp_path, pipe, space, reference, advance=drawn.append)
    assert sum(drawn) == 8 * IMAGES - 80
    assert numbers(rows(measurements, resumed)) == numbers(rows(measurements, results))
    again: list[int] = []
    measure(measurements, tmp_path, pipe, space, reference, advance=again.append)
    assert again == []


def test_more_cells_draw_only_what_is_missing(
    pipe: VARPipeline, space: FeatureSpace, reference: Reference, tmp_path: Path
):
    few = planned(pipe, space, reference, axes={"beta": [0.8]}, cell=[], seeds=1)
    measure(few, tmp_path, pipe, space, reference)
    more = planned(pipe, space, reference, axes={"beta": [0.4, 0.8]}, cell=[], seeds=1)
    drawn: list[int] = []
    results = measure(more, tmp_path, pipe, space, reference, advance=drawn.append)
    assert sum(drawn) == IMAGES and len(rows(more, results)) == 2


def test_results_that_are_damaged_or_old_are_measured_again(whole: Any, tmp_path: Path):
    measurements, results = whole
    protocol = measurements[0].protocol
    copy = Results(tmp_path)
    text = results.path(protocol).read_text()
    for damaged in (
        text[:-30],
        "[]",
        text.replace('"nextscale": "', '"nextscale": "0.0.0.'),
        text.replace(protocol.hash, "0"),
    ):
        copy.path(protocol).write_text(damaged)
        assert copy.get(protocol) is None
    copy.path(protocol).write_text(text)
    assert copy.get(protocol) == json.loads(text)
    assert [m.protocol.hash for m in copy.missing(measurements[:4])] == [measurements[1].protocol.hash]


def test_what_a_model_does_not_take_names_the_cell(pipe: VARPipeline, space: FeatureSpace):
    with pytest.raises(InvalidArgumentError, match=r"^top-p 7: top_p must be"):
        planned(pipe, space, None, axes={"top_p": [0.5, 7]})
    with pytest.raises(InvalidArgumentError, match=r"^odd: beta has 2 values, but"):
        planned(pipe, space, None, cell=[{"name": "odd", "beta": [0, 1]}])
    with pytest.raises(InvalidArgumentError, match="models of the family var have no tile"):
        plan_sweep(Sweep.from_dict(STORED), pipe, IMAGES, space, None, sampling={"tile": 3})
    with pytest.raises(InvalidArgumentError, match="from the seeds 0 and 29 have pictures in common"):
        planned(pipe, space, None, seeds=[29, 0])


def test_tables(whole: Any, tmp_path: Path):
    measurements, results = whole
    table = rows(measurements, results)
    assert [(row["cell"], row["seed"]) for row in table[4:6]] == [
        ("β 0.8, schedule constant", s) for s in (0, 100)
    ]
    assert table[2]["ssg"] == "off" and (table[2]["beta"], table[2]["schedule"]) == (0.0, "linear")
    assert table[6]["schedule"] == "linear" and table[6]["prior"] == "dse" and table[6]["top_k"] == 9
    assert table[0]["fd"] == table[2]["fd"] != table[4]["fd"]
    assert results.get(measurements[0].protocol) is not None and (results.folder / table[0]["file"]).is_file()

    write_csv(table, tmp_path / "t.csv")
    write_parquet(table, tmp_path / "t.parquet")
    with (tmp_path / "t.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    stored = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert len(read) == len(stored) == 10 and list(read[0]) == list(stored[0])
    for row, text, typed in zip(table, read, stored, strict=True):
        assert float(text["fd"]) == typed["fd"] == row["fd"]
        assert text["schedule"] == (typed["schedule"] or "") == (row["schedule"] or "")
        assert text["protocol_hash"] == typed["protocol_hash"] == row["protocol_hash"]


def test_columns_of_several_types(tmp_path: Path):
    table = [{"a": 1, "temperature": 0.5}, {"a": 2.5, "new": "x", "temperature": "0.5/1"}]
    write_parquet(table, tmp_path / "t.parquet")
    assert parquet.read_table(tmp_path / "t.parquet").to_pylist() == [
        {"a": 1.0, "new": None, "temperature": "0.5"},
        {"a": 2.5, "new": "x", "temperature": "0.5/1"},
    ]
    write_csv(table, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "a,new,temperature\n1,,0.5\n2.5,x,0.5/1\n"


def test_means_and_differences_from_no_guidance(whole: Any):
    measurements, results = whole
    table, averages = rows(measurements, results), means(measurements, results)
    assert [mean.cell.name for mean in averages] == [m.cell.name for m in measurements[::2]]
    guided, off = averages[2], averages[0]
    values = [row["fd"] for row in table[4:6]]
    assert guided.mean["fd"] == pytest.approx(sum(values) / 2) and guided.seeds == [0, 100]
    assert guided.spread["fd"] == pytest.approx(abs(values[0] - values[1]) / math.sqrt(2))
    differences = [values[i] - table[i]["fd"] for i in range(2)]
    assert guided.gains["fd"] == gain(differences)
    assert off.gains == {}
    row = guided.to_row()
    assert row["beta"] == 0.8 and row["fd_minus_off"] == pytest.approx(sum(differences) / 2)
    one = means(measurements[4:5], results)[0]
    assert one.spread["fd"] is None and one.gains == {}  # nothing to compare with is among these


def test_intervals_are_students():
    found = gain([1.0, 2.0, 3.0])
    assert found.value == 2 and found.low is not None and found.high is not None
    assert found.high - 2 == pytest.approx(4.303 / math.sqrt(3)) and 2 - found.low == pytest.approx(
        found.high - 2
    )
    assert gain([1.0]).low is None
    covered = 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        low, high = (lambda g: (g.low, g.high))(gain(torch.randn(4, generator=generator).tolist()))
        covered += low <= 0 <= high
    assert 0.92 < covered / 400 < 0.98


def test_a_cell_without_figures():
    assert CellMean(Sweep.from_dict({"axes": {"beta": [1]}}).cells[0]).to_row() == {
        "cell": "β 1",
        "sets": 0,
        "beta": 1.0,
    }
