"""Measure what docs/evidence.md says of SSG, and write the files that the page is made from.

    python benchmarks/evidence/measure.py --output docs/results/evidence

Draws some hundreds of thousands of pictures: hours on a CPU. Everything drawn stays in ``--work``,
and a stopped run goes on. A second process with ``--reverse`` takes the same work from the other end.
``--images`` makes the final sets smaller; a later run with more goes on from them.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from design import (
    ARMS,
    FAILURES,
    FINAL_IMAGES,
    FINAL_SEED,
    FINAL_SETS,
    KEPT,
    MAIN,
    MODEL,
    REFINED_IMAGES,
    REPLICATES,
    SELECTION_IMAGES,
    SELECTION_SEED,
    STRENGTHS,
    TOP_K,
    WITHOUT,
    Cell,
    cells,
)
from wrong import draw_on_wrong_grids

from nextscale import ScaledSpatialGuidance, VARPipeline, __version__
from nextscale.evaluation.comparison import Figure, RealSide, arm_figures, compare
from nextscale.evaluation.features import open_space
from nextscale.evaluation.files import write_json
from nextscale.evaluation.metrics import frechet_distance
from nextscale.evaluation.moments import Moments
from nextscale.evaluation.neighbours import manifold_scores
from nextscale.evaluation.protocol import PRESETS, Protocol, to_uint8
from nextscale.evaluation.provenance import versions
from nextscale.evaluation.reference import measure_reference, open_reference
from nextscale.evaluation.runner import PipelineImages, draw, generated_shards, plan
from nextscale.evaluation.shards import Shards
from nextscale.evaluation.sweep_file import SEED_STEP

CURVE_FIGURES = ("precision", "recall")


class Bench:
    """The model, the ruler and the folder that all phases share."""

    def __init__(self, work: Path, batch_size: int, reverse: bool) -> None:
        preset = PRESETS["cifar10"]
        self.work, self.batch_size, self.reverse = work, batch_size, reverse
        self.pipe = VARPipeline.from_pretrained(MODEL)
        self.space = open_space(preset.space)
        self.reference = open_reference(str(preset.reference))
        self.real = measure_reference(self.reference, self.space, Shards(work / "reference", 0))
        self.base = plan(self.pipe, 10, self.space, self.reference)
        self.real_kernel: float | None = None
        self.drawn, self.started = 0, time.monotonic()

    def protocol(self, cell: Cell, images: int, seed: int) -> Protocol:
        planned = plan(self.pipe, images, self.space, self.reference, arguments=cell.arguments, seed=seed)
        return replace(planned, batch=None)

    def draw(self, protocol: Protocol) -> Shards:
        """Features of the pictures of a protocol; only those that are missing are drawn."""
        images = PipelineImages(self.pipe, protocol)
        return draw(
            protocol, images, self.space, self.work, batch_size=self.batch_size, advance=self._advance
        )

    def _advance(self, count: int) -> None:
        self.drawn += count

    def order(self, items: Iterable[Any]) -> list[Any]:
        listed = list(items)
        return listed[::-1] if self.reverse else listed

    def say(self, text: str) -> None:
        minutes = (time.monotonic() - self.started) / 60
        rate = self.drawn / max(60 * minutes, 1e-9)
        print(f"[{minutes:6.1f} min, {self.drawn:7d} pictures, {rate:5.1f} a second] {text}", flush=True)

    # ------------------------------------------------------------------ one cell on the selection seeds

    def selected(self, cell: Cell, images: int, *, neighbours: bool = False) -> dict[str, Any]:
        """Figures of a cell on the first ``images`` selection seeds, from a file if they are known."""
        protocol = self.protocol(cell, images, SELECTION_SEED)
        path = self.work / "cells" / f"{protocol.hash[:16]}.json"
        known = json.loads(path.read_text()) if path.is_file() else {}
        if known and (not neighbours or "recall" in known):
            return dict(known)
        shards = self.draw(protocol)
        row = self.figures(cell, shards.tensor("features"), shards.tensor("logits"), neighbours=neighbours)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, row)
        said = f"FD {row['fd']:.2f}, KD {1000 * row['kd']:.1f}"
        self.say(f"{cell.arm}, beta {cell.beta}, {dict(cell.settings)}: {said}")
        return row

    def kernel_distance(self, features: torch.Tensor) -> float:
        """Of all pairs; those among the real pictures are summed once."""
        if self.real_kernel is None:
            self.real_kernel = RealSide.of(self.real, self.base).kernel
        x, y = features.double(), self.real.features.double()
        own = ((x @ x.T / x.shape[1] + 1) ** 3).fill_diagonal_(0).sum() / (len(x) * (len(x) - 1))
        return float(own + self.real_kernel - 2 * ((x @ y.T / x.shape[1] + 1) ** 3).mean())

    def figures(
        self, cell: Cell, features: torch.Tensor, logits: torch.Tensor, *, neighbours: bool
    ) -> dict[str, Any]:
        """Of pictures in class order, as a row of a table."""
        labels = torch.arange(len(logits)) % logits.shape[1]
        gaussian = Moments.of(features).gaussian()
        row = {
            **cell.to_dict(),
            "images": len(features),
            "seed": SELECTION_SEED,
            "fd": frechet_distance(gaussian, self.real.statistics["features"]).value,
            "kd": self.kernel_distance(features),
            "accuracy": float((logits.argmax(1) == labels).double().mean()),
        }
        if neighbours:
            scores = manifold_scores(features, self.real.features)
            row |= {name: getattr(scores, name) for name in CURVE_FIGURES}
        return row


# ---------------------------------------------------------------------- the phases


def select(bench: Bench) -> list[dict[str, Any]]:
    """All cells with few pictures."""
    return [bench.selected(cell, SELECTION_IMAGES) for cell in bench.order(cells())]


def refine(bench: Bench, coarse: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best cells of every arm with more pictures."""
    by_kd = {_key(row): row["kd"] for row in coarse}
    chosen = []
    for arm in ARMS:
        mine = sorted((c for c in cells() if c.arm == arm), key=lambda c: by_kd[_key(c.to_dict())])
        chosen += mine[:KEPT]
    return [bench.selected(cell, REFINED_IMAGES) for cell in bench.order(chosen)]


