"""The convolutional autoencoder under the tokenizers: residual blocks, attention, up- and downsampling.

Pictures are ``(B, C, H, W)``. In memory their channels come last inside encoder and decoder, which is how
convolutions are fastest. Attribute names are the keys of the published checkpoints, so a state dict loads
without renaming.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextscale.errors import InvalidArgumentError
from nextscale.kernels import fused_for, of_weight

NORM_GROUPS = 32
NORM_EPS = 1e-6
TRANSPOSED_CHANNELS = 512
FEW_CHANNELS = 64  # a multiple of it is what cuDNN multiplies fast

# A number of groups, or several of which the first that divides the channels is taken.
Groups = int | tuple[int, ...]


def group_norm(channels: int, groups: Groups = NORM_GROUPS) -> nn.GroupNorm:
    choices = (groups,) if isinstance(groups, int) else groups
    chosen = next((g for g in choices if channels % g == 0), choices[0])
    return nn.GroupNorm(chosen, channels, eps=NORM_EPS)


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions added to the input (or to its 1x1 projection)."""

    def __init__(self, channels: int, out_channels: int, *, groups: Groups = NORM_GROUPS) -> None:
        super().__init__()
        self.norm1 = group_norm(channels, groups)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:  # (B, channels, H, W) -> (B, out_channels, H, W)
        h = normed(self.norm1, x)
        h, bias = convolved(self.conv1, h)  # one after the other, so that what came before can go
        h = normed(self.norm2, h, bias)
        h, bias = convolved(self.conv2, h)
        return self.joined(h, x, bias)

    def joined(self, h: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """What the convolutions made plus the block's input; h is overwritten where no gradient needs it.

        bias: that is still to be added to h, see :func:`convolved`.
        """
        shortcut = x if self.nin_shortcut is None else self.nin_shortcut(x)
        fused = fused_for(h)
        if bias is not None and fused is not None:
            made: Tensor = fused.add_biased(h, shortcut, bias)
            return made
        return h + shortcut if h.requires_grad or shortcut.requires_grad else h.add_(shortcut)


def convolved(conv: nn.Conv2d, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The convolution, and its bias if it is still to be added.

    cuDNN leaves the bias to a pass over the map of its own, so on a GPU what comes next adds it on the way.
    """
    if fused_for(x) is None or not x.is_contiguous(memory_format=torch.channels_last):
        return conv(x), None
    return F.conv2d(x, conv.weight, None, conv.stride, conv.padding), conv.bias


def normed(norm: nn.GroupNorm, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """The norm of x plus a bias ``(C,)``, then SiLU."""
    fused, pixels = fused_for(x), x.shape[2] * x.shape[3]
    if (
        fused is not None
        and pixels % fused.PIXELS == 0
        and x.is_contiguous(memory_format=torch.channels_last)
    ):
        made: Tensor = fused.group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, norm.eps, bias)
        return made
    return activate(norm(x if bias is None else x + bias[:, None, None]))


def few_channels(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 3x3 convolution to a few channels.

    cuDNN has no fast way for three, so on a GPU they are computed with zeros beside them.
    """
    if fused_for(x) is None:
        return conv(x)
    missing = -conv.out_channels % FEW_CHANNELS
    weight = F.pad(conv.weight, (0, 0, 0, 0, 0, 0, 0, missing)).contiguous(memory_format=torch.channels_last)
    made = F.conv2d(x, weight, None, conv.stride, conv.padding)[:, : conv.out_channels]
    return made if conv.bias is None else made + conv.bias[:, None, None]


def activate(x: Tensor) -> Tensor:
    """SiLU; x is overwritten where no gradient needs it."""
    return F.silu(x, inplace=not x.requires_grad)


class SpatialAttention(nn.Module):
    """Single-head self-attention over all positions of a feature map."""

    def __init__(self, channels: int, *, groups: Groups = NORM_GROUPS) -> None:
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> same
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)  # each (B, H*W, C)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Halve both sides. Padding goes to the right and the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double both sides by repetition, then smooth with a learned 3x3 convolution.

    On a CPU and without gradients it is computed as one transposed convolution, in 4/9 of the operations, up
    to a number of channels: wider layers have the smallest maps, for which making the kernel takes longer
    than it saves.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.conv.weight, self.conv.bias
        learning = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        if x.device.type == "cpu" and x.shape[1] <= TRANSPOSED_CHANNELS and not learning:
            return F.conv_transpose2d(x, of_weight(transposed_kernel, weight), bias, stride=2, padding=1)
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


def transposed_kernel(weight: Tensor) -> Tensor:
    """The kernel that makes a transposed convolution of stride 2 of a repetition and a 3x3 convolution.

    ``(out, in, 3, 3)`` -> ``(in, out, 4, 4)``. Along a side, each of the two copies of a value spreads over
    three places by the flipped kernel, the second one place further, which makes four.
    """
    spread = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    precise = torch.promote_types(weight.dtype, torch.float32)
    both = torch.kron(spread, spread).to(weight.device, precise)  # (9, 16)
    kernel = (weight.to(precise).flatten(2) @ both).to(weight.dtype)
    return kernel.unflatten(2, (4, 4)).transpose(0, 1).contiguous(memory_format=torch.channels_last)


class Level(nn.Module):
    """One resolution: residual blocks, attention after each where asked for, then an optional resampling."""

    def __init__(
        self,
        widths: Sequence[int],
        *,
        attention: bool,
        downsample: bool = False,
        upsample: bool = False,
        groups: Groups = NORM_GROUPS,
    ) -> None:
        super().__init__()
        pairs = list(zip(widths, widths[1:], strict=False))
        self.block = nn.ModuleList(ResBlock(i, o, groups=groups) for i, o in pairs)
        self.attn = nn.ModuleList(SpatialAttention(o, groups=groups) for _, o in (pairs if attention else []))
        if downsample:
            self.downsample = Downsample(widths[-1])
        if upsample:
            self.upsample = Upsample(widths[-1])

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class Middle(nn.Module):
    """The bottleneck: residual block, attention where asked for, residual block."""

    def __init__(self, channels: int, *, attention: bool = True, groups: Groups = NORM_GROUPS) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, groups=groups)
        self.attn_1 = SpatialAttention(channels, groups=groups) if attention else None
        self.block_2 = ResBlock(channels, channels, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block_1(x)
        return self.block_2(x if self.attn_1 is None else self.attn_1(x))


class Encoder(nn.Module):
    """Pictures ``(B, in_channels, H, W)`` to latents ``(B, z_channels, H / r, W / r)``, r = 2^(levels - 1).

    Level ``i`` is ``ch * ch_mult[i]`` wide; the deepest level and the middle attend over all positions where
    ``attention`` is on.
    """

    def __init__(
        self,
        *,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        z_channels: int,
        in_channels: int = 3,
        attention: bool = True,
        groups: Groups = NORM_GROUPS,
    ) -> None:
        super().__init__()
        widths = [ch * m for m in ch_mult]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                [widths[i - 1] if i else ch] + [width] * num_res_blocks,
                attention=attention and i == last,
                downsample=i != last,
                groups=groups,
            )
            for i, width in enumerate(widths)
        )
        self.mid = Middle(widths[-1], attention=attention, groups=groups)
        self.norm_out = group_norm(widths[-1], groups)
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        for level in self.down:
            x = level(x)
        return self.conv_out(normed(self.norm_out, self.mid(x)))


