"""Samples from elsewhere, and references of another size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nextscale.data.opening import open_pictures
from nextscale.data.resizing import RULES, resized
from nextscale.errors import DataError, InvalidArgumentError
from nextscale.evaluation.features import FeatureSpace, open_space
from nextscale.evaluation.images import CalledImages, FoundImages, WrongSizeError, write_npz
from nextscale.evaluation.protocol import Protocol
from nextscale.evaluation.recognition import share_interval
from nextscale.evaluation.reference import Reference, open_reference
from nextscale.evaluation.runner import plan_samples, reference_shards, run
from nextscale.evaluation.samples import open_samples


@pytest.fixture(scope="module")
def space() -> FeatureSpace:
    return open_space("cifar10-classifier", device="cpu")


def called(pictures: Tensor) -> CalledImages:
    return CalledImages(lambda rows: pictures[rows], len(pictures), (pictures.shape[2], pictures.shape[3]))


def save_all(pictures: Tensor, folder: Path, times: int = 1) -> Path:
    folder.mkdir()
    for i, picture in enumerate(pictures):
        pixels = picture.permute(1, 2, 0).numpy().repeat(times, 0).repeat(times, 1)
        Image.fromarray(pixels).save(folder / f"{i:04d}.png")
    return folder


# ---------------------------------------------------------------------------- resizing


def test_doubled_pictures_are_refused_or_halved_exactly(
    pictures: Tensor, space: FeatureSpace, tmp_path: Path
):
    found = open_pictures(save_all(pictures[:40], tmp_path / "doubled", times=2), labels="none")
    with pytest.raises(WrongSizeError, match=r"0000\.png has 64x64 pixels, where 32x32 are wanted"):
        Reference.of_images("doubled", FoundImages(found, (32, 32)))
    images = FoundImages(found, (32, 32), "adm")
    assert torch.equal(images.read(0, 40), pictures[:40])
    reference = Reference.of_images("doubled", images, resize="adm")
    write_npz(tmp_path / "s.npz", called(pictures[:40]))
    samples = open_samples(tmp_path / "s.npz")
    protocol = plan_samples(samples, space, reference)
    assert run(protocol, samples, space, reference, tmp_path / "work").figures.scores["fd"] < 1e-3


def test_the_rule_is_part_of_the_hash(pictures: Tensor, space: FeatureSpace, tmp_path: Path):
    write_npz(tmp_path / "s.npz", called(pictures[:20]))
    samples = open_samples(tmp_path / "s.npz")
    plain = Reference.of_images("r", called(pictures[:20]))
    rulers = set()
    for reference in (plain, *(plain.resized((32, 32), rule) for rule in RULES)):
        protocol = plan_samples(samples, space, reference)
        assert Protocol.from_dict(protocol.to_dict()).hash == protocol.hash
        rulers.add(protocol.ruler)
    assert len(rulers) == 1 + len(RULES)
    assert (
        "resize" not in plain.description()
        and plain.resized((32, 32), "adm").description()["resize"] == "adm"
    )


def test_a_resized_npz_leaves_its_statistics_behind(pictures: Tensor, space: FeatureSpace, tmp_path: Path):
    doubled = pictures[:20].repeat_interleave(2, 2).repeat_interleave(2, 3)
    write_npz(tmp_path / "r.npz", called(doubled), {"mu": np.zeros(4), "sigma": np.eye(4)})
    reference = open_reference(tmp_path / "r.npz")
    with pytest.raises(InvalidArgumentError, match=r"64x64 pixels.*a reference of the same size is needed"):
        reference.check(space, (32, 32))
    small = reference.resized((32, 32), "adm")
    small.check(space, (32, 32))
    assert small.images is not None and torch.equal(small.images.read(0, 20), pictures[:20])
    assert not small.statistics and small.sha256 != reference.sha256
    folders = {reference_shards(r, space, tmp_path).folder for r in (reference, small)}
    assert len(folders) == 2  # features of the one are not taken for those of the other
    same = reference.resized((64, 64), "adm")
    assert same.statistics and same.resize == "adm"
    with pytest.raises(InvalidArgumentError, match="holds no pictures that could be resized"):
        open_reference("cifar10-test").resized((32, 32), "adm")
    with pytest.raises(InvalidArgumentError, match="unknown rule to resize 'nearest'; known: adm, area"):
        reference.resized((32, 32), "nearest")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("width", "height"), [(64, 64), (130, 64), (33, 200), (20, 20), (32, 32), (31, 90)])
def test_every_rule_gives_the_size_and_keeps_the_mean(rule: str, width: int, height: int):
    ramp = np.linspace(40, 200, width)[None, :, None].repeat(height, 0).repeat(3, 2)
    image = Image.fromarray(ramp.astype(np.uint8))
    found = np.asarray(resized(image, (32, 32), rule))
    assert found.shape == (32, 32, 3)
    assert abs(found.mean() - 120) < 6
    if (width, height) == (32, 32):
        assert np.array_equal(found, np.asarray(image))


def test_adm_averages_areas_and_cuts_the_centre():
    checks = np.indices((128, 192)).sum(0) % 2 * 200  # any other filter than areas shows something of it
    image = Image.fromarray(checks.astype(np.uint8)).convert("RGB")
    assert np.unique(np.asarray(resized(image, (32, 32), "adm"))).tolist() == [100]
    halves = np.zeros((64, 96, 3), np.uint8)
    halves[:, 16:80] = 255
    assert np.asarray(resized(Image.fromarray(halves), (64, 64), "adm")).min() == 255
    wide = resized(image, (16, 24), "adm")
    assert wide.size == (24, 16)
    assert resized(image, (16, 24), "training").size == (24, 16)


# ---------------------------------------------------------------------------- samples


def test_samples_in_a_folder_are_those_in_an_npz(pictures: Tensor, space: FeatureSpace, tmp_path: Path):
    write_npz(tmp_path / "s.npz", called(pictures[:30]))
    reference = Reference.of_images("r", called(pictures[100:160]))
    scores = []
    for path in (tmp_path / "s.npz", save_all(pictures[:30], tmp_path / "folder")):
        samples = open_samples(path)
        assert samples.name == path.name and torch.equal(samples.read(0, 30), pictures[:30])
        protocol = plan_samples(samples, space, reference)
        result = run(protocol, samples, space, reference, tmp_path / "work")
        scores.append(result.figures.scores)
        assert "accuracy" not in result.figures.scores and "arr_1" in result.figures.left_out["accuracy"]
    assert scores[0] == scores[1]


def test_samples_of_several_sizes_are_refused(pictures: Tensor, tmp_path: Path):
    folder = save_all(pictures[:3], tmp_path / "folder")
    Image.new("RGB", (33, 32)).save(folder / "z.png")
    with pytest.raises(DataError, match=r"must all have one size: .*z\.png has 33x32 pixels, where 32x32"):
        open_samples(folder)
    with pytest.raises(DataError, match=r"cannot read .*nothing"):
        open_samples(tmp_path / "nothing")


@pytest.mark.parametrize("unknown", [0, 7])
def test_recognised_from_the_labels_of_samples(
    unknown: int, pictures: Tensor, space: FeatureSpace, tmp_path: Path
):
    guesses = space(pictures[:40])["logits"].argmax(1)
    labels = torch.where(torch.arange(40) < 25, guesses, (guesses + 1) % 10)  # 25 are right
    labels[40 - unknown :] = -1 if unknown else labels[40 - unknown :]
    write_npz(tmp_path / "s.npz", called(pictures[:40]), {"arr_1": labels.numpy()})
    samples = open_samples(tmp_path / "s.npz")
    figures = run(plan_samples(samples, space), samples, space, None, tmp_path / "work").figures
    assert figures.scores["accuracy"] == pytest.approx(25 / (40 - unknown))
    low, high = share_interval(25, 40 - unknown)
    assert figures.details["accuracy_interval"] == [low, high]


@pytest.mark.parametrize("labels", [np.full(20, 10), np.full(20, -1)])
def test_labels_that_the_classifier_does_not_know(
    labels: np.ndarray, pictures: Tensor, space: FeatureSpace, tmp_path: Path
):
    write_npz(tmp_path / "s.npz", called(pictures[:20]), {"arr_1": labels})
    samples = open_samples(tmp_path / "s.npz")
    figures = run(plan_samples(samples, space), samples, space, None, tmp_path / "work").figures
    assert "accuracy" not in figures.scores
    assert f"labels up to {labels[0]}, and the classifier knows 0 to 9" in figures.left_out["accuracy"]


@pytest.mark.parametrize("labels", [np.zeros(19, int), np.zeros(20), np.zeros((20, 10), int)])
def test_labels_of_samples_are_a_number_each(labels: np.ndarray, pictures: Tensor, tmp_path: Path):
    write_npz(tmp_path / "s.npz", called(pictures[:20]), {"arr_1": labels})
    with pytest.raises(DataError, match=r"arr_1 must be a whole number for each of the 20 pictures"):
        open_samples(tmp_path / "s.npz")
