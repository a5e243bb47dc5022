"""How much of a picture SSG leaves as it was, by the race and by the sampler before it.

    python benchmarks/pairing.py --json docs/results/pairing.json --picture docs/images/pairing.png

With ``--page docs/pairing.md`` the table there is made anew.

Step by step: both distributions, without and with SSG, are sampled from on the same prefix with the same
random numbers, and the share of tokens (or bits) that agree is counted; the overlap of the two distributions
is the most there can be. Whole pictures: the correlation of all pixels of two runs from the same seeds.

The sampler before the race was inverse CDF over sorted probabilities, one uniform number per decision. It is
kept here alone, to be compared with.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nextscale.cli.sheets import Block, comparison
from nextscale.families import load_pretrained
from nextscale.generation.loop import StepInfo
from nextscale.generation.tokens import Drawer, Filters

SAMPLERS = {"sorted": "sorted inverse CDF", "race": "the race"}


def sorted_inverse_cdf(filtered: Tensor, uniform: Tensor) -> Tensor:
    """Sample from filtered logits ``(..., V)`` with float64 numbers ``(...)`` in [0, 1), likeliest first."""
    descending, order = filtered.sort(dim=-1, descending=True, stable=True)
    mass = (descending.double() - descending[..., :1]).exp().cumsum(-1)
    rank = torch.searchsorted(mass, uniform.unsqueeze(-1) * mass[..., -1:], right=True)
    return order.gather(-1, rank.clamp_max(mass.shape[-1] - 1)).squeeze(-1)


def sample_sorted(self: Drawer, logits: Tensor, step: int, positions: Tensor | None = None) -> Tensor:
    """Stand for ``Drawer.__call__``: one uniform number per decision, from the image's own generator."""
    if positions is not None:
        raise ValueError("the sampler before the race is kept for whole grids only")
    seeds = [seed & (2**64 - 1) for seed in self.noise.seeds.tolist()]
    logits = logits.unflatten(-1, (-1, 2)) if self.bits else logits
    shape = logits.shape[1:-1]
    uniform = [
        torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed * 64 + step))
        for seed in seeds
    ]
    return sorted_inverse_cdf(self.filters(logits, step).float(), torch.stack(uniform).to(logits.device))


@contextmanager
def sampling(function: Any) -> Iterator[None]:
    """Let every pipeline sample by another function."""
    known = Drawer.__call__
    Drawer.__call__ = function  # type: ignore[method-assign]
    try:
        yield
    finally:
        Drawer.__call__ = known  # type: ignore[method-assign]


def per_step(pipe: Any, subjects: Sequence[Any], seeds: list[int], strength: float) -> list[dict[str, float]]:
    """Shares of the decisions of every step that SSG leaves as they were, on the prefixes made without it."""
    plain = pipe(subjects, seed=seeds, batch_size=len(seeds))
    filters = Filters(**{k: plain.settings[k] for k in ("temperature", "top_k", "top_p", "min_p")})
    rows: list[dict[str, float]] = []
    tokens = [maps.flatten(1, 2) for maps in plain.tokens]

    def forced(self: Drawer, logits: Tensor, step: int, positions: Tensor | None = None) -> Tensor:
        return tokens[step].to(logits.device)

    def compare(info: StepInfo) -> None:
        drawer = Drawer("paired", filters, seeds, info.logits.device, bits=info.tokens.ndim == 4)
        pairs = [info.logits, info.guided]
        shape = (-1, 2) if drawer.bits else (-1,)
        p, q = (filters(x.unflatten(-1, shape), info.index).double().softmax(-1) for x in pairs)
        race, before = ([f(drawer, x, info.index) for x in pairs] for f in (known, sample_sorted))
        rows.append(
            {
                "sorted": float((before[0] == before[1]).double().mean()),
                "race": float((race[0] == race[1]).double().mean()),
                "overlap": float(torch.minimum(p, q).sum(-1).mean()),
            }
        )

    known = Drawer.__call__
    with sampling(forced):
        pipe(subjects, seed=seeds, batch_size=len(seeds), ssg=strength, on_step=compare)
    return rows[1:]  # the first step has no prior


