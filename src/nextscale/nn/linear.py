"""The linear layer that all families use."""

from __future__ import annotations

from torch import Tensor, nn

from nextscale.kernels import linear


class Linear(nn.Linear):
    """``nn.Linear`` by way of :func:`nextscale.kernels.linear`."""

    def forward(self, x: Tensor, *, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
        """bias: in place of the layer's own."""
        return linear(x, self.weight, self.bias if bias is None else bias, gelu=gelu, recurring=True)