def curves(bench: Bench) -> list[dict[str, Any]]:
    """No SSG and the main arm on the whole grid, for distance against precision and recall."""
    chosen = [c for c in cells() if c.arm in (WITHOUT, MAIN)]
    return [bench.selected(c, REFINED_IMAGES, neighbours=True) for c in bench.order(chosen)]


def failures(bench: Bench, best: Cell) -> list[dict[str, Any]]:
    """Strengths that are too large, at the best settings of the main arm."""
    chosen = [Cell(MAIN, beta, best.settings) for beta in (*STRENGTHS, *FAILURES)]
    chosen.insert(0, Cell(WITHOUT, 0.0, best.settings))
    return [bench.selected(c, REFINED_IMAGES, neighbours=True) for c in bench.order(chosen)]


def wrong_grids(bench: Bench, best: Cell) -> dict[str, Any]:
    """The smallest of the large strengths, on grids that are not the model's."""
    path = bench.work / "cells" / "wrong-grids.json"
    if path.is_file():
        return dict(json.loads(path.read_text()))
    ssg = ScaledSpatialGuidance(FAILURES[0], **(ARMS[MAIN] or {}))
    settings = {**best.settings, "top_k": TOP_K}
    rows = []
    for start in range(0, REFINED_IMAGES, bench.batch_size):
        numbers = range(start, min(start + bench.batch_size, REFINED_IMAGES))
        labels, seeds = [n % 10 for n in numbers], [SELECTION_SEED + n for n in numbers]
        images = draw_on_wrong_grids(bench.pipe, labels, seeds, ssg, **settings)
        rows.append(bench.space(to_uint8(images)))
    features, logits = (torch.cat([r[name] for r in rows]) for name in ("features", "logits"))
    cell = Cell(MAIN, FAILURES[0], best.settings)
    row = bench.figures(cell, features, logits, neighbours=True) | {"arm": "wrong grids"}
    write_json(path, row)
    return row


