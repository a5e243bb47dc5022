"""The linear layer that all families use."""

from __future__ import annotations

from torch import Tensor, nn

from nextscale.kernels import linear


class Linear(nn.Linear):
    """``nn.Linear`` by way of :func:`nextscale.kernels.linear`."""

    def forward(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        return linear(x, self.weight, self.bias, gelu=gelu)
