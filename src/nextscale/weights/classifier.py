"""The small classifier from its files."""

from __future__ import annotations

from pathlib import Path

from nextscale.nn.classifier import ClassifierConfig, SmallClassifier
from nextscale.nn.placement import place
from nextscale.weights.layout import CONFIG, load_module, locate

CLASSIFIER = "cifar10-classifier"


def load_classifier(source: str | Path = CLASSIFIER, *, device: str = "auto") -> SmallClassifier:
    """Load the classifier that ships in the package, or one from a folder of ``nextscale train classifier``.

    source: a name, or the run's folder, or the folder of the weights in it.
    Raises ModelNotFoundError and CheckpointError as all models do.
    """
    inner = Path(source) / "classifier"
    folder = inner if (inner / CONFIG).is_file() else locate(source)
    return load_module(lambda c: SmallClassifier(ClassifierConfig(**c)), folder, place(device, "float32"))