def best_cells(refined: Sequence[dict[str, Any]]) -> dict[str, Cell]:
    """The settings of every arm with the lowest distance among the refined ones."""
    best: dict[str, Cell] = {}
    for arm in ARMS:
        row = min((r for r in refined if r["arm"] == arm), key=lambda r: r["fd"])
        settings = {k: row[k] for k in ("temperature", "top_p", "guidance_scale")}
        best[arm] = Cell(arm, row["beta"], settings)
    return best


def finals(bench: Bench, best: dict[str, Cell], images: int) -> dict[str, list[Protocol]]:
    """Every arm at its best settings, on fresh seeds; sets after one another, so all arms grow alike."""
    protocols = {
        arm: [bench.protocol(cell, images, FINAL_SEED + i * SEED_STEP) for i in range(FINAL_SETS)]
        for arm, cell in best.items()
    }
    for i in range(FINAL_SETS):
        for arm in bench.order(protocols):
            bench.draw(protocols[arm][i])
            bench.say(f"final set {i}: {arm}")
    return protocols


def conclude(bench: Bench, best: dict[str, Cell], protocols: dict[str, list[Protocol]]) -> dict[str, Any]:
    """Figures, differences from no SSG with intervals, and seconds."""
    real = RealSide.of(bench.real, protocols[WITHOUT][0])
    figures: dict[str, list[dict[str, Figure]]] = {}
    seconds: dict[str, list[float]] = {}
    for arm, sets in protocols.items():
        shards = [generated_shards(p, bench.work) for p in sets]
        figures[arm] = [arm_figures(s, bench.real, p, real=real) for s, p in zip(shards, sets, strict=True)]
        seconds[arm] = [s.seconds()["images"] for s in shards]
        bench.say(f"figures: {arm}")
    gaps = compare(figures, replicates=REPLICATES)
    return {
        arm: {
            **cell.to_dict(),
            "ssg": None if cell.ssg is None else cell.ssg.to_dict(),
            "per_set": [{name: f.value for name, f in found.items()} for found in figures[arm]],
            "differences": {name: gap.to_dict() for name, gap in gaps.get(arm, {}).items()},
            "seconds_of_pictures": seconds[arm],
            "protocol_hashes": [p.hash for p in protocols[arm]],
        }
        for arm, cell in best.items()
    }


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("arm", "beta", "temperature", "top_p", "guidance_scale"))


def _write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=_key))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("docs/results/evidence"))
    parser.add_argument("--work", type=Path, default=Path("runs/evidence"))
    parser.add_argument("--images", type=int, default=FINAL_IMAGES, help="in every final set")
    parser.add_argument("--batch-size", type=int, default=40)
    parser.add_argument("--reverse", action="store_true", help="for a second process: from the other end")
    args = parser.parse_args()

    bench = Bench(args.work, args.batch_size, args.reverse)
    coarse = select(bench)
    refined = refine(bench, coarse)
    best = best_cells(refined)
    protocols = finals(bench, best, args.images)
    curve = curves(bench)
    failed = [*failures(bench, best[MAIN]), wrong_grids(bench, best[MAIN])]
    if args.reverse:
        return  # the figures are the first process's
    args.output.mkdir(parents=True, exist_ok=True)
    for name, rows in (("select", coarse), ("refine", refined), ("curves", curve), ("failures", failed)):
        _write_csv(rows, args.output / f"{name}.csv")
    result = {
        "arms": conclude(bench, best, protocols),
        "conditions": {
            "nextscale": __version__,
            **versions(),
            "model": bench.base.model,
            "features": bench.base.features,
            "reference": bench.base.reference,
            "images_per_set": args.images,
            "sets": FINAL_SETS,
            "replicates": REPLICATES,
            "threads": torch.get_num_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        },
    }
    write_json(args.output / "arms.json", result)
    bench.say(f"written: {args.output}")


if __name__ == "__main__":
    main()
