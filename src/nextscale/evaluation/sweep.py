"""Sweeps: every cell of a :class:`~nextscale.evaluation.sweep_file.Sweep` is measured under one protocol.

Every measurement ends as one JSON file named after the hash of its protocol, so a stopped sweep goes on, and
a file with more cells draws only what is missing. All cells draw the same seeds: differences are paired.
"""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nextscale import __version__
from nextscale.errors import InvalidArgumentError
from nextscale.evaluation.features import FeatureSpace
from nextscale.evaluation.images import Advance, unheard
from nextscale.evaluation.protocol import Protocol
from nextscale.evaluation.reference import Reference
from nextscale.evaluation.report import write_result
from nextscale.evaluation.runner import PipelineImages, class_subjects, plan, run, sampling_in
from nextscale.evaluation.sweep_file import Cell, Sweep
from nextscale.families import family_of
from nextscale.families.var.pipeline import VARPipeline
from nextscale.usual import with_usual_defaults


@dataclass(frozen=True)
class Measurement:
    """One cell with one set of pictures."""

    cell: Cell
    protocol: Protocol


def plan_sweep(
    sweep: Sweep,
    pipe: VARPipeline,
    images: int,
    space: FeatureSpace,
    reference: Reference | None,
    *,
    sampling: Mapping[str, Any] | None = None,
    advance: Advance = unheard,
) -> tuple[Measurement, ...]:
    """All measurements of a sweep, every cell's sets after one another.

    images: in every set. sampling: arguments of the call that a cell need not name, a preset's.
    advance: hears of every cell that was planned; one picture is drawn for each.
    Cells that make the same pictures share a protocol. Raises InvalidArgumentError, naming the cell, for
    settings that the model does not take, and for sets that have seeds in common.
    """
    _check_sets(sweep.seeds, images)
    first, base = sweep.seeds[0], None
    asked: Any = [class_subjects(pipe)[0]]
    planned = []
    for cell in sweep.cells:
        try:
            arguments = {**(sampling or {}), **cell.arguments(pipe)}
            _check_call(pipe, arguments)
            if base is None:
                settings = {"arguments": arguments, "seed": first, "rounding": sweep.rounding}
                base = plan(pipe, images, space, reference, **settings)  # type: ignore[arg-type]
                made = base.sampling
            else:
                made = sampling_in(pipe(asked, seed=first, **arguments).settings)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{cell.name}: {error}") from None
        planned += [Measurement(cell, replace(base, sampling=made, seed=seed)) for seed in sweep.seeds]
        advance(1)
    return tuple(planned)


def _check_call(pipe: VARPipeline, arguments: Mapping[str, Any]) -> None:
    known = inspect.signature(pipe).parameters
    for name in arguments:
        if name not in known:
            raise InvalidArgumentError(f"models of the family {family_of(pipe)} have no {name}")


def _check_sets(seeds: Sequence[int], images: int) -> None:
    for one, other in itertools.combinations(sorted(seeds), 2):
        if other - one < images:
            raise InvalidArgumentError(
                f"sets of {images:,} pictures from the seeds {one} and {other} have pictures in common; give "
                f"first seeds at least {images:,} apart"
            )


class Results:
    """The results of measurements in a folder: JSON files as ``nextscale evaluate`` writes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, protocol: Protocol) -> Path:
        """Where the result of a protocol is, or will be."""
        return self.folder / f"{protocol.hash[:16]}.json"

    def get(self, protocol: Protocol) -> dict[str, Any] | None:
        """A finished result of this version; another version may draw other pictures."""
        try:
            stored = json.loads(self.path(protocol).read_text(encoding="utf-8"))
            fits = (stored["protocol_hash"], stored["versions"]["nextscale"]) == (protocol.hash, __version__)
        except (OSError, ValueError, KeyError, TypeError):  # not there, or not whole: it is measured again
            return None
        return stored if fits else None

    def missing(self, measurements: Sequence[Measurement]) -> Iterator[Measurement]:
        """Those without a result, each protocol once."""
        seen: set[str] = set()
        for measurement in measurements:
            protocol = measurement.protocol
            if protocol.hash not in seen and self.get(protocol) is None:
                yield measurement
            seen.add(protocol.hash)

    @with_usual_defaults
    def measure(
        self,
        measurement: Measurement,
        pipe: VARPipeline,
        space: FeatureSpace,
        reference: Reference | None,
        work: Path,
        batch_size: int,
        *,
        preset: str | None = None,
        advance: Advance = unheard,
    ) -> None:
        """Draw what is missing of one measurement, and write its result."""
        protocol = measurement.protocol
        self.folder.mkdir(parents=True, exist_ok=True)
        images = PipelineImages(pipe, protocol)
        result = run(protocol, images, space, reference, work, batch_size=batch_size, advance=advance)
        heading = f"{protocol.model['name']} · {measurement.cell.name} · from seed {protocol.seed}"
        write_result(result, self.path(protocol), heading=heading, preset=preset)
