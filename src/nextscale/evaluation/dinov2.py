"""DINOv2 features through transformers, for FD-DINOv2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nextscale.errors import CheckpointError, MissingDependencyError
from nextscale.evaluation.features import FeatureSpace
from nextscale.nn.placement import place
from nextscale.weights.digest import weights_digest
from nextscale.weights.hub import download

LARGE = "facebook/dinov2-large"  # what published values of FD-DINOv2 are of
SIDE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class DINOv2Space(FeatureSpace):
    """The class token after the final norm, of pictures resized to 224 x 224 (Stein et al. 2023).

    source: a hub id, or a folder with ``config.json`` and ``model.safetensors``. Values of different sizes of
    the network are not comparable with each other, nor with FID.
    Raises MissingDependencyError without transformers, ModelNotFoundError if the download fails.
    """

    name = "dinov2"
    batch_size = 50

    def __init__(self, source: str | Path = LARGE, *, device: str | torch.device = "auto") -> None:
        try:
            from transformers import Dinov2Model
        except ImportError:
            raise MissingDependencyError("DINOv2 needs transformers: pip install 'nextscale[text]'") from None
        folder = Path(source)
        if not folder.is_dir():
            download(str(source), "config.json")
            folder = download(str(source), "model.safetensors").parent
        try:
            model: Any = Dinov2Model.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{str(folder)!r} holds no DINOv2 model: {error}") from None
        self.network = model.float().eval().requires_grad_(False).to(place(device, "float32").device)
        self.digest = weights_digest(model)

    def description(self) -> dict[str, Any]:
        config = self.network.config
        return {
            "name": self.name,
            "weights_sha256": self.digest,
            "layers": config.num_hidden_layers,
            "width": config.hidden_size,
            "layer": "class token after the final norm",
            "resize": "PIL bicubic to 224x224, antialiased",
        }

    def _compute(self, images: Tensor) -> dict[str, Tensor]:
        pixels = standardised(images).to(next(self.network.parameters()).device)
        return {"features": self.network(pixel_values=pixels).last_hidden_state[:, 0]}


def standardised(images: Tensor) -> Tensor:
    """uint8 ``(B, 3, H, W)`` resized by Pillow's bicubic filter, less ImageNet's mean, over its deviation."""
    pictures = [Image.fromarray(p) for p in images.permute(0, 2, 3, 1).cpu().numpy()]
    resized = [np.asarray(p.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for p in pictures]
    unit = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    return (unit - mean) / std
