"""What pictures are measured with: the options about features and reference, and the opening of both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nextscale.cli.progress import drawing, note, working
from nextscale.errors import InvalidArgumentError

if TYPE_CHECKING:
    from nextscale.evaluation.features import FeatureSpace
    from nextscale.evaluation.protocol import Preset
    from nextscale.evaluation.reference import Reference

PANEL = "Measuring"
NONE = "none"
LARGE = 1 << 26  # pixels; reading more of them takes a while


def option(panel: str, *names: str, metavar: str, help: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel, show_default=False)


FirstSeed = Annotated[
    int, option(PANEL, "--seed", metavar="N", help="Seed of the first picture, others follow. Default: 0.")
]
BatchSize = Annotated[
    int | None,
    option(PANEL, "--batch-size", "-b", metavar="N", help="Pictures drawn at once. Default: the preset's."),
]
Replicates = Annotated[
    int, option(PANEL, "--replicates", metavar="N", help="Resamples for intervals. Default: 1000.")
]


@dataclass(frozen=True)
class RulerOptions:
    """Features and reference; ``None`` is the preset's."""

    reference: Annotated[
        str | None,
        option(
            PANEL,
            "--reference",
            "-r",
            metavar="NAME_OR_PATH",
            help="Real pictures: an .npz in the ADM layout, a folder, a parquet file, a data set's id, or "
            "none. Default: the preset's.",
        ),
    ] = None
    split: Annotated[
        str | None,
        option(PANEL, "--split", metavar="NAME", help="Which part of the reference: train or test, say."),
    ] = None
    features: Annotated[
        str | None,
        option(
            PANEL,
            "--features",
            metavar="NAME",
            help="cifar10-classifier, inception, inception-clean (antialiased), pixels or dinov2. Default: "
            "the preset's.",
        ),
    ] = None
    feature_weights: Annotated[
        str | None,
        option(
            PANEL,
            "--feature-weights",
            metavar="PATH",
            help="Weights of the features instead of the published ones, or instead of a download.",
        ),
    ] = None
    feature_sha256: Annotated[
        str | None,
        option(
            PANEL,
            "--feature-sha256",
            metavar="HEX",
            help="The digest that the file of Inception's weights must have. Default: the published one.",
        ),
    ] = None

    def open(
        self, preset: Preset, size: tuple[int, int], device: str | None
    ) -> tuple[FeatureSpace, Reference | None]:
        """Features, then the reference, which is the larger download; checked against pictures of this size.

        Raises what a wrong name, file or size raises, naming it.
        """
        from nextscale.evaluation.features import open_space
        from nextscale.evaluation.runner import check_fit

        with working("loading the features"):
            name, weights = self.features or preset.space, self.feature_weights
            where = {"sha256": self.feature_sha256, "device": device or "auto"}
            space = open_space(name, weights, report=note, **where)  # type: ignore[arg-type]
        space.check_size(size)
        reference = self.open_reference(preset, size)
        check_fit(size, space, reference)
        return space, reference

    def open_reference(self, preset: Preset, size: tuple[int, int]) -> Reference | None:
        from nextscale.evaluation.provenance import cached_download
        from nextscale.evaluation.reference import EMBEDDED, open_reference

        name = self.reference or preset.reference
        if name is None:
            note(f"note: the preset {preset.name} has no reference; most figures need one (--reference)")
            return None
        if name == NONE:
            return None
        if name.startswith("https://"):
            remedy = "Download it elsewhere and give its path (--reference FILE)"
            name = str(cached_download(name, sha256=None, what="the reference", remedy=remedy, report=note))
        if name in EMBEDDED or name.lower().endswith(".npz"):
            with working("reading the reference"):
                return open_reference(name)
        return _from_pictures(name, self.split, size)


def _from_pictures(name: str, split: str | None, size: tuple[int, int]) -> Reference:
    from nextscale.evaluation.images import CalledImages
    from nextscale.evaluation.reference import Reference
    from nextscale.training.data import HELD_OUT, TRAIN, open_images

    h, w = size
    if h != w:
        raise InvalidArgumentError(f"pictures of {w}x{h} pixels are not square; give their reference as .npz")
    path = Path(name)
    parts = [p for p in (TRAIN, *HELD_OUT) if (path / p).is_dir() or any(path.glob(f"{p}*.parquet"))]
    if split is None and len(parts) > 1:
        raise InvalidArgumentError(f"{name} has the parts {', '.join(parts)}; say which with --split")
    with working("reading the reference"):
        source = open_images(name, size=h, split=split or next(iter(parts), None))
    images = CalledImages(source.batch, len(source), size)
    label = f"{path.name}, {split}" if split else path.name
    if len(images) * h * w < LARGE:
        return Reference.of_images(label, images)
    with drawing("reading the reference", len(images)) as advance:
        return Reference.of_images(label, images, advance)
