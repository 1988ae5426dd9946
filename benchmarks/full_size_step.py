"""One optimisation step of the full-size supernets on the CPU: seconds, peak memory, parameters.

Each config is built as shipped, in a process of its own: teacher, both students, all heads. A batch of random images
with the config's views and masks goes through the loss, backward, clipping, AdamW and the teacher's update.

    python benchmarks/full_size_step.py [CONFIG ...] [--batch-size 2] [--json OUT]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.structures import DataSample
from torch import Tensor

CONFIGS = Path(__file__).parents[1] / 'configs' / 'poa'
DEFAULT = [CONFIGS / f'{name}_in1k.py' for name in ('vitl', 'swinb', 'r152')]
EMA_MOMENTUM = 0.992
LOCAL_SIZE = 96  # pixels of the recipe's local crops


def random_batch(cfg: Config, model, batch_size: int) -> tuple[list[Tensor], list[DataSample]]:
    """Noise in the shapes of the recipe: two global and eight local crops, masks on a fifth of the patches."""
    num_views = sum(next(t.num_views for t in cfg.train_pipeline if 'MultiView' in t.type))
    sizes = [model.backbone.img_size] * 2 + [(LOCAL_SIZE, LOCAL_SIZE)] * (num_views - 2)
    views = [torch.randn(batch_size, 3, *size) for size in sizes]
    grid = model.backbone.mask_grid(model.backbone.img_size)
    return views, [DataSample(mask=torch.rand(2, *grid) < 0.2) for _ in range(batch_size)]


def measure(path: Path, batch_size: int) -> dict:
    """Build the supernet of a config, take one step and tell what it took."""
    MMLogger.get_instance('benchmark', log_level='ERROR').setLevel('ERROR')
    start = time.monotonic()

    def stage(text: str) -> None:
        print(f'{path.stem}: {time.monotonic() - start:6.1f} s  {text}', flush=True)

    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.train()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    views, samples = random_batch(cfg, model, batch_size)
    stage(f'built, {len(model.backbone.space)} subnets')

    step, cpu = time.monotonic(), time.process_time()
    losses = model.loss(views, samples)
    stage(f'loss {losses["loss"].item():.4f}')
    optim_wrapper.update_params(losses['loss'])
    with torch.no_grad():
        for name, student in model.student.items():
            teacher = list(model.teacher[name].parameters())
            torch._foreach_lerp_(teacher, list(student.parameters()), 1 - EMA_MOMENTUM)
    seconds, cpu_seconds = time.monotonic() - step, time.process_time() - cpu
    stage('stepped')
    finite = all(value.isfinite().all() for value in model.parameters())
    return dict(
        config=path.stem,
        batch_size=batch_size,
        subnets=len(model.backbone.space),
        backbone_params=sum(p.numel() for p in model.backbone.parameters()),
        head_params=sum(p.numel() for p in model.head.parameters()),
        loss=round(losses['loss'].item(), 4),
        finite=finite,
        step_seconds=round(seconds, 1),
        step_cpu_seconds=round(cpu_seconds, 1),
        peak_rss_gib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='*', type=Path, default=DEFAULT, metavar='CONFIG', help='default: all three')
    parser.add_argument('--batch-size', type=int, default=2, help='images (default: 2)')
    parser.add_argument('--json', type=Path, metavar='OUT', help='write the result there too')
    args = parser.parse_args()
    results = []
    for path in args.configs:
        # A process of its own, for the peak is that of all that it ever held.
        with multiprocessing.get_context('spawn').Pool(1) as pool:
            results.append(pool.apply(measure, (path, args.batch_size)))
        print(json.dumps(results[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + '\n')


if __name__ == '__main__':
    main()
