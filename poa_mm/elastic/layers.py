"""Elastic layers and the one slicing rule that training and extraction share.

Width travels with the activations: a layer reads the width in use off ``x.shape[-1]`` and computes
with the leading slice of its parameters. Convolutions, around which only some channels are cut, are told.
No layer remembers a subnet. At full size the plain op runs.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def leading(tensor: Tensor, width: int) -> Tensor:
    """The first ``width`` entries of the last dimension, as a view."""
    return tensor[..., :width]


class ElasticLayer:
    """A module whose parameters can be cut to a part of its width."""

    def sliced_state(self, ratio: Fraction) -> dict[str, Tensor]:
        """Parameters of the plain layer that this layer is at ``ratio`` of its full width."""
        raise NotImplementedError


class ElasticLinear(nn.Linear, ElasticLayer):
    """Linear layer that takes any leading part of its inputs.

    With ``in`` of ``in_features`` inputs, it multiplies the leading slice of its weight by
    ``alpha = in_features / in``, which keeps the scale of the outputs (POA, Sec. 3.2; the bias is
    not scaled). The outputs are cut by the same ratio.

    Args:
        in_features: Inputs at full width.
        out_features: Outputs at full width.
        bias: Learn a bias. Default: True.
        stacked: Number of matrices stacked along the outputs, each cut by itself: 3 for the
            query, key and value of attention. Default: 1.
        elastic_out: Cut the outputs too. False for the first layer of a head. Default: True.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        stacked: int = 1,
        elastic_out: bool = True,
    ):
        super().__init__(in_features, out_features, bias)
        self.stacked = stacked
        self.elastic_out = elastic_out

    def sliced(self, in_features: int) -> tuple[Tensor, Tensor | None]:
        """Weight ``(out, in)``, alpha multiplied in, and bias ``(out,)`` in use for ``in_features`` inputs."""
        out = self.out_features // self.stacked
        bias: Tensor | None = self.bias
        if self.elastic_out:
            out = out * in_features // self.in_features
            if bias is not None:
                bias = leading(bias.unflatten(0, (self.stacked, -1)), out).flatten()
        weight = self.weight.unflatten(0, (self.stacked, -1))[:, :out, :in_features]
        # The weight, not the inputs: it is the smaller, and so the layer is its extracted counterpart to the last bit.
        return (weight * (self.in_features / in_features)).flatten(0, 1), bias

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        if x.shape[-1] == self.in_features:
            return F.linear(x, self.weight, self.bias)
        return F.linear(x, *self.sliced(x.shape[-1]))

    def sliced_state(self, ratio: Fraction) -> dict[str, Tensor]:
        weight, bias = self.sliced(int(self.in_features * ratio))
        state = {'weight': weight}
        if bias is not None:
            state['bias'] = bias.clone()
        return state


class ElasticLayerNorm(nn.LayerNorm, ElasticLayer):
    """LayerNorm over however many channels arrive, with the leading slice of gain and bias.

    Args:
        width: Channels at full width.
        eps: Added to the variance. Default: 1e-6.
    """

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., width)`` to the same."""
        width = x.shape[-1]
        if (width,) == self.normalized_shape:
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return F.layer_norm(x, (width,), leading(self.weight, width), leading(self.bias, width), self.eps)

    def sliced_state(self, ratio: Fraction) -> dict[str, Tensor]:
        width = int(self.normalized_shape[0] * ratio)
        return {'weight': leading(self.weight, width).clone(), 'bias': leading(self.bias, width).clone()}


class ElasticLayerScale(nn.Module, ElasticLayer):
    """Learned gain per channel of a residual branch (LayerScale), leading slice in use.

    The parameter is called ``weight``, as in mmpretrain's LayerScale.

    Args:
        width: Channels at full width.
        init_value: Initial gain. Default: 1e-5.
    """

    def __init__(self, width: int, init_value: float = 1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.full((width,), float(init_value)))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., width)`` to the same."""
        return x * leading(self.weight, x.shape[-1])

    def sliced_state(self, ratio: Fraction) -> dict[str, Tensor]:
        return {'weight': leading(self.weight, int(len(self.weight) * ratio)).clone()}


