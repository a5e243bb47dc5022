"""Feature spaces behind one interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nextscale.errors import CheckpointError, DataError, InvalidArgumentError, ModelNotFoundError
from nextscale.evaluation.dinov2 import DINOv2Space, standardised
from nextscale.evaluation.features import SPACES, FeatureSpace, open_space, resize_clean
from nextscale.evaluation.inception import Inception, resize_tensorflow1
from nextscale.evaluation.provenance import file_digest
from nextscale.evaluation.recognition import load_classifier, recognised
from nextscale.weights.digest import weights_digest


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(Inception().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def dinov2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 70}
    folder = tmp_path_factory.mktemp("dinov2")
    Dinov2Model(Dinov2Config(**sizes, patch_size=14)).save_pretrained(folder)
    return folder


def test_classifier_space_agrees_with_recognition(pictures: Tensor):
    space = open_space("cifar10-classifier", device="cpu")
    out = space(pictures)
    network = load_classifier(device="cpu")
    assert torch.allclose(out["features"], network.features(pictures.float() / 127.5 - 1), atol=1e-5)
    labels = out["logits"].argmax(1)
    assert recognised(network, pictures.float() / 255, labels).all()
    assert space.classes == 10 == out["logits"].shape[1]
    assert space.description()["weights_sha256"] == weights_digest(network)
    with pytest.raises(InvalidArgumentError, match="32x32 pixels, not 48x16; use another"):
        space(torch.zeros(1, 3, 16, 48, dtype=torch.uint8))


def test_pixels(pictures: Tensor):
    space = open_space("pixels")
    assert torch.equal(space(pictures)["features"], pictures.flatten(1).float())
    with pytest.raises(InvalidArgumentError, match=r"256x128 have 98,304 values"):
        space.check_size((128, 256))


@pytest.mark.slow
def test_inception_spaces(pictures: Tensor, inception_file: Path):
    digest = file_digest(inception_file)
    published = open_space("inception", inception_file, sha256=digest, device="cpu")
    clean = open_space("inception-clean", inception_file, sha256=digest, device="cpu")
    out = published(pictures[:3])
    assert {k: tuple(v.shape) for k, v in out.items()} == {
        "features": (3, 2048),
        "spatial": (3, 2023),
        "logits": (3, 1008),
    }
    other = clean(pictures[:3])["features"]
    assert (out["features"] - other).norm() > 1e-3 * other.norm()
    descriptions = [published.description(), clean.description()]
    assert (
        all(d["weights_file_sha256"] == digest for d in descriptions) and descriptions[0] != descriptions[1]
    )
    with pytest.raises(CheckpointError, match="expected 6726825d"):
        open_space("inception", inception_file)


def test_clean_resize_is_pillows_on_floats(pictures: Tensor):
    wide = pictures[:4].view(1, 4, 3, 32, 32).permute(0, 2, 3, 1, 4).reshape(1, 3, 32, 128)
    shrunk = resize_clean(wide, 16)
    assert shrunk.shape == (1, 3, 16, 16) and shrunk.dtype == torch.float32
    eight_bit = Image.fromarray(wide[0].permute(1, 2, 0).numpy()).resize((16, 16), Image.Resampling.BICUBIC)
    close = torch.from_numpy(np.array(eight_bit)).permute(2, 0, 1).float()
    assert (shrunk[0] - close).abs().max() < 1.5  # which rounds after either axis
    assert not torch.equal(shrunk, shrunk.round())
    edge = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    edge[..., 4:] = 255
    assert float(resize_clean(edge, 40).min()) >= 0 and float(resize_clean(edge, 40).max()) <= 255
    # A checkerboard vanishes where it is averaged, and does not where single pixels are picked.
    board = ((torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255).to(torch.uint8).expand(1, 3, 64, 64)
    assert resize_clean(board, 16).std() < 0.2 * resize_tensorflow1(board, (17, 17)).std()


def test_dinov2(pictures: Tensor, dinov2_folder: Path):
    from transformers import Dinov2Model

    space = open_space("dinov2", dinov2_folder, device="cpu")
    found = space(pictures[:3])["features"]
    network = Dinov2Model.from_pretrained(dinov2_folder).eval()
    with torch.no_grad():
        wanted = network(pixel_values=standardised(pictures[:3])).pooler_output
    assert found.shape == (3, 24) and torch.allclose(found, wanted, atol=1e-5)
    assert space.description() == {**DINOv2Space(dinov2_folder, device="cpu").description()}
    assert space.description()["width"] == 24


def test_dinov2_pictures_are_what_its_processor_makes(pictures: Tensor):
    picture = Image.fromarray(pictures[0].permute(1, 2, 0).numpy())
    pixels = np.asarray(picture.resize((224, 224), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    wanted = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.allclose(standardised(pictures[:1])[0].permute(1, 2, 0).numpy(), wanted, atol=1e-6)


def test_other_sources(tmp_path: Path):
    with pytest.raises(InvalidArgumentError, match="unknown feature space 'vgg'; known: cifar10-classifier"):
        open_space("vgg")
    with pytest.raises(ModelNotFoundError, match=r"config\.json of 'nobody/nothing'"):
        open_space("dinov2", "nobody/nothing")
    with pytest.raises(CheckpointError, match="holds no DINOv2 model"):
        open_space("dinov2", tmp_path)
    assert len(set(SPACES)) == 5


class Broken(FeatureSpace):
    name = "broken"

    def description(self) -> dict[str, Any]:
        return {}

    def _compute(self, images: Tensor) -> dict[str, Tensor]:
        return {"features": images.flatten(1).float().log()}


def test_features_are_checked(pictures: Tensor):
    assert Broken()(pictures.clamp(min=1))["features"].isfinite().all()
    with pytest.raises(DataError, match="the features of broken are not finite"):
        Broken()(pictures * 0)
    for wrong in (pictures.float(), pictures[0], pictures[:0], pictures[:, :1]):
        with pytest.raises(InvalidArgumentError, match="must be uint8"):
            open_space("pixels")(wrong)
