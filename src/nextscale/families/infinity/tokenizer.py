"""Infinity's tokenizer: pictures to maps of bits, one map per scale, and back.

Every cell of every map has d bits; bit 1 stands for ``+1/sqrt(d)`` and bit 0 for ``-1/sqrt(d)``, so a code is
a corner of the cube in the unit sphere and there is no codebook to learn. The latent is the sum of the
bilinearly resized codes of all scales. Source: Han et al. 2024 (arXiv 2412.04431).

A map of bits has two layouts. The tokenizer's is ``(B, H, W, d)``, a cell of the latent per position. The
transformer's is ``(B, h, w, D)``, a token per position. They differ with spatial patchify alone (the 8B
models), where a token is a block of 2x2 cells and ``D = 4d``. Schedules are always the transformer's grids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from nextscale.errors import GridError, InvalidArgumentError
from nextscale.families.infinity.bits import (
    PATCH,
    QuantizedBits,
    SelfCorrection,
    bit_codes,
    draw_flips,
    entropy_penalty,
    resize,
    to_cells,
    to_tokens,
)
from nextscale.families.infinity.schedules import PIXELS, released, snap
from nextscale.nn.autoencoder import Decoder, Encoder, check_images
from nextscale.nn.bounds import bounded
from nextscale.nn.quantizer import shrink
from nextscale.nn.strips import decode_in_strips
from nextscale.scales import Grid, ScaleSchedule

NORM_GROUPS = (32, 24)  # of the published files


@dataclass(frozen=True)
class InfinityTokenizerConfig:
    """Sizes of the tokenizer; the defaults are those of the published stride-16, 32-bit files.

    bits: per cell. ch, encoder_ch_mult, decoder_ch_mult: level i has ``ch * mult[i]`` channels.
    num_res_blocks: per level of the encoder; the decoder has one more.
    norm_groups: of the group norms; a layer takes the first number that divides its channels. With as many
        groups as channels the mean of a channel is lost, so narrow tokenizers need fewer than published.
    patchify: a token of the transformer is a block of 2x2 cells.
    patch_nums: side (or ``(height, width)``) of every scale of the transformer's grid, for a tokenizer with a
        schedule of its own; ``None`` for the published ones.
    beta, entropy: weights of the two terms of :meth:`InfinityTokenizer.training_forward`.
    """

    bits: int = 32
    ch: int = 128
    encoder_ch_mult: tuple[int, ...] = (1, 2, 4, 4, 4)
    decoder_ch_mult: tuple[int, ...] = (1, 2, 4, 4, 4)
    num_res_blocks: int = 2
    in_channels: int = 3
    patchify: bool = False
    patch_nums: tuple[int | Grid, ...] | None = None
    beta: float = 0.25
    entropy: float = 0.1
    norm_groups: tuple[int, ...] = NORM_GROUPS

    def __post_init__(self) -> None:
        for name in ("encoder_ch_mult", "decoder_ch_mult", "patch_nums", "norm_groups"):  # JSON has no tuples
            given = getattr(self, name)
            value = None if given is None else tuple(tuple(v) if isinstance(v, list) else v for v in given)
            object.__setattr__(self, name, value)
        if self.bits < 1:
            raise InvalidArgumentError(f"a cell has at least one bit, got {self.bits}")
        if self.patch_nums is not None:
            ScaleSchedule.from_sides(self.patch_nums)  # raises where the grids are none
        if not self.encoder_ch_mult or len(self.encoder_ch_mult) != len(self.decoder_ch_mult):
            raise InvalidArgumentError(
                f"encoder and decoder need the same number of levels, got the widths "
                f"{self.encoder_ch_mult} and {self.decoder_ch_mult}"
            )
        for width in (self.ch * m for m in (1, *self.encoder_ch_mult, *self.decoder_ch_mult)):
            if width < 1 or all(width % groups for groups in self.norm_groups):
                known = " or ".join(map(str, self.norm_groups))
                raise InvalidArgumentError(
                    f"widths must be multiples of {known} for the groups of the norms, got {width}"
                )

    @property
    def schedule(self) -> ScaleSchedule | None:
        """The one schedule of the tokenizer, on the transformer's grid, if it has just one."""
        return None if self.patch_nums is None else ScaleSchedule.from_sides(self.patch_nums)

    @property
    def reduction(self) -> int:
        """Pixels per cell along a side."""
        return int(2 ** (len(self.encoder_ch_mult) - 1))

    @property
    def patch(self) -> int:
        """Cells per token along a side."""
        return PATCH if self.patchify else 1

    @property
    def token_bits(self) -> int:
        """Bits per token of the transformer, D."""
        return self.bits * self.patch**2

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


