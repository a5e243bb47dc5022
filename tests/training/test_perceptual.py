from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from nextscale.errors import CheckpointError, ModelNotFoundError
from nextscale.nn.classifier import ClassifierConfig, SmallClassifier
from nextscale.training.perceptual import PerceptualDistance, Vgg16, open_perceptual
from nextscale.weights.layout import save_module

CPU = torch.device("cpu")
# Where torchvision's VGG16 has its convolutions, and their channels.
PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


def vgg_tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors, before = {}, 3
    for place, width in zip(PLACES, WIDTHS, strict=True):
        std = (2 / (9 * before)) ** 0.5
        tensors[f"features.{place}.weight"] = torch.randn(width, before, 3, 3, generator=generator) * std
        tensors[f"features.{place}.bias"] = torch.randn(width, generator=generator) * 0.1
        before = width
    return tensors


def by_hand(tensors: dict[str, Tensor], heads: list[Tensor] | None, a: Tensor, b: Tensor) -> Tensor:
    """LPIPS written out in float64, from the published description."""

    def maps(x: Tensor) -> list[Tensor]:
        mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1)
        x, found = ((x.double() + 1) / 2 - mean) / std, []
        for place in PLACES:
            if place in (5, 10, 17, 24):
                x = F.max_pool2d(x, 2)
            weight, bias = (tensors[f"features.{place}.{n}"].double() for n in ("weight", "bias"))
            x = F.relu(F.conv2d(x, weight, bias, padding=1))
            if place in (2, 7, 14, 21, 28):
                found.append(x)
        return found

    total = torch.zeros((), dtype=torch.float64)
    for i, (p, q) in enumerate(zip(maps(a), maps(b), strict=True)):
        p, q = (m / m.square().sum(1, keepdim=True).sqrt() for m in (p, q))
        weights = torch.ones(p.shape[1]) if heads is None else heads[i].flatten()
        total += (weights.double().view(-1, 1, 1) * (p - q) ** 2).sum(1).mean((1, 2)).mean()
    return total


@pytest.mark.parametrize("with_heads", [False, True])
def test_vgg_features_are_compared_as_published(tmp_path: Path, with_heads: bool) -> None:
    tensors = vgg_tensors()
    heads = None
    if with_heads:
        heads = [torch.rand(1, c, 1, 1) for c in (64, 128, 256, 512, 512)]
    extra = {"classifier.0.weight": torch.zeros(2, 2)}  # as the whole published file has them
    extra |= {f"lin{i}.model.1.weight": h for i, h in enumerate(heads or [])}
    save_file(tensors | extra, tmp_path / "vgg.safetensors")
    distance = open_perceptual(tmp_path / "vgg.safetensors", CPU)
    a, b = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    torch.testing.assert_close(distance(a, b).double(), by_hand(tensors, heads, a, b), rtol=1e-3, atol=1e-5)
    assert float(distance(a, a)) == 0
    a.requires_grad_()
    distance(a, b).backward()
    assert a.grad is not None and bool(a.grad.isfinite().all()) and float(a.grad.abs().max()) > 0
    assert not any(p.requires_grad for p in distance.eyes.parameters())  # type: ignore[attr-defined]


def test_a_file_that_is_not_vgg_is_refused(tmp_path: Path) -> None:
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "part.safetensors")
    with pytest.raises(CheckpointError, match=r"25 missing: features.0.bias.*Expected the weights of VGG16"):
        open_perceptual(tmp_path / "part.safetensors", CPU)
    heads = {"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}
    save_file(vgg_tensors() | heads, tmp_path / "heads.safetensors")
    with pytest.raises(
        CheckpointError, match=r"has heads of \[64\] channels.*expected \[64, 128, 256, 512, 512\]"
    ):
        open_perceptual(tmp_path / "heads.safetensors", CPU)
    with pytest.raises(ModelNotFoundError, match="no model 'nobody'"):
        open_perceptual("nobody", CPU)


def test_a_classifiers_features_are_compared(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = SmallClassifier(ClassifierConfig(num_classes=3, widths=(8, 8), size=(20, 24)))
    save_module(model, model.config.to_dict(), tmp_path / "run" / "classifier")
    a, b = torch.rand(2, 2, 3, 20, 24) * 2 - 1
    expected = PerceptualDistance(model.eval())(a, b).detach()
    for source in (tmp_path / "run", tmp_path / "run" / "classifier"):
        assert torch.equal(open_perceptual(source, CPU)(a, b), expected)
    parts = [F.normalize(m, dim=1) for m in model.maps(a)]
    others = [F.normalize(m, dim=1) for m in model.maps(b)]
    by_parts = sum(float((p - q).detach().square().sum(1).mean()) for p, q in zip(parts, others, strict=True))
    assert float(expected) == pytest.approx(by_parts, rel=1e-5)
    assert len(parts) == 3
    assert float(open_perceptual("cifar10-classifier", CPU)(a, b)) > 0  # of any size


def test_small_pictures_have_all_of_vggs_maps() -> None:
    maps = Vgg16().maps(torch.zeros(1, 3, 32, 32))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (64, 32, 32),
        (128, 16, 16),
        (256, 8, 8),
        (512, 4, 4),
        (512, 2, 2),
    ]
