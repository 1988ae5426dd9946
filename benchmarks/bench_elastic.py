"""What elasticity costs: elastic blocks against plain ones, forward and backward, in float32 on the CPU.

A ViT supernet of 384x12 at full size against the same network of `nn.Linear`, `nn.LayerNorm` and mmpretrain's
`LayerScale`, and its subnet 192x6 against a plain network of that size. Both get the same crops and hold weights that
compute the same; that they do is checked first. They run by turns; the ratio is the median over the turns.

    python benchmarks/bench_elastic.py [--repeats 25] [--json OUT]

The JSON has `full_size_ratio` and `subnet_ratio`, elastic over plain, and medians in seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from mmengine.registry import MODELS
from mmpretrain.models.utils import LayerScale
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import poa_mm  # noqa: F401  registers the backbone
from poa_mm.elastic import ElasticLayerNorm, ElasticLayerScale, ElasticLinear, Subnet
from poa_mm.engine.memory import keep_freed_memory

CASES = {'full_size': Subnet(384, 12), 'subnet': Subnet(192, 6)}
BATCH = 4
CROPS = {224: 2, 96: 8}  # pixels: number
TOLERANCE = 1e-4


def vision_transformer(subnet: Subnet, **kwargs) -> nn.Module:
    """A supernet whose largest subnet is ``subnet``."""
    arch = dict(
        embed_dims=subnet.width,
        num_layers=subnet.depth,
        num_heads=subnet.width // 64,
        feedforward_channels=4 * subnet.width,
    )
    return MODELS.build(dict(type='ElasticVisionTransformer', arch=arch, layer_scale_init_value=0.1, **kwargs))


def plain(layer: nn.Module) -> nn.Module | None:
    """The plain counterpart of an elastic layer; None for any other module."""
    if isinstance(layer, ElasticLinear):
        return nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    if isinstance(layer, ElasticLayerNorm):
        return nn.LayerNorm(layer.normalized_shape, layer.eps)
    if isinstance(layer, ElasticLayerScale):
        return LayerScale(len(layer.weight))
    return None


def plain_transformer(supernet: nn.Module, subnet: Subnet) -> nn.Module:
    """The same blocks of plain layers with the weights of ``subnet``."""
    network = vision_transformer(subnet, widths=[subnet.width], depths=[subnet.depth])
    for module in list(network.modules()):
        for name, child in module.named_children():
            if (layer := plain(child)) is not None:
                setattr(module, name, layer)
    missing, unexpected = network.load_state_dict(supernet.extract(subnet)[1], strict=False)
    assert missing == ['mask_token'] and not unexpected, (missing, unexpected)
    return network


def tokens(network: nn.Module, crops: list[Tensor], subnet: Subnet | None) -> list[Tensor]:
    return [feature for crop in crops for feature in network.extract_features(crop, subnet)]


def seconds(network: nn.Module, crops: list[Tensor], subnet: Subnet | None, grads: list[Tensor]) -> float:
    """Of a forward and a backward pass."""
    network.zero_grad()
    start = time.perf_counter()
    torch.autograd.backward(tokens(network, crops, subnet), grads)
    return time.perf_counter() - start


def measure(repeats: int) -> dict:
    """Both cases."""
    keep_freed_memory()  # as tools/train.py does on a machine without GPU
    torch.manual_seed(0)
    supernet = vision_transformer(CASES['full_size'], widths=[192, 384], depths=range(6, 13))
    supernet.init_weights()
    crops = [torch.randn(number * BATCH, 3, size, size) for size, number in CROPS.items()]
    result = dict(threads=torch.get_num_threads(), repeats=repeats)
    for case, subnet in CASES.items():
        network = plain_transformer(supernet, subnet)
        with torch.no_grad():
            pairs = list(zip(tokens(supernet, crops, subnet), tokens(network, crops, None)))
        difference = max((elastic - other).abs().max().item() for elastic, other in pairs)
        assert difference < TOLERANCE, difference
        grads = [torch.randn_like(feature) for feature, _ in pairs]
        contenders = {'elastic': (supernet, crops, subnet, grads), 'plain': (network, crops, None, grads)}
        runs = {name: [] for name in contenders}
        for turn in range(repeats + 1):
            for name in sorted(contenders, reverse=bool(turn % 2)):
                runs[name].append(seconds(*contenders[name]))
        pairs = list(zip(runs['elastic'], runs['plain']))[1:]  # the first warms up
        result |= {
            f'{case}_ratio': round(statistics.median(elastic / other for elastic, other in pairs), 3),
            f'{case}_seconds': {name: round(statistics.median(column), 4) for name, column in zip(runs, zip(*pairs))},
            f'{case}_difference': difference,
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repeats', type=int, default=25, help='turns of each network (default: 25)')
    parser.add_argument('--json', type=Path, metavar='OUT', help='write the result there too')
    args = parser.parse_args()
    result = measure(args.repeats)
    table = Table('network', 'elastic, seconds', 'plain, seconds', 'ratio')
    for case, subnet in CASES.items():
        spent = result[f'{case}_seconds']
        table.add_row(str(subnet), str(spent['elastic']), str(spent['plain']), str(result[f'{case}_ratio']))
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    main()
