"""Plain ResNet of any depth and bottleneck width."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from mmengine.registry import MODELS
from mmpretrain.models.backbones.resnet import Bottleneck, ResLayer, ResNet


class MidChannelsBottleneck(Bottleneck):
    """Bottleneck that is told its mid channels, where mmpretrain's divides the outputs by a whole number."""

    def __init__(self, in_channels: int, out_channels: int, mid_channels: int, expansion: int, **options: Any):
        super().__init__(in_channels, out_channels, expansion=Fraction(out_channels, mid_channels), **options)


@MODELS.register_module()
class BottleneckResNet(ResNet):
    """mmpretrain's ResNet with any numbers of blocks and any bottleneck width.

    Nothing else differs, neither the computation nor the names of the weights: with 3, 4, 6, 3 blocks and
    64 mid channels it is ``ResNet(depth=50)``. Not elastic; this is what subnets of an ``ElasticResNet`` are
    extracted to where the stock class has no such depth or width.

    Args:
        stage_blocks: Blocks of each of the four stages.
        mid_channels: Mid channels of the first stage's bottlenecks, doubled from stage to stage; the stages
            give ``4 * base_channels`` and so on, whatever they are. Default: 64.
        **options: Of ``mmpretrain.ResNet``, but for ``depth`` and ``expansion``.
    """

    def __init__(self, stage_blocks: Sequence[int], mid_channels: int = 64, **options: Any):
        depth = 3 * sum(stage_blocks) + 2  # layers, as in the name of a ResNet-50
        self.arch_settings = {depth: (MidChannelsBottleneck, tuple(stage_blocks))}
        self.mid_channels = mid_channels
        super().__init__(depth, expansion=4, **options)

    def make_res_layer(self, out_channels: int, **options: Any) -> ResLayer:
        """One stage; called by ``ResNet``."""
        mid_channels = self.mid_channels * out_channels // (4 * self.base_channels)
        return ResLayer(out_channels=out_channels, mid_channels=mid_channels, **options)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter and the number of depths, for layer-wise learning-rate decay.

        Stem at 0, then every block is a layer, as in the authors' code. No layer of its own follows the last block,
        for there is no last norm: heads share its depth. mmpretrain's ResNet, which knows three depths only, joins up
        to four blocks in a layer.
        """
        last = sum(self.stage_blocks)
        if not param_name.startswith(prefix):
            return last, last + 1
        stage, _, rest = param_name[len(prefix) :].partition('.')
        if stage not in self.res_layers:
            return 0, last + 1
        before = sum(self.stage_blocks[: self.res_layers.index(stage)])
        return before + int(rest.split('.')[0]) + 1, last + 1