class Decoder(nn.Module):
    """Latents ``(B, z_channels, h, w)`` to pictures ``(B, in_channels, h * r, w * r)``, not clamped.

    One residual block more per level than the encoder. Levels are numbered by resolution, 0 the finest, so
    the forward pass runs from the highest number down.
    """

    def __init__(
        self,
        *,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        z_channels: int,
        in_channels: int = 3,
        attention: bool = True,
        groups: Groups = NORM_GROUPS,
    ) -> None:
        super().__init__()
        widths = [ch * m for m in ch_mult]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], attention=attention, groups=groups)
        self.up = nn.ModuleList(
            Level(
                [widths[min(i + 1, last)]] + [width] * (num_res_blocks + 1),
                attention=attention and i == last,
                upsample=i != 0,
                groups=groups,
            )
            for i, width in enumerate(widths)
        )
        self.norm_out = group_norm(widths[0], groups)
        self.conv_out = nn.Conv2d(widths[0], in_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z.contiguous(memory_format=torch.channels_last)))
        for level in reversed(self.up):
            x = level(x)
        return few_channels(self.conv_out, normed(self.norm_out, x))


def check_images(images: Tensor, *, channels: int, multiple: int) -> None:
    """Raises InvalidArgumentError unless images are floats ``(B, channels, H, W)`` with sides that divide."""
    if (
        not images.is_floating_point()
        or images.ndim != 4
        or images.shape[1] != channels
        or any(s % multiple for s in images.shape[2:])
    ):
        raise InvalidArgumentError(
            f"expected floating-point images (B, {channels}, H, W) in [-1, 1] with sides that are multiples "
            f"of {multiple}, got {images.dtype} {tuple(images.shape)}"
        )
