"""Draw docs/images/failures.png: strengths that are too large, and SSG on wrong grids.

python benchmarks/evidence/pictures.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from design import FAILURES, MAIN, MODEL, TOP_K
from PIL import Image, ImageDraw
from torch import Tensor
from wrong import draw_on_wrong_grids

from nextscale import ScaledSpatialGuidance, VARPipeline

ZOOM, GAP, MARGIN = 2, 2, 110


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", type=Path, default=Path("docs/results/evidence/arms.json"))
    parser.add_argument("--output", type=Path, default=Path("docs/images/failures.png"))
    args = parser.parse_args()
    best = json.loads(args.arms.read_text())["arms"][MAIN]
    settings = {k: best[k] for k in ("temperature", "top_p", "guidance_scale")} | {"top_k": TOP_K}

    pipe = VARPipeline.from_pretrained(MODEL)
    labels = list(range(10))
    rows: list[tuple[str, Tensor]] = []
    for beta in (0.0, best["beta"], *FAILURES):
        out = pipe(labels, ssg=beta or None, seed=0, output_type="pt", **settings)
        rows.append((f"SSG {beta:g}" if beta else "no SSG", out.images))
    wrong = draw_on_wrong_grids(pipe, labels, labels, ScaledSpatialGuidance(FAILURES[0]), **settings)
    rows.append((f"SSG {FAILURES[0]:g}, wrong grids", wrong))

    side = 32 * ZOOM + GAP
    sheet = Image.new("RGB", (MARGIN + side * len(labels), side * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for y, (name, images) in enumerate(rows):
        pen.multiline_text((4, y * side + side // 3), name.replace(", ", "\n"), fill="black")
        pixels = (images * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for x, one in enumerate(pixels):
            picture = Image.fromarray(one).resize((32 * ZOOM, 32 * ZOOM), Image.Resampling.NEAREST)
            sheet.paste(picture, (MARGIN + x * side, y * side))
    sheet.save(args.output, optimize=True)
    print(args.output)


if __name__ == "__main__":
    main()
