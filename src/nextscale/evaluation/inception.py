"""The Inception network that FID is defined by: the TensorFlow graph of 2015-12-05, in PyTorch.

It departs from the network of the paper, and of torchvision, in what its published weights were trained with:
average pools do not count the padding, the last block has a maximum pool, batch norm's epsilon is 1e-3, there
are 1008 classes, and pictures are enlarged by TensorFlow 1's bilinear rule. Names of modules are those of the
weight file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.errors import CheckpointError, InvalidArgumentError
from nextscale.evaluation.provenance import Report, cached_download, check_digest, silent
from nextscale.nn.placement import place
from nextscale.weights.files import build, read_weights

URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SIDE = 299
CLASSES = 1008
SPATIAL_CHANNELS = 7  # of Mixed_6d; with its 17 x 17 positions 2023 features
Size = tuple[int, int]


class Unit(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int | Size, *, stride: int = 1, padding: int | Size = 0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def _shrink(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2)


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class Mixed5(nn.Module):
    """35 x 35 positions: 1x1, 5x5, double 3x3 and pooled branches."""

    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Unit(inputs, 64, 1)
        self.branch5x5_1 = Unit(inputs, 48, 1)
        self.branch5x5_2 = Unit(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Unit(inputs, 64, 1)
        self.branch3x3dbl_2 = Unit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Unit(96, 96, 3, padding=1)
        self.branch_pool = Unit(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        wide = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), wide, double, self.branch_pool(_average(x))], 1)


class Mixed6a(nn.Module):
    """To 17 x 17 positions."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = Unit(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1 = Unit(inputs, 64, 1)
        self.branch3x3dbl_2 = Unit(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Unit(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, _shrink(x)], 1)


class Mixed6(nn.Module):
    """17 x 17 positions: 1x1, factored 7x7, double 7x7 and pooled branches, ``width`` channels inside."""

    def __init__(self, width: int, inputs: int = 768) -> None:
        super().__init__()
        across: dict[str, Any] = {"kernel": (1, 7), "padding": (0, 3)}
        down: dict[str, Any] = {"kernel": (7, 1), "padding": (3, 0)}
        self.branch1x1 = Unit(inputs, 192, 1)
        self.branch7x7_1 = Unit(inputs, width, 1)
        self.branch7x7_2 = Unit(width, width, **across)
        self.branch7x7_3 = Unit(width, 192, **down)
        self.branch7x7dbl_1 = Unit(inputs, width, 1)
        self.branch7x7dbl_2 = Unit(width, width, **down)
        self.branch7x7dbl_3 = Unit(width, width, **across)
        self.branch7x7dbl_4 = Unit(width, width, **down)
        self.branch7x7dbl_5 = Unit(width, 192, **across)
        self.branch_pool = Unit(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_average(x))], 1)