# A step and its bits -> which of them to flip.
Flip = Callable[[int, Tensor], Tensor]


class InfinityTokenizer(nn.Module):
    """Convolutional autoencoder around a multi-scale binary quantizer.

    The quantizer has no parameters. Its sums are float32 whatever the dtype of the weights, because a rounded
    sum would change the bits of every finer scale.
    """

    def __init__(self, config: InfinityTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        sizes: dict[str, Any] = dict(
            ch=config.ch,
            num_res_blocks=config.num_res_blocks,
            z_channels=config.bits,
            in_channels=config.in_channels,
            attention=False,
            groups=config.norm_groups,
        )
        self.encoder = Encoder(ch_mult=config.encoder_ch_mult, **sizes)
        self.decoder = Decoder(ch_mult=config.decoder_ch_mult, **sizes)

    @property
    def dtype(self) -> torch.dtype:
        return self.encoder.conv_in.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.encoder.conv_in.weight.device

    @property
    def schedule(self) -> ScaleSchedule | None:
        return self.config.schedule

    # ------------------------------------------------------------------ pictures to bits

    def features(self, images: Tensor) -> Tensor:
        """Pictures ``(B, 3, H, W)`` in [-1, 1] -> what gets quantized, ``(B, d, H / r, W / r)`` float32."""
        multiple = self.config.reduction * self.config.patch
        check_images(images, channels=self.config.in_channels, multiple=multiple)
        f: Tensor = self.encoder(images.to(self.device, self.dtype))
        return f.float()

    def quantized(self, images: Tensor, schedule: ScaleSchedule | None = None) -> list[QuantizedBits]:
        """Bits, partial sum and residual of every scale; schedule: see :meth:`encode`."""
        return list(self.residual_chain(self.features(images), schedule))

    @torch.no_grad()
    def encode(self, images: Tensor, schedule: ScaleSchedule | None = None) -> list[Tensor]:
        """Pictures ``(B, 3, H, W)`` in [-1, 1] -> one int64 tensor of bits ``(B, H_i, W_i, d)`` per step.

        schedule: the transformer's grids; left out, it is the tokenizer's own, or the published one for
            pictures of this size.
        """
        return [q.bits for q in self.quantized(images, schedule)]

    def residual_chain(
        self, features: Tensor, schedule: ScaleSchedule | None = None, flip: Flip | None = None
    ) -> Iterator[QuantizedBits]:
        """Quantize features ``(B, d, H, W)`` scale by scale, coarse to fine.

        flip: given a step and its bits, says which of them (1, others 0) are wrong in the sum.
        """
        f = features.to(self.device).float()
        final = (f.shape[2], f.shape[3])
        f_hat = torch.zeros_like(f)
        for step, grid in enumerate(self.cells(self.schedule_for(final, schedule))):
            residual = shrink(f - f_hat, grid)
            bits = (residual > 0).permute(0, 2, 3, 1).long()
            f_hat = f_hat + self.term(bits if flip is None else bits ^ flip(step, bits), final)
            yield QuantizedBits(bits, f_hat, residual)

    def term(self, bits: Tensor, final: Grid) -> Tensor:
        """What one scale adds to the latent: bits ``(B, H_i, W_i, d)`` -> float32 ``(B, d, *final)``."""
        return resize(bit_codes(bits), final)

    # ------------------------------------------------------------------ bits to pictures

    @torch.no_grad()
    def decode(self, bits: Sequence[Tensor], schedule: ScaleSchedule | None = None) -> Tensor:
        """Bits of every scale -> pictures ``(B, 3, H, W)`` float32 in [-1, 1].

        bits: whole numbers or bool, one ``(B, H_i, W_i, d)`` tensor per step as :meth:`encode` gives them, or
            tokens ``(B, h, w, D)`` as the transformer draws them; their shapes tell which.
        schedule: needed for the first maps alone, which give the picture as it is after those steps, at full
            size; left out, the last map is the size of the latent.
        """
        return self.decode_latent(self.partial_sums(bits, schedule)[-1])

    @torch.no_grad()
    def decode_progressive(
        self, bits: Sequence[Tensor], schedule: ScaleSchedule | None = None
    ) -> list[Tensor]:
        """The picture after every step, each ``(B, 3, H, W)``: the coarse-to-fine story of one generation."""
        return [self.decode_latent(f_hat) for f_hat in self.partial_sums(bits, schedule)]

    def decode_latent(self, f_hat: Tensor, tile: int | None = None) -> Tensor:
        """Summed latent ``(B, d, H, W)`` -> pictures ``(B, 3, H * r, W * r)`` float32, clamped to [-1, 1].

        tile: decode in strips of this many rows of cells, to save memory: the same picture up to rounding
            (1e-5 at most in the golden cases), in up to twice the time.
        """
        z = f_hat.to(self.device, self.dtype)
        picture: Tensor = self.decoder(z) if tile is None else decode_in_strips(self.decoder, z, tile)
        return bounded(picture)

    def partial_sums(self, bits: Sequence[Tensor], schedule: ScaleSchedule | None = None) -> list[Tensor]:
        """The summed latent after every step, float32 ``(B, d, H, W)``; the arguments are those of decode."""
        maps, schedule = self._checked(bits, schedule)
        terms = (self.term(cell_bits, self.cells(schedule).final) for cell_bits in maps)
        return list(accumulate(terms))

    # ------------------------------------------------------------------ the transformer's side

    def cells(self, schedule: ScaleSchedule) -> ScaleSchedule:
        """The tokenizer's grids for the transformer's: the same, or twice as fine with spatial patchify."""
        patch = self.config.patch
        return ScaleSchedule(tuple((h * patch, w * patch) for h, w in schedule))

    def tokens(self, cells: Tensor) -> Tensor:
        """A map of cells ``(B, H_i, W_i, d)`` in the transformer's layout, ``(B, h_i, w_i, D)``."""
        return to_tokens(cells) if self.config.patchify else cells

    def input_map(self, f_hat: Tensor, grid: Grid) -> Tensor:
        """The sum so far, ``(B, d, H, W)``, as the transformer gets it for ``grid``: ``(B, h * w, D)``."""
        patch = self.config.patch
        resized = resize(f_hat, (grid[0] * patch, grid[1] * patch))
        return self.tokens(resized.permute(0, 2, 3, 1)).flatten(1, 2)

    def next_inputs(self, bits: Sequence[Tensor], schedule: ScaleSchedule | None = None) -> Tensor:
        """The transformer's teacher-forcing input: ``(B, L - l_0, D)`` float32.

        For every step but the first, the sum of the steps before, resized to that step's grid. The first n
        maps give the input of the first n steps; bits and schedule are those of :meth:`decode`.
        """
        maps, schedule = self._checked(bits, schedule)
        sums = self.partial_sums(maps, schedule)[:-1]
        return self._joined(
            len(maps[0]), [self.input_map(s, g) for s, g in zip(sums, schedule.grids[1:], strict=False)]
        )

    @torch.no_grad()
    def self_correction(
        self,
        features: Tensor,
        schedule: ScaleSchedule | None = None,
        *,
        flip_scales: int | None = None,
        max_strength: float = 0.3,
        flips: Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> SelfCorrection:
        """Teacher-forcing input with flipped bits, and targets that make up for them (arXiv 2412.04431).

        At every scale the target is what the sum so far, mistakes included, leaves over.

        features: of pictures, as :meth:`features` gives them. schedule: see :meth:`encode`.

        flip_scales: how many scales get flips, coarse ones first; ``None`` for all.
        max_strength: a scale's share of flipped bits is drawn from 0, 0.01, ..., max_strength, once per call.
        flips: bool ``(B, H_i, W_i, d)`` for the first scales, taken instead of drawn ones.
        generator: what to draw from.
        """
        if not 0 <= max_strength <= 1:
            raise InvalidArgumentError(f"max_strength is a share of the bits, 0 to 1; got {max_strength!r}")

        def flip(step: int, bits: Tensor) -> Tensor:
            if flips is not None and step < len(flips):
                if flips[step].shape != bits.shape:
                    raise GridError(
                        f"flips of step {step} must be {tuple(bits.shape)}, got {tuple(flips[step].shape)}"
                    )
                return flips[step].to(bits)
            if flips is not None or (flip_scales is not None and step >= flip_scales):
                return torch.zeros_like(bits)
            return draw_flips(bits, max_strength, generator)

        schedule = self.schedule_for((features.shape[2], features.shape[3]), schedule)
        chain = list(self.residual_chain(features, schedule, flip))
        inputs = [self.input_map(q.f_hat, grid) for q, grid in zip(chain, schedule.grids[1:], strict=False)]
        targets = [self.tokens(q.bits).flatten(1, 2) for q in chain]
        return SelfCorrection(self._joined(len(features), inputs), torch.cat(targets, 1))

    def _joined(self, batch: int, maps: list[Tensor]) -> Tensor:
        empty = torch.zeros(batch, 0, self.config.token_bits, device=self.device)
        return torch.cat([empty, *maps], dim=1)

    # ------------------------------------------------------------------ checks

    def schedule_for(self, final: Grid, schedule: ScaleSchedule | None = None) -> ScaleSchedule:
        """The transformer's grids for a latent of size ``final``: given, the tokenizer's own, or published.

        Raises GridError if the last of them is not the size of the latent.
        """
        grid = (final[0] // self.config.patch, final[1] // self.config.patch)
        side = self.config.reduction * self.config.patch
        size = f"{grid[0] * side}x{grid[1] * side}"
        schedule = schedule or self.schedule
        if schedule is None:
            schedule = next((s for s in released().values() if s.final == grid), None)
        if schedule is None:
            h, w = snap(grid[0] * PIXELS, grid[1] * PIXELS).schedule.final
            raise GridError(
                f"no published schedule is for pictures of {size} pixels (height x width); the nearest size "
                f"is {h * side}x{w * side}; for another schedule pass schedule="
            )
        if schedule.final != grid or self.cells(schedule).final != final:
            h, w = schedule.final
            raise GridError(
                f"the last scale is {schedule.final}, so images must be {h * side}x{w * side} pixels "
                f"(height x width); got {size}"
            )
        return schedule

    def _checked(
        self, bits: Sequence[Tensor], schedule: ScaleSchedule | None
    ) -> tuple[list[Tensor], ScaleSchedule]:
        """Maps of cells ``(B, H_i, W_i, d)`` on this device, and the transformer's grids they belong to."""
        if not bits:
            raise GridError("bits of at least one scale are needed, got none")
        patch, schedule = self.config.patch, schedule or self.schedule
        maps = [b.to(self.device) for b in bits]
        if schedule is not None:  # flat maps (B, h*w, D) are accepted too
            flat = [b.ndim == 3 and b.shape[1] == h * w for b, (h, w) in zip(maps, schedule, strict=False)]
            maps = [b.unflatten(1, schedule[i]) if any(flat[i : i + 1]) else b for i, b in enumerate(maps)]
        maps = [self._as_cells(b, step) for step, b in enumerate(maps)]
        grids = tuple((m.shape[1], m.shape[2]) for m in maps)
        schedule = schedule or ScaleSchedule(tuple((h // patch, w // patch) for h, w in grids))
        if self.cells(schedule).grids[: len(maps)] != grids or len({*map(len, maps)}) != 1:
            raise GridError(
                f"expected one tensor of bits (B, h, w, {self.config.token_bits}) per step for the grids "
                f"{schedule}, or for the first, got shapes {[tuple(b.shape) for b in bits]}; for other "
                f"scales pass their schedule="
            )
        return maps, schedule

    def _as_cells(self, bits: Tensor, step: int) -> Tensor:
        """Bits in either layout as cells ``(B, H_i, W_i, d)``."""
        d, token_bits = self.config.bits, self.config.token_bits
        if bits.ndim != 4 or bits.shape[3] not in (d, token_bits):
            tokens = f" or tokens (B, h, w, {token_bits})" if self.config.patchify else ""
            raise GridError(
                f"expected bits (B, H, W, {d}){tokens}, but those of step {step} are {tuple(bits.shape)}"
            )
        if bits.is_floating_point() or bits.is_complex():
            raise InvalidArgumentError(
                f"bits are whole numbers or bool, but those of step {step} are {bits.dtype}"
            )
        if bits.numel() and not 0 <= int(bits.min()) <= int(bits.max()) <= 1:
            raise InvalidArgumentError(
                f"bits are 0 or 1, but those of step {step} reach from {int(bits.min())} to {int(bits.max())}"
            )
        return to_cells(bits) if bits.shape[3] != d else bits

    # ------------------------------------------------------------------ training

    def training_forward(
        self, images: Tensor, schedule: ScaleSchedule | None = None
    ) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Unclamped reconstruction, quantizer loss and bits of every scale, with gradients.

        The decoder sees ``f + sg(f_hat - f)``, so its gradient reaches the encoder straight through. The loss
        is ``beta * |f - sg(f_hat)|^2`` (summed over channels, mean over cells: commitment) plus ``entropy``
        times the mean of :func:`~nextscale.families.infinity.bits.entropy_penalty` over scales.

        Only the whole sum is committed to. Codes have norm 1 at every scale, so pulling the features to the
        sums before it, too, makes them so short that finer scales have nothing left to correct.
        """
        f = self.features(images)
        # Quantization stays in float32 under autocast: bits would change with rounded residuals.
        with torch.autocast(f.device.type, enabled=False):
            chain = list(self.residual_chain(f, schedule))
            commitment = (f - chain[-1].f_hat).square().sum(1).mean()
            entropy = torch.stack([entropy_penalty(q.residual) for q in chain]).mean()
            loss = self.config.beta * commitment + self.config.entropy * entropy
        straight_through = f + (chain[-1].f_hat - f).detach()
        recon: Tensor = self.decoder(straight_through.to(self.dtype))
        return recon, loss, [q.bits for q in chain]
