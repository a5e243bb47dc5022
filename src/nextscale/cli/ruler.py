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
REMEDY = (
    "a reference of the same size is needed, or --resize adm, which prepares pictures as ADM's evaluator does"
)
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
            help="Real pictures: an .npz in the ADM layout, a folder, parquet or tar files, a run, a data "
            "set's id, or none. Default: the preset's.",
        ),
    ] = None
    split: Annotated[
        str | None,
        option(PANEL, "--split", metavar="NAME", help="Which part of the reference: train or test, say."),
    ] = None
    resize: Annotated[
        str | None,
        option(
            PANEL,
            "--resize",
            metavar="RULE",
            help="Bring a reference of another size to the pictures': adm (as ADM's evaluator prepares "
            "references), area, bicubic, lanczos or training. Default: such a reference is refused.",
        ),
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
        if self.resize is not None and name in (None, NONE):
            raise InvalidArgumentError("--resize is about a reference, and there is none (--reference)")
        if name is None:
            note(f"note: the preset {preset.name} has no reference; most figures need one (--reference)")
            return None
        if name == NONE:
            return None
        if name.startswith("https://"):
            remedy = "Download it elsewhere and give its path (--reference FILE)"
            name = str(cached_download(name, sha256=None, what="the reference", remedy=remedy, report=note))
        name = _npz_of_a_run(name)
        if name in EMBEDDED or name.lower().endswith(".npz"):
            with working("reading the reference"):
                return self._fitted(open_reference(name), size)
        return _from_pictures(name, self.split, size, self.resize)

    def _fitted(self, reference: Reference, size: tuple[int, int]) -> Reference:
        """A reference in an .npz, brought to the size of the pictures if that was asked for."""
        if self.resize is not None:
            return reference.resized(size, self.resize)
        if reference.images is not None and reference.images.size != size:
            raise _wrong_size(reference.name, reference.images.size, size)
        return reference


def _npz_of_a_run(name: str) -> str:
    """The one file of a run of the format npz; any other name as it is."""
    from nextscale.data.opening import is_run, run_plan
    from nextscale.sampling.plan import JOINED

    folder = Path(name)
    is_npz = folder.is_dir() and is_run(folder) and run_plan(folder).format == "npz"
    return str(folder / JOINED) if is_npz else name


def _from_pictures(name: str, split: str | None, size: tuple[int, int], resize: str | None) -> Reference:
    from nextscale.data.opening import open_pictures, parts_of
    from nextscale.data.resizing import check_rule
    from nextscale.evaluation.images import FoundImages, WrongSizeError
    from nextscale.evaluation.reference import Reference

    if resize is not None:
        check_rule(resize)
    (h, w), path = size, Path(name)
    parts = parts_of(path) if split is None else []
    if len(parts) > 1:
        raise InvalidArgumentError(f"{name} has the parts {', '.join(parts)}; say which with --split")
    with working("reading the reference"):
        pictures = open_pictures(name, split=split or next(iter(parts), None), labels="none")
    images = FoundImages(pictures, size, resize)
    label = f"{path.name}, {split}" if split else path.name
    try:
        if len(images) * h * w < LARGE:
            return Reference.of_images(label, images, resize=resize)
        with drawing("reading the reference", len(images)) as advance:
            return Reference.of_images(label, images, advance, resize=resize)
    except WrongSizeError as error:
        raise InvalidArgumentError(f"{error}; {REMEDY}") from None


def _wrong_size(name: str, found: tuple[int, int], size: tuple[int, int]) -> InvalidArgumentError:
    (h, w), (height, width) = found, size
    return InvalidArgumentError(
        f"the reference {name} has pictures of {w}x{h} pixels, and those to be measured have "
        f"{width}x{height}; {REMEDY}"
    )
