"""Make the embedded reference: CIFAR-10's test pictures as the embedded classifier sees them.

    python benchmarks/cifar10_reference.py --data path/to/cifar10

``--data`` is a folder with ``test*.parquet`` in the hub's layout. The file holds mean and covariance in
float64 and the features of every picture in half precision, but no pictures. It belongs to one set of
classifier weights, whose digest it names: run this again when the classifier has changed.

Beside it, as ``cifar10-test-spectra.npz``, lie mean and covariance of the pictures' radial amplitudes and
detail fractions, some kilobytes, for ``nextscale spectrum``.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import nextscale.evaluation
from nextscale.evaluation.features import open_space
from nextscale.evaluation.images import CalledImages
from nextscale.evaluation.recognition import CLASSIFIER
from nextscale.evaluation.reference import Reference, measure_reference, open_reference, write_reference
from nextscale.evaluation.shards import Shards
from nextscale.evaluation.stored_spectra import write_spectra
from nextscale.training.data import open_images

TARGET = Path(nextscale.evaluation.__file__).parent / "references" / "cifar10-test.npz"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--output", type=Path, default=TARGET)
    args = parser.parse_args()

    source = open_images(args.data, size=32, split="test")
    images = CalledImages(source.batch, len(source), (32, 32))
    space = open_space(CLASSIFIER, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        shards = Shards(Path(folder), len(images))
        measured = measure_reference(Reference.of_images("cifar10-test", images), space, shards)
    args.output.parent.mkdir(exist_ok=True)
    write_reference(args.output, measured=measured, space=space, with_features=True, compress=True)
    written = open_reference(args.output)
    size = args.output.stat().st_size / 1e6
    print(f"{args.output}: {written.count} pictures, {size:.1f} MB, SHA-256 {written.sha256}")
    spectra = args.output.with_name(f"{args.output.stem}-spectra.npz")
    write_spectra(spectra, images, written.sha256)
    print(f"{spectra}: {spectra.stat().st_size / 1e3:.1f} kB")


if __name__ == "__main__":
    main()