def pictures(pipe: Any, subjects: Sequence[Any], seeds: list[int], ssg: float | None, sampler: str) -> Tensor:
    """Pictures ``(B, 3, H, W)`` by one of the two samplers."""
    with sampling(sample_sorted if sampler == "sorted" else Drawer.__call__):
        return pipe(subjects, seed=seeds, ssg=ssg, output_type="pt", batch_size=40).images


def correlation(one: Tensor, other: Tensor) -> float:
    """Of all pixels of two batches."""
    return float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]).double())[0, 1])


def table(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    strengths = list(figures["steps"])
    lines = [
        "| | " + " | ".join(f"SSG {s}" for s in strengths) + " |",
        "|---|" + "---|" * len(strengths),
    ]
    names = {**SAMPLERS, "overlap": "overlap of the distributions, the most there can be"}
    for key, name in names.items():
        cells = [" ".join(f"{row[key]:.2f}" for row in figures["steps"][s]) for s in strengths]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    for key, name in SAMPLERS.items():
        cells = [f"{figures['correlation'][s][key]:.3f}" for s in strengths]
        lines.append(f"| whole pictures, correlation: {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def put_table(page: Path, figures: dict[str, Any]) -> None:
    """Put the table into a page, between its marks."""
    before, rest = page.read_text().split("<!-- table -->\n")
    after = rest[rest.index("<!-- end -->") :]
    page.write_text(f"{before}<!-- table -->\n{table(figures)}\n{after}")


def show(pipe: Any, subjects: Sequence[Any], seeds: list[int], strength: float, target: Path) -> None:
    """Write the same seeds without and with SSG, by both samplers side by side."""
    blocks = []
    for key, title in SAMPLERS.items():
        images: list[Any] = []
        with sampling(sample_sorted if key == "sorted" else Drawer.__call__):
            for ssg in (None, strength):
                images += pipe(subjects, seed=seeds, ssg=ssg).images
        blocks.append(Block({"sorted": "before", "race": "now"}[key], title, images))
    zoom = max(1, 96 // max(pipe.image_size))
    rows = ["no SSG", f"SSG {strength:g}"]
    caption = [f"{pipe.name}, seeds {seeds[0]} to {seeds[-1]}, the same in every row"]
    sheet, _ = comparison(blocks, rows, columns=len(seeds), zoom=zoom, caption=caption)
    sheet.save(target, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="cifar10", help="an embedded name, a folder or a hub id")
    parser.add_argument("--subjects", nargs="*", help="classes or prompts; default: all classes")
    parser.add_argument("--images", type=int, default=40, help="pictures of the comparison step by step")
    parser.add_argument("--whole", type=int, default=400, help="whole pictures of the correlation")
    parser.add_argument("--ssg", type=float, nargs="*", default=[0.3, 0.6])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", type=Path, help="put the table into this page")
    parser.add_argument("--picture", type=Path, help="write four pictures by both samplers, a .png")
    given = parser.parse_args()
    pipe = load_pretrained(given.model)
    names: Sequence[Any] = given.subjects or range(pipe.transformer.config.num_classes)

    def some(count: int) -> tuple[list[Any], list[int]]:
        return [names[i % len(names)] for i in range(count)], [given.seed + i for i in range(count)]

    begun, steps, whole = time.perf_counter(), {}, {}
    for strength in given.ssg:
        steps[f"{strength:g}"] = per_step(pipe, *some(given.images), strength)
        whole[f"{strength:g}"] = {
            key: correlation(*(pictures(pipe, *some(given.whole), s, key) for s in (None, strength)))
            for key in SAMPLERS
        }
    figures = {
        "model": given.model,
        "images": given.images,
        "whole": given.whole,
        "seed": given.seed,
        "settings": {k: v for k, v in pipe.defaults.items() if k != "ssg"},
        "steps": steps,
        "correlation": whole,
        "seconds": round(time.perf_counter() - begun, 1),
    }
    print(table(figures))
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=1) + "\n")
    if given.page is not None:
        put_table(given.page, figures)
    if given.picture is not None:
        show(pipe, *some(4), given.ssg[0], given.picture)


if __name__ == "__main__":
    main()
