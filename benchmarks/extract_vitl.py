"""Extraction from a full-size ViT-L supernet: exactness and time of 384x12, 768x12 and 1024x24.

The weights are random and every parameter is moved off its initial value, LayerScale to about 0.1, so that
no branch is silent. Each subnet is compared in a stock `mmpretrain.VisionTransformer` in a process of its
own that never imports poa_mm.

    python benchmarks/extract_vitl.py [--json OUT]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS

import poa_mm  # noqa: F401  registers the backbone
from poa_mm.checkpoint import SUPERNET_KEY, describe_supernet
from poa_mm.deploy.extract import extract_subnets
from poa_mm.elastic import Subnet

ROOT = Path(__file__).parents[1]
SUBNETS = ('384x12', '768x12', '1024x24')
STOCK = """
import sys, torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
cfg = Config.fromfile(sys.argv[1])
network = MODELS.build(dict(cfg.model.backbone, out_type='raw'))
network.init_weights()
network.eval()
images, expected = torch.load(sys.argv[2])
with torch.no_grad():
    (found,) = network(images)
assert not any(name.split('.')[0] == 'poa_mm' for name in sys.modules)
print((found - expected).abs().max().item(), expected.abs().mean().item())
"""


def save_supernet(path: Path):
    """Write a checkpoint with a teacher of random weights; returns the teacher."""
    cfg = Config.fromfile(ROOT / 'configs' / 'poa' / 'vitl_in1k.py')
    torch.manual_seed(0)
    backbone = MODELS.build(cfg.model.backbone)
    with torch.no_grad():
        for name, param in backbone.named_parameters():
            param += (0.1 if 'gamma' in name else 0.02) * torch.randn_like(param)
    state = {f'teacher.backbone.{name}': tensor for name, tensor in backbone.state_dict().items()}
    torch.save({'state_dict': state, SUPERNET_KEY: describe_supernet(cfg.model)}, path)
    backbone.eval()
    return backbone


@torch.no_grad()
def measure(folder: Path) -> dict:
    """Extract and compare."""
    checkpoint = folder / 'supernet.pth'
    backbone = save_supernet(checkpoint)
    seconds = {}
    for verify in (False, True):
        start = time.monotonic()
        out = folder / f'verify={verify}'
        extract_subnets(checkpoint, SUBNETS, out, format='pth', verify=verify)
        seconds['verified' if verify else 'not verified'] = round(time.monotonic() - start, 1)

    images = torch.randn(2, 3, 224, 224)
    differences = {}
    for subnet in SUBNETS:
        features = backbone.extract_features(images, Subnet.parse(subnet))
        torch.save((images, torch.cat([features.cls[:, None], features.patch], dim=1)), folder / 'expected.pth')
        config = folder / 'verify=True' / f'poa_{subnet}.py'
        done = subprocess.run(
            [sys.executable, '-c', STOCK, config, folder / 'expected.pth'],
            env={key: value for key, value in os.environ.items() if key != 'PYTHONPATH'},
            cwd=folder,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        difference, size = map(float, done.stdout.split()[-2:])
        differences[subnet] = dict(max_abs_diff=difference, mean_abs_feature=round(size, 3))
    return dict(seconds=seconds, subnets=differences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--json', type=Path, metavar='OUT', help='write the result there too')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder))
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result) + '\n')


if __name__ == '__main__':
    main()
