"""Draw docs/figures/training_curves.png from the logs in docs/results/cifar10.

python docs/figures/training_curves.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
LOGS = HERE.parent / "results" / "cifar10"


def series(name: str, key: str, *, held_out: bool) -> tuple[list[float], list[float]]:
    """Images seen (thousands) and a figure, from the training records or the held-out ones."""
    records = [json.loads(line) for line in (LOGS / f"{name}.jsonl").open()]
    per_step = next(r["images"] / r["step"] for r in records if "images" in r)
    chosen = [r for r in records if ("eval" in r) == held_out]
    x = [r["step"] * per_step / 1000 for r in chosen]
    return x, [(r["eval"] if held_out else r)[key] for r in chosen]


def main() -> None:
    fig, axes = plt.subplots(1, 3, figsize=(12, 3.4), constrained_layout=True)
    tokenizer, transformer, classifier = axes
    tokenizer.plot(
        *series("tokenizer", "psnr", held_out=False), color="0.75", lw=1, label="training batch, pooled"
    )
    tokenizer.plot(*series("tokenizer", "psnr", held_out=True), "o-", ms=4, label="test, mean over images")
    tokenizer.set(title="Tokenizer", ylabel="PSNR (dB)")
    for scale in range(6):
        x, y = series("transformer", f"loss_{scale}", held_out=True)
        transformer.plot(x, y, "o-", ms=3, lw=1, label=f"scale {scale}")
    transformer.set(title="Transformer, test", ylabel="nats per token")
    classifier.plot(
        *series("classifier", "accuracy", held_out=False), color="0.75", lw=1, label="training batch"
    )
    classifier.plot(*series("classifier", "accuracy", held_out=True), "o-", ms=4, label="test")
    classifier.set(title="Classifier", ylabel="accuracy")
    for axis in axes:
        axis.set_xlabel("images seen (thousands)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    fig.savefig(HERE / "training_curves.png", dpi=110)


if __name__ == "__main__":
    main()
