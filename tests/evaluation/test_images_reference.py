"""ADM batches read and written in pieces, and references of every kind."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nextscale.errors import DataError, InvalidArgumentError, NextscaleWarning
from nextscale.evaluation.features import open_space
from nextscale.evaluation.images import CalledImages, NpzImages, images_digest, pieces, write_npz
from nextscale.evaluation.metrics import frechet_distance
from nextscale.evaluation.moments import Gaussian, Moments
from nextscale.evaluation.reference import (
    MeasuredReference,
    Reference,
    measure_reference,
    open_reference,
    write_reference,
)
from nextscale.evaluation.samples import open_samples
from nextscale.evaluation.shards import SHARD, Shards


def called(pictures: Tensor) -> CalledImages:
    return CalledImages(lambda rows: pictures[rows], len(pictures), tuple(pictures.shape[2:]))


@pytest.mark.parametrize("compress", [False, True])
def test_a_batch_goes_out_and_in(compress: bool, pictures: Tensor, tmp_path: Path):
    path = tmp_path / "batch.npz"
    seen: list[int] = []
    write_npz(path, called(pictures), {"mu": np.arange(3.0)}, compress=compress, advance=seen.append)
    assert sum(seen) == len(pictures) and [p.name for p in tmp_path.iterdir()] == ["batch.npz"]
    with np.load(path) as plain:  # as the ADM evaluator reads it
        assert plain["arr_0"].dtype == np.uint8
        assert np.array_equal(plain["arr_0"], pictures.permute(0, 2, 3, 1).numpy())
        assert plain["mu"].tolist() == [0, 1, 2]
    images = NpzImages(path)
    assert len(images) == 260 and images.size == (32, 32)
    assert torch.equal(torch.cat(list(pieces(images, 100))), pictures)
    for start, stop in ((259, 260), (0, 2), (7, 90), (90, 100)):  # back and forth
        assert torch.equal(images.read(start, stop), pictures[start:stop])
    assert images_digest(images) == images_digest(called(pictures)) != images_digest(called(pictures[1:]))
    with pytest.raises(InvalidArgumentError, match="has 260 pictures, not 200 to 261"):
        images.read(200, 261)
    again = tmp_path / "again.npz"
    write_npz(again, called(pictures), {"mu": np.arange(3.0)}, compress=compress)
    assert again.read_bytes() == path.read_bytes()


def test_what_numpy_wrote_is_read(pictures: Tensor, tmp_path: Path):
    array = pictures.permute(0, 2, 3, 1).contiguous().numpy()
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", array)
        assert torch.equal(NpzImages(tmp_path / "a.npz").read(5, 50), pictures[5:50])


def test_pictures_never_lie_in_memory_at_once(tmp_path: Path):
    path, count, side = tmp_path / "large.npz", 1500, 64

    def batch(rows: list[int]) -> Tensor:
        return torch.tensor(rows).remainder(256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, side, side)

    tracemalloc.start()  # sees what numpy and Python allocate
    write_npz(path, CalledImages(batch, count, (side, side)))
    images = NpzImages(path)
    sums = [int(piece[:, 0, 0, 0].sum()) for piece in pieces(images, 100)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(sums) == sum(i % 256 for i in range(count))
    assert path.stat().st_size > count * 3 * side**2 > 3 * peak


def test_files_that_are_no_batch(pictures: Tensor, tmp_path: Path):
    path = tmp_path / "wrong.npz"
    path.write_bytes(b"no zip")
    for read in (NpzImages, open_reference):
        with pytest.raises(DataError, match=r"cannot read .*wrong\.npz"):
            read(path)
        with pytest.raises(DataError, match=r"cannot read .*missing\.npz"):
            read(tmp_path / "missing.npz")
    array = pictures.permute(0, 2, 3, 1).numpy()
    for wrong, text in (
        (array.astype(np.float32), r"float32 \[260, 32, 32, 3\]"),
        (array[..., 0], r"\[260, 32, 32\]"),
        (np.asfortranarray(array), "in Fortran order"),
        (np.array([{}], dtype=object), "object"),
    ):
        np.savez(path, arr_0=wrong)
        with pytest.raises(DataError, match=text):
            NpzImages(path)
    np.savez(path, something=array)
    with pytest.raises(DataError, match="has no arr_0: it holds no pictures, only something"):
        NpzImages(path)
    with pytest.raises(
        DataError, match="is no reference: it has neither arr_0 nor mu and sigma, but something"
    ):
        open_reference(path)
    np.savez(path, mu=np.array([{}], dtype=object), sigma=np.eye(1))
    with pytest.raises(DataError, match="mu cannot be read"):
        open_reference(path)
    np.savez(path, mu=np.zeros(3))
    with pytest.raises(DataError, match="has mu but no sigma"):
        open_reference(path)
    np.savez(path, mu=np.zeros(3), sigma=np.eye(2))
    with pytest.raises(DataError, match="mu and sigma do not fit each other"):
        open_reference(path)
    with pytest.raises(InvalidArgumentError, match="nothing to write"):
        write_npz(path, None)


def test_a_truncated_member_is_noticed(pictures: Tensor, tmp_path: Path):
    path = tmp_path / "short.npz"
    write_npz(path, called(pictures))
    with zipfile.ZipFile(path) as archive:
        data = archive.read("arr_0.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", data[:-5000])
    with pytest.raises(DataError, match="ends before picture 260"):
        NpzImages(path).read(0, 260)


def test_samples_with_statistics_are_not_believed(pictures: Tensor, tmp_path: Path):
    path = tmp_path / "samples.npz"
    write_npz(path, called(pictures))
    assert len(open_samples(path)) == 260  # and warnings are errors here
    write_npz(path, called(pictures), {"mu": np.zeros(2), "sigma": np.eye(2)})
    with pytest.warns(NextscaleWarning, match=r"holds statistics \(mu, sigma\)"):
        open_samples(path)


def test_references_in_every_form_agree(pictures: Tensor, tmp_path: Path):
    space = open_space("cifar10-classifier", device="cpu")
    shards = Shards(tmp_path / "shards", len(pictures))
    plain = Reference.of_images("folder", called(pictures))
    measured = measure_reference(plain, space, shards)
    assert measured.features is not None and measured.statistics["features"].count == 260
    # In the batches of the files: another batch size moves the last bits of a convolution.
    expected = torch.cat([space(part)["features"] for part in pictures.split(SHARD)])
    assert torch.equal(measured.features, expected)

    forms = {
        "images": {"images": called(pictures)},
        "both": {"images": called(pictures), "measured": measured, "space": space},
        "features": {"measured": measured, "space": space, "with_features": True},
        "statistics": {"measured": measured, "space": space},
    }
    for name, arguments in forms.items():
        path = tmp_path / f"{name}.npz"
        write_reference(path, **arguments)
        reference = open_reference(path)
        reference.check(space, (32, 32))
        found = measure_reference(reference, space, Shards(tmp_path / name, reference.count))
        distance = frechet_distance(found.statistics["features"], measured.statistics["features"]).value
        assert distance == pytest.approx(0, abs=1e-8), name
        if name == "statistics":
            assert found.features is None and reference.count == 0
        else:
            assert found.features is not None and reference.count == 260
            assert torch.allclose(found.features, measured.features, rtol=1e-3, atol=1e-3)
        assert (tmp_path / name).exists() == (name in ("images", "both"))
        assert reference.fits(space) == (name != "images")


def test_adm_files_are_of_inception(pictures: Tensor, tmp_path: Path):
    """Statistics that do not say of what are those of Inception; other spaces look at the pictures."""
    path = tmp_path / "VIRTUAL.npz"
    array = pictures.permute(0, 2, 3, 1).numpy()
    np.savez(path, arr_0=array, mu=np.zeros(6), sigma=np.eye(6), mu_s=np.ones(4), sigma_s=np.eye(4))
    reference = open_reference(path)
    assert sorted(reference.statistics) == ["features", "spatial"] and reference.count == 260
    assert reference.statistics["features"].count is None
    space = open_space("pixels")
    assert not reference.fits(space)
    found = measure_reference(reference, space, Shards(tmp_path / "w", reference.count))
    assert list(found.statistics) == ["features"] and len(found.statistics["features"].mean) == 3072
    space.name = "inception"  # all that such a file can be asked for
    assert reference.fits(space)
    found = measure_reference(reference, space, Shards(tmp_path / "w2", reference.count))
    assert found.statistics == reference.statistics
    assert found.features is not None and len(found.features) == 260
    np.savez(path, mu=np.zeros(6), sigma=np.eye(6))
    with pytest.raises(InvalidArgumentError, match="statistics are of inception, not of pixels"):
        open_reference(path).check(open_space("pixels"), (32, 32))
    with pytest.raises(InvalidArgumentError, match=r"32x32 pixels.*64x64.*a reference of the same size"):
        Reference("r", "", called(pictures)).check(space, (64, 64))


def test_the_embedded_reference_belongs_to_the_embedded_classifier():
    reference = open_reference("cifar10-test")
    space = open_space("cifar10-classifier", device="cpu")
    reference.check(space, (32, 32))
    assert reference.count == 10_000 == reference.statistics["features"].count
    assert reference.features is not None and reference.features.shape == (10_000, 192)
    rounded = Moments.of(reference.features).gaussian()
    assert frechet_distance(rounded, reference.statistics["features"]).value == pytest.approx(0, abs=1e-4)


def test_writing_statistics_needs_their_space():
    measured = MeasuredReference({"features": Gaussian(torch.zeros(2), torch.eye(2))}, None)
    with pytest.raises(InvalidArgumentError, match="give the space they are of"):
        write_reference("never.npz", measured=measured)