class ElasticConv2d(nn.Conv2d, ElasticLayer):
    """Convolution without bias that takes, and gives, any leading part of its channels.

    With ``in`` of ``in_channels`` inputs, it uses the leading slice of its weight times
    ``alpha = in_channels / in``, as :class:`ElasticLinear` does.

    Args:
        in_channels: Inputs at full width.
        out_channels: Outputs at full width.
        kernel_size: Rows and columns of the kernel.
        stride: Default: 1.
        padding: Zeros around the map. Default: 0.
        elastic_in: Cut the inputs. Default: True.
        elastic_out: Cut the outputs. Default: True.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        elastic_in: bool = True,
        elastic_out: bool = True,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.elastic_in = elastic_in
        self.elastic_out = elastic_out

    def sliced(self, ratio: Fraction | int) -> Tensor:
        """Weight ``(out, in, rows, columns)`` in use at ``ratio`` of the full width, alpha multiplied in."""
        weight = self.weight[: int(self.out_channels * ratio)] if self.elastic_out else self.weight
        if not self.elastic_in:
            return weight
        in_channels = int(self.in_channels * ratio)
        return weight[:, :in_channels] * (self.in_channels / in_channels)

    def forward(self, x: Tensor, ratio: Fraction | int = 1) -> Tensor:
        """``(B, in, H, W)`` to ``(B, out, H', W')`` at ``ratio`` of the full width. Default: 1."""
        weight = self.weight if ratio == 1 else self.sliced(ratio)
        return F.conv2d(x, weight, None, self.stride, self.padding)

    def sliced_state(self, ratio: Fraction) -> dict[str, Tensor]:
        return {'weight': self.sliced(ratio).clone()}


class ElasticGroupNorm(nn.GroupNorm, ElasticLayer):
    """GroupNorm over however many channels arrive, with the leading slice of gain and bias.

    The number of groups stays: each has fewer channels.

    Args:
        num_groups: Groups; has to divide every width in use.
        num_channels: Channels at full width.
    """

    def __init__(self, num_groups: int, num_channels: int):
        super().__init__(num_groups, num_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, width, H, W)`` to the same."""
        width = x.shape[1]
        if width == self.num_channels:
            return super().forward(x)
        return F.group_norm(x, self.num_groups, leading(self.weight, width), leading(self.bias, width), self.eps)

    def sliced_state(self, ratio: Fraction) -> dict[str, Tensor]:
        width = int(self.num_channels * ratio)
        return {'weight': leading(self.weight, width).clone(), 'bias': leading(self.bias, width).clone()}


def sliced_state_dict(module: nn.Module, ratio: Fraction, keep_rest: bool = False) -> dict[str, Tensor]:
    """State dict of the plain counterpart of ``module`` at ``ratio`` of its full width.

    The same slices that ``forward`` uses, alpha multiplied into the weights. Every parameter below
    ``module`` has to belong to an :class:`ElasticLayer`, so that none is dropped unseen.

    Args:
        module: A network or a part of it.
        ratio: Part of the full width.
        keep_rest: Copy the parameters of layers that are not elastic instead. Default: False.
    """
    state = {}
    with torch.no_grad():
        for name, layer in module.named_modules():
            if isinstance(layer, ElasticLayer):
                prefix = f'{name}.' if name else ''
                state.update({f'{prefix}{key}': value for key, value in layer.sliced_state(ratio).items()})
    rest = {name: value for name, value in module.state_dict().items() if name not in state}
    assert keep_rest or not rest, f'parameters without a slicing rule: {sorted(rest)}'
    return state | {name: value.clone() for name, value in rest.items()}
