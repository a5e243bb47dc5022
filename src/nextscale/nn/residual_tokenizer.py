"""The tokenizer that VAR and HART share: a convolutional autoencoder around a multi-scale residual quantizer.

Parameter names are the keys of the published files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.errors import GridError, InvalidArgumentError
from nextscale.nn.autoencoder import NORM_GROUPS, Decoder, Encoder
from nextscale.nn.bounds import bounded
from nextscale.nn.quantizer import MultiScaleQuantizer, Quantized, shrink
from nextscale.recording import Recordings
from nextscale.scales import Grid, ScaleSchedule

DECODED_PIXELS = 2**18
DECODED_PIXELS_ON_CPU = 2**16


def decoded_at_once(pixels: int, device: torch.device) -> int:
    """How many pictures of so many pixels are decoded together: enough to keep a device busy.

    Maps in the decoder are hundreds of times larger than the picture, so a whole batch of them can take more
    memory than everything before it; and on a CPU, fewer of them find more of themselves in its caches.
    """
    return max(1, (DECODED_PIXELS_ON_CPU if device.type == "cpu" else DECODED_PIXELS) // pixels)


@dataclass(frozen=True)
class ResidualTokenizerConfig:
    """Sizes of the tokenizer; the defaults are the published ones."""

    vocab_size: int = 4096
    z_channels: int = 32
    ch: int = 160
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    in_channels: int = 3
    quant_conv_ks: int = 3
    quant_resi: float = 0.5
    share_quant_resi: int = 4
    using_znorm: bool = False
    beta: float = 0.25
    norm_groups: int = NORM_GROUPS
    patch_nums: tuple[int | Grid, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)

    def __post_init__(self) -> None:
        if self.ch % self.norm_groups:
            raise InvalidArgumentError(
                f"ch must be a multiple of the {self.norm_groups} groups of the norms, got {self.ch}"
            )
        for name in ("ch_mult", "patch_nums"):  # JSON has no tuples
            value = tuple(tuple(v) if isinstance(v, list) else v for v in getattr(self, name))
            object.__setattr__(self, name, value)

    @property
    def schedule(self) -> ScaleSchedule:
        return ScaleSchedule.from_sides(self.patch_nums)

    @property
    def reduction(self) -> int:
        """Pixels per latent cell along a side."""
        return int(2 ** (len(self.ch_mult) - 1))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class ResidualTokenizer(nn.Module):
    """Convolutional autoencoder around a multi-scale residual quantizer.

    A family adds how token maps become pictures, and its training objective.
    """

    LAST_PHI: ClassVar[bool] = True  # see MultiScaleQuantizer

    def __init__(self, config: ResidualTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        sizes: dict[str, Any] = dict(
            ch=config.ch,
            ch_mult=config.ch_mult,
            num_res_blocks=config.num_res_blocks,
            z_channels=config.z_channels,
            in_channels=config.in_channels,
            groups=config.norm_groups,
        )
        self.encoder = Encoder(**sizes)
        self.decoder = Decoder(**sizes)
        self.quantize = MultiScaleQuantizer(
            vocab_size=config.vocab_size,
            z_channels=config.z_channels,
            schedule=config.schedule,
            quant_resi=config.quant_resi,
            share_quant_resi=config.share_quant_resi,
            using_znorm=config.using_znorm,
            last_phi=self.LAST_PHI,
        )
        ks, z = config.quant_conv_ks, config.z_channels
        self.recordings = Recordings()
        self.quant_conv = nn.Conv2d(z, z, ks, padding=ks // 2)
        self.post_quant_conv = nn.Conv2d(z, z, ks, padding=ks // 2)

    @property
    def dtype(self) -> torch.dtype:
        return self.quant_conv.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.quant_conv.weight.device

    @property
    def schedule(self) -> ScaleSchedule:
        return self.config.schedule

    def features(self, images: Tensor) -> Tensor:
        """Pictures ``(B, 3, H, W)`` in [-1, 1] -> what gets quantized, ``(B, z, P, P)`` float32."""
        r = self.config.reduction
        if (
            not images.is_floating_point()
            or images.ndim != 4
            or images.shape[1] != self.config.in_channels
            or any(s % r for s in images.shape[2:])
        ):
            raise InvalidArgumentError(
                f"expected floating-point images (B, {self.config.in_channels}, H, W) in [-1, 1] with sides "
                f"that are multiples of {r}, got {images.dtype} {tuple(images.shape)}"
            )
        f: Tensor = self.quant_conv(self.encoder(images.to(self.device, self.dtype)))
        return f.float()

    def quantized(self, images: Tensor, schedule: ScaleSchedule | None = None) -> list[Quantized]:
        """Token map and partial sum of every scale."""
        schedule = schedule or self.schedule
        f = self.features(images)
        if tuple(f.shape[2:]) != schedule.final:
            h, w = (s * self.config.reduction for s in schedule.final)
            raise GridError(
                f"the last scale is {schedule.final}, so images must be {h}x{w} pixels (height x width); "
                f"got {images.shape[2]}x{images.shape[3]}"
            )
        return list(self.quantize.residual_chain(f, schedule))

    @torch.no_grad()
    def encode(self, images: Tensor, schedule: ScaleSchedule | None = None) -> list[Tensor]:
        """Pictures ``(B, 3, H, W)`` in [-1, 1] -> one int64 ``(B, h, w)`` tensor per step.

        schedule: another list of scales than the tokenizer's own, as for another resolution; its last grid
            must be the size of the latent.
        """
        return [q.tokens for q in self.quantized(images, schedule)]

    @torch.no_grad()
    def decode_progressive(
        self, tokens: Sequence[Tensor], schedule: ScaleSchedule | None = None
    ) -> list[Tensor]:
        """The picture after every step, each ``(B, 3, H, W)``: the coarse-to-fine story of one generation."""
        return [self.decode_latent(f_hat) for f_hat in self.partial_sums(tokens, schedule)]

    def decode_latent(self, f_hat: Tensor) -> Tensor:
        """Summed latent ``(B, z, P, P)`` -> pictures ``(B, 3, H, W)`` float32, clamped to [-1, 1].

        Large pictures are decoded a few at a time; see :func:`decoded_at_once`.
        """
        pixels = f_hat.shape[2] * f_hat.shape[3] * self.config.reduction**2
        parts = f_hat.to(self.device).split(decoded_at_once(pixels, self.device))
        decoded = [self._decode_part(part, pixels) for part in parts]
        return decoded[0] if len(decoded) == 1 else torch.cat(decoded)

    def _decode_part(self, f_hat: Tensor, pixels: int) -> Tensor:
        def size() -> int:  # of a level's input and what its blocks make, where maps have the picture's size
            return 4 * len(f_hat) * pixels * self.config.ch * self.dtype.itemsize

        return self.recordings.run([self], tuple(f_hat.shape), size, self._decoded, f_hat)[0]

    def _decoded(self, f_hat: Tensor) -> tuple[Tensor]:
        pictures: Tensor = self.decoder(self.post_quant_conv(f_hat.to(self.dtype)))
        return (bounded(pictures),)

    def partial_sums(
        self,
        tokens: Sequence[Tensor],
        schedule: ScaleSchedule | None = None,
        *,
        last_phi: bool | None = None,
    ) -> list[Tensor]:
        """The summed latent after every step, float32 ``(B, z, P, P)``.

        last_phi: see :class:`~nextscale.nn.quantizer.MultiScaleQuantizer`; ``None`` is the family's way.
        """
        return list(self.quantize.partial_sums(*self._checked(tokens, schedule), last_phi=last_phi))

    def next_inputs(self, tokens: Sequence[Tensor], schedule: ScaleSchedule | None = None) -> Tensor:
        """The transformer's teacher-forcing input: ``(B, L - h_0 w_0, z)`` float32.

        For every step but the first, the partial sum of the steps before, shrunk to that step's grid. The
        first n maps give the input of the first n steps.
        """
        tokens, schedule = self._checked(tokens, schedule)
        sums = self.quantize.partial_sums(tokens[:-1], schedule)
        grids = schedule.grids[1 : len(tokens)]
        maps = [
            shrink(f_hat, grid).flatten(2).transpose(1, 2) for f_hat, grid in zip(sums, grids, strict=True)
        ]
        empty = torch.zeros(len(tokens[0]), 0, self.config.z_channels, device=self.device)
        return torch.cat([empty, *maps], dim=1)

    def _checked(
        self, tokens: Sequence[Tensor], schedule: ScaleSchedule | None
    ) -> tuple[list[Tensor], ScaleSchedule]:
        """Token maps as ``(B, h, w)`` on this device, compared with the schedule they belong to."""
        schedule = schedule or self.schedule
        maps = [t.to(self.device) for t in tokens]
        maps = (
            [  # flat maps (B, h*w) are accepted too
                t.unflatten(1, g) if t.ndim == 2 and t.shape[1] == g[0] * g[1] else t
                for t, g in zip(maps, schedule.grids, strict=False)
            ]
            + maps[schedule.num_steps :]
        )
        grids = [tuple(t.shape[1:]) for t in maps]
        if not maps or grids != list(schedule.grids[: len(maps)]) or len({len(t) for t in maps}) > 1:
            raise GridError(
                f"expected one (B, h, w) token tensor per step for the grids {schedule}, or for the first, "
                f"got shapes {[tuple(t.shape) for t in tokens]}; for other scales pass their schedule="
            )
        for step, t in enumerate(maps):
            if t.is_floating_point() or t.is_complex():
                raise InvalidArgumentError(
                    f"tokens are whole numbers, but those of step {step} are {t.dtype}"
                )
            if t.numel() and not 0 <= int(t.min()) <= int(t.max()) < self.config.vocab_size:
                raise InvalidArgumentError(
                    f"tokens must be in 0..{self.config.vocab_size - 1}, but those of step {step} reach from "
                    f"{int(t.min())} to {int(t.max())}"
                )
        return maps, schedule

    def training_pass(
        self, images: Tensor, *, last_phi: bool | None = None
    ) -> tuple[Tensor, Tensor, list[Quantized]]:
        """Latent ``(B, z, P, P)``, quantizer loss and the chain of scales, with gradients.

        The loss is the mean over scales of ``mse(f_hat_k, sg(f)) + beta * mse(sg(f_hat_k), f)``.
        """
        f = self.features(images)
        # Quantization stays in float32 under autocast: nearest codes would change with rounded distances.
        with torch.autocast(f.device.type, enabled=False):
            chain = list(self.quantize.residual_chain(f, last_phi=last_phi))
            losses = [
                F.mse_loss(q.f_hat, f.detach()) + self.config.beta * F.mse_loss(f, q.f_hat.detach())
                for q in chain
            ]
        return f, torch.stack(losses).mean(), chain

    def straight_through(self, f: Tensor, f_hat: Tensor) -> Tensor:
        """The unclamped picture of ``f + sg(f_hat - f)``: that of f_hat, with a gradient that reaches f."""
        recon: Tensor = self.decoder(self.post_quant_conv((f + (f_hat - f).detach()).to(self.dtype)))
        return recon
