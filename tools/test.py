"""Score a trained model, and draw what it predicts, from any mmengine config.

Several processes: python -m torch.distributed.run --nproc_per_node=GPUS tools/test.py ... --launcher pytorch
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import Runner

from poa_mm.checkpoint import read_checkpoint
from poa_mm.engine.config_keys import READ_BY_A_RUN
from poa_mm.engine.contracts import check_recorded_classes
from poa_mm.engine.hooks.model import model_of
from poa_mm.engine.launch import LAUNCHERS, leave_distributed, prepare, read_config
from poa_mm.engine.options import add_config_options
from poa_mm.engine.pretrained import load_weights
from poa_mm.evaluation.sweep_accuracy import SweepAccuracy
from poa_mm.mistakes import add_debug, run_tool

# By library: its visualizer, its hook, the hook's options that draw every image, and the one that says where to.
# mmseg's hook has none of the last and writes where the visualizer does.
DRAWING = {
    'mmdet': ('DetLocalVisualizer', 'DetVisualizationHook', {'draw': True}, 'test_out_dir'),
    'mmseg': ('SegLocalVisualizer', 'SegVisualizationHook', {'draw': True, 'interval': 1}, None),
    'mmpretrain': ('UniversalVisualizer', 'VisualizationHook', {'enable': True, 'interval': 1}, 'out_dir'),
}

READS = READ_BY_A_RUN - {'load_from', 'resume'}  # the checkpoint is an argument


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint of a run with this config')
    parser.add_argument('--work-dir', help='where the log goes (default: work_dirs/CONFIG_NAME)')
    parser.add_argument('--show-dir', metavar='DIR', help='draw the predictions on the images, into this folder')
    parser.add_argument('--out', metavar='FILE.pkl', help='keep the predictions in this file')
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none', help='how processes were started')
    add_config_options(parser)
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help=argparse.SUPPRESS)
    add_debug(parser)
    return parser.parse_args()


def draw_into(cfg: Config, folder: str) -> None:
    """Make the run draw its predictions on every image it tests.

    Raises:
        ValueError: If the config belongs to none of the libraries that draw.
    """
    scope = cfg.get('default_scope')
    if scope not in DRAWING:
        raise ValueError(f'--show-dir needs default_scope to be one of {", ".join(DRAWING)}; it is {scope!r}')
    visualizer, hook, options, out = DRAWING[scope]
    folder = str(Path(folder).absolute())  # the hooks join it to the work dir, and leave it alone if absolute
    if out is not None:
        options = {**options, out: folder}
    hooks = cfg.get('default_hooks') or {}
    cfg.default_hooks = {**hooks, 'visualization': {'type': hook, **(hooks.get('visualization') or {}), **options}}
    backends = [dict(type='LocalVisBackend', img_save_dir=folder)]
    cfg.visualizer = {'type': visualizer, **(cfg.get('visualizer') or {}), 'vis_backends': backends}


def keep_predictions(cfg: Config, path: str) -> None:
    """Make the run write its predictions to ``path``.

    Raises:
        ValueError: If the file would be none that mmengine's ``DumpResults`` writes.
    """
    if not path.endswith(('.pkl', '.pickle')):
        raise ValueError(f'--out {path} should end in .pkl')
    metrics = cfg.test_evaluator if isinstance(cfg.test_evaluator, (list, tuple)) else [cfg.test_evaluator]
    dump = 'DumpDetResults' if cfg.get('default_scope') == 'mmdet' else 'DumpResults'  # the former packs masks
    cfg.test_evaluator = [*metrics, dict(type=dump, out_file_path=path)]


def build(args: argparse.Namespace) -> Runner:
    """The runner with the checkpoint's weights, before anything is scored."""
    cfg = read_config(args.config, args.cfg_options, args.work_dir, READS)
    for name in ('test_dataloader', 'test_evaluator', 'test_cfg'):
        if cfg.get(name) is None:
            raise ValueError(f"{args.config} has no '{name}'")
    if args.show_dir:
        draw_into(cfg, args.show_dir)
    if args.out:
        keep_predictions(cfg, args.out)
    cfg.load_from, cfg.resume = None, False  # the weights are those given here, read without running anything
    prepare(cfg, args.launcher, parts=['test', 'val'] if chooses_on_val(cfg) else ['test'])
    runner = Runner.from_cfg(cfg)
    load_weights(model_of(runner), args.checkpoint)
    meta = read_checkpoint(args.checkpoint, weights=False).get('meta') or {}
    check_recorded_classes(meta, runner.test_dataloader.dataset, args.checkpoint, 'test_dataloader.dataset')
    return runner


def chooses_on_val(cfg: Config) -> bool:
    """Whether there are other images than the test's to choose the best learning rate of a sweep on."""
    metrics = cfg.test_evaluator if isinstance(cfg.test_evaluator, (list, tuple)) else [cfg.test_evaluator]
    sweep = any(metric.get('type') == 'SweepAccuracy' and metric.get('lr') is None for metric in metrics)
    val = cfg.get('val_dataloader')
    complete = val is not None and cfg.get('val_evaluator') is not None and cfg.get('val_cfg') is not None
    return sweep and complete and val.dataset != cfg.test_dataloader.dataset


def choose_rate(runner: Runner) -> None:
    """Choose the best learning rate of a sweep by validation, and have the test score that one."""
    best = runner.val_loop.run().get('accuracy/best_lr')
    if best is None:
        return
    for metric in runner.test_evaluator.metrics:
        if isinstance(metric, SweepAccuracy) and metric.lr is None:
            metric.lr = best
    print_log(f'Of the learning rates, {best:g} is the best by validation: the test scores that one.', 'current')


def test(args: argparse.Namespace) -> None:
    runner = build(args)
    if chooses_on_val(runner.cfg):
        choose_rate(runner)
    runner.test()
    leave_distributed()


def main() -> None:
    args = parse_args()
    if code := run_tool('test', test, args, debug=args.debug):
        sys.exit(code)


if __name__ == '__main__':
    main()
