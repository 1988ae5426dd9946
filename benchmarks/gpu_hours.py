"""How many GPU hours the recipes would take, by arithmetic: nothing runs, and no GPU is needed.

Counted are the matrix products and convolutions of the backbones in a step, over all subnets as the deck deals them:
the teacher's forward pass of the two global crops, and forward and backward passes (as much as three forward passes) of
both students on all crops. Heads and losses are not counted.

    python benchmarks/gpu_hours.py [--tflops 100] [--json OUT]

`--tflops` is what a GPU does of them in a second; `bench_gpu.py` measures it where there is one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from rich.console import Console
from rich.table import Table
from torch import nn

import poa_mm  # noqa: F401  registers the models

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ('vitl_in1k', 'swinb_in1k', 'r152_in1k', 'vits_in1k_1gpu')
GLOBAL, LOCAL = (2, 224), (8, 96)  # crops of an image, and their pixels


def backbone_of(cfg: Config, size: int) -> nn.Module:
    """The supernet for images of a size, without weights."""
    with torch.device('meta'):
        return MODELS.build({**cfg.model.backbone, 'img_size': size})


def flops_of_an_image(cfg: Config) -> float:
    """FLOPs of a step for each image, the mean over what the deck deals."""
    large, small = (backbone_of(cfg, size) for _, size in (GLOBAL, LOCAL))
    space, scale = large.space, (cfg.model.get('deck') or {}).get('select_scale', 3)
    cards = {subnet: space.multiplicity(subnet, scale) for subnet in space}

    def crops(subnet):
        return GLOBAL[0] * large.cost(subnet).flops + LOCAL[0] * small.cost(subnet).flops

    elastic = sum(number * crops(subnet) for subnet, number in cards.items()) / sum(cards.values())
    return GLOBAL[0] * large.cost(space.largest).flops + 3 * crops(space.largest) + 3 * elastic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tflops', type=float, default=100, help='TFLOP a second of a GPU (default: 100)')
    parser.add_argument('--json', type=Path, metavar='OUT', help='write the result there too')
    args = parser.parse_args()
    init_default_scope('mmpretrain')
    rows = {}
    for name in RECIPES:
        cfg = Config.fromfile(ROOT / 'configs' / 'poa' / f'{name}.py')
        flops = flops_of_an_image(cfg)
        images = cfg.train_cfg.max_iters * cfg.recipe.batch_size * cfg.recipe.get('gpus', 1)
        rows[name] = dict(tflop=flops / 1e12, images=images, gpu_hours=flops * images / (args.tflops * 1e12) / 3600)
    table = Table('recipe', 'TFLOP an image', 'million images', f'GPU hours at {args.tflops:g} TFLOP/s')
    for name, row in rows.items():
        table.add_row(name, f'{row["tflop"]:.2f}', f'{row["images"] / 1e6:.0f}', f'{row["gpu_hours"]:,.0f}')
    Console().print(table)
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1) + '\n')


if __name__ == '__main__':
    main()
