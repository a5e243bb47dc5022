"""Measure the embedded CIFAR-10 model on held-out data, and write the figures with their conditions.

    python benchmarks/embedded.py --data path/to/cifar10 --output docs/results/cifar10/measured.json

``--data`` is a folder with ``test*.parquet`` in the hub's layout. Every cell of the grid (classifier-free
guidance x SSG strength) generates ``--images`` pictures, classes in equal shares, from the same seeds.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import torch

import nextscale
from nextscale import VARPipeline
from nextscale.evaluation.recognition import load_classifier, recognised, share_interval
from nextscale.training.classifier import accuracy
from nextscale.training.data import open_images
from nextscale.training.tokenizer import measure_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--model", default="cifar10")
    parser.add_argument("--classifier", default="cifar10-classifier")
    parser.add_argument("--images", type=int, default=1000, help="generated per cell")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first picture of every cell")
    parser.add_argument("--cfg", type=float, nargs="+", default=[0.0, 1.5, 3.0])
    parser.add_argument("--ssg", type=float, nargs="+", default=[0.0])
    parser.add_argument("--top-k", type=int, default=None)
    parser.add_argument("--temperature", type=float, default=None, help="default: the model's")
    parser.add_argument("--output", type=Path, default=None)
    args = parser.parse_args()

    held_out = open_images(args.data, size=32, split="test")
    pipe = VARPipeline.from_pretrained(args.model)
    classifier = load_classifier(args.classifier)
    result: dict[str, object] = {
        "nextscale": nextscale.__version__,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "held_out_images": len(held_out),
        "tokenizer": measure_tokenizer(pipe.tokenizer, held_out),
        "classifier_accuracy": accuracy(classifier, held_out),
    }
    print(json.dumps(result, indent=2), flush=True)
    labels = [i % 10 for i in range(args.images)]
    cells = []
    for cfg in args.cfg:
        for beta in args.ssg:
            start = time.monotonic()
            out = pipe(
                labels,
                guidance_scale=cfg,
                ssg=beta or None,
                top_k=args.top_k,
                temperature=args.temperature,
                seed=args.seed,
                batch_size=100,
                output_type="pt",
            )
            seconds = time.monotonic() - start
            hits = int(recognised(classifier, out.images, labels).sum())
            low, high = share_interval(hits, args.images)
            settings = {k: out.settings[k] for k in ("top_k", "top_p", "temperature", "sampler", "dtype")}
            cells.append(
                {
                    "cfg": cfg,
                    "ssg": beta,
                    "images": args.images,
                    "first_seed": args.seed,
                    "recognised": hits / args.images,
                    "interval95": [low, high],
                    "seconds": seconds,
                    **settings,
                }
            )
            print(
                f"cfg {cfg:<4} ssg {beta:<5} recognised {hits / args.images:.3f} [{low:.3f}, {high:.3f}] "
                f"in {seconds:.0f} s",
                flush=True,
            )
    result["recognised"] = cells
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