class Mixed7a(nn.Module):
    """To 8 x 8 positions."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1 = Unit(inputs, 192, 1)
        self.branch3x3_2 = Unit(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Unit(inputs, 192, 1)
        self.branch7x7x3_2 = Unit(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Unit(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Unit(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.branch7x7x3_2(self.branch7x7x3_1(x))
        wide = self.branch7x7x3_4(self.branch7x7x3_3(wide))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), wide, _shrink(x)], 1)


class Mixed7(nn.Module):
    """8 x 8 positions; the 3x3 branches end in a 1x3 and a 3x1 unit side by side."""

    def __init__(self, inputs: int, *, max_pool: bool) -> None:
        super().__init__()
        self.max_pool = max_pool
        across: dict[str, Any] = {"kernel": (1, 3), "padding": (0, 1)}
        down: dict[str, Any] = {"kernel": (3, 1), "padding": (1, 0)}
        self.branch1x1 = Unit(inputs, 320, 1)
        self.branch3x3_1 = Unit(inputs, 384, 1)
        self.branch3x3_2a = Unit(384, 384, **across)
        self.branch3x3_2b = Unit(384, 384, **down)
        self.branch3x3dbl_1 = Unit(inputs, 448, 1)
        self.branch3x3dbl_2 = Unit(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Unit(384, 384, **across)
        self.branch3x3dbl_3b = Unit(384, 384, **down)
        self.branch_pool = Unit(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, 1, 1) if self.max_pool else _average(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(single), self.branch3x3_2b(single)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, 1)


class Inception(nn.Module):
    """Pictures to the three tensors that FID, sFID and the Inception Score are computed from."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3)
        self.Mixed_5b = Mixed5(192, 32)
        self.Mixed_5c = Mixed5(256, 64)
        self.Mixed_5d = Mixed5(288, 64)
        self.Mixed_6a = Mixed6a(288)
        self.Mixed_6b = Mixed6(128)
        self.Mixed_6c = Mixed6(160)
        self.Mixed_6d = Mixed6(160)
        self.Mixed_6e = Mixed6(192)
        self.Mixed_7a = Mixed7a(768)
        self.Mixed_7b = Mixed7(1280, max_pool=False)
        self.Mixed_7c = Mixed7(2048, max_pool=True)
        self.fc = nn.Linear(2048, CLASSES)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Resized float pictures ``(B, 3, 299, 299)``, 0..255, to

        ``"features"`` ``(B, 2048)``: the global average pool;
        ``"spatial"`` ``(B, 2023)``: the first 7 channels of Mixed_6d, row by row, channels last;
        ``"logits"`` ``(B, 1008)``: of the classifier, without its bias.
        """
        if images.shape[1:] != (3, SIDE, SIDE):
            raise InvalidArgumentError(f"pictures must be (B, 3, 299, 299), got {tuple(images.shape)}")
        x = self.Conv2d_2a_3x3(self.Conv2d_1a_3x3((images - 128) / 128))
        x = _shrink(self.Conv2d_2b_3x3(x))  # (B, 64, 73, 73)
        x = _shrink(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))  # (B, 192, 35, 35)
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))  # (B, 768, 17, 17)
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x)))
        spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))  # (B, 2048, 8, 8)
        pooled = x.mean((2, 3))
        return {"features": pooled, "spatial": spatial, "logits": F.linear(pooled, self.fc.weight)}


def resize_tensorflow1(images: Tensor, size: Size = (SIDE, SIDE)) -> Tensor:
    """TensorFlow 1's bilinear resize: output i is read at ``i * n_in / n_out``, without antialiasing.

    images: ``(B, 3, H, W)``, converted to float32 and not rounded again. First along rows, then columns.
    """
    return _resize_axis(_resize_axis(images.float(), 3, size[1]), 2, size[0])


def _resize_axis(x: Tensor, axis: int, count: int) -> Tensor:
    available = x.shape[axis]
    scale = torch.tensor(available / count, dtype=torch.float32, device=x.device)
    place = torch.arange(count, dtype=torch.float32, device=x.device) * scale
    low = place.floor().long().clamp_(max=available - 1)
    high = (low + 1).clamp_(max=available - 1)
    shape = [1] * x.ndim
    shape[axis] = count
    left, right = x.index_select(axis, low), x.index_select(axis, high)
    return left + (right - left) * (place - low).view(shape)


def load_inception(
    path: str | Path | None = None,
    *,
    sha256: str = SHA256,
    device: str | torch.device = "auto",
    report: Report = silent,
) -> Inception:
    """The network with its published weights, float32.

    path: the weight file, PyTorch or safetensors, with or without batch norm's counters; ``None`` downloads
        it once, 96 MB.
    sha256: the digest the file must have: by default that of the published file. Figures from other weights
        are no FID.
    report: told before a download.
    Raises ModelNotFoundError if it cannot be downloaded, CheckpointError for another file than expected.
    """
    if path is None:
        remedy = "Download it elsewhere and give its path (--feature-weights FILE)"
        path = cached_download(URL, sha256=sha256, what="Inception's weights", remedy=remedy, report=report)
    else:
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(f"no such weight file: {str(path)!r}")
        remedy = "If this is a converted copy that you trust, give its digest (--feature-sha256 HEX)"
        check_digest(path, sha256, path.name, remedy)
    stored = read_weights(path)
    norms = [k.removesuffix("running_var") for k in stored if k.endswith(".running_var")]
    counters = {f"{norm}num_batches_tracked": torch.tensor(0) for norm in norms}  # without effect
    tensors, placement = {**counters, **stored}, place(device, "float32")
    return build(Inception, tensors, source=path.name, dtype=placement.dtype, device=placement.device)
