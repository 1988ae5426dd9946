"""Train a model from any mmengine config, ours or a downstream library's."""

from __future__ import annotations

import argparse
import sys

from mmengine.config import Config

from poa_mm.engine.data_config import use_data
from poa_mm.engine.launch import LAUNCHERS, leave_distributed, prepare, read_config
from poa_mm.engine.options import OptionError, add_config_options
from poa_mm.engine.start import build_runner
from poa_mm.engine.work_dir import WorkDir
from poa_mm.mistakes import add_debug, run_tool
from poa_mm.recipes import follow

AMP_WRAPPERS = {'OptimWrapper': 'AmpOptimWrapper', 'POAOptimWrapper': 'POAAmpOptimWrapper'}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='where logs and checkpoints go (default: work_dirs/CONFIG_NAME)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='go on from this checkpoint; without a value, from the latest in the work dir',
    )
    parser.add_argument(
        '--data',
        metavar='PATH',
        help='pre-train on these images: a folder, tar shards, Parquet or Arrow',
    )
    parser.add_argument('--epochs', type=int, metavar='N', help='length of pre-training, in passes over the images')
    parser.add_argument('--batch-size', type=int, metavar='B', help='images of a process in an iteration')
    parser.add_argument(
        '--allow-other-data', action='store_true', help='go on although the images are others than the checkpoint saw'
    )
    parser.add_argument('--amp', action='store_true', help='train in mixed precision')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate by the batch size over the config's auto_scale_lr.base_batch_size",
    )
    parser.add_argument(
        '--scale-to-gpus',
        action='store_true',
        help='let the recipe follow the number of processes: learning rate by its square-root rule, lengths in images',
    )
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none', help='how processes were started')
    add_config_options(parser)
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help=argparse.SUPPRESS)
    add_debug(parser)
    return parser.parse_args()


def merge_args(cfg: Config, args: argparse.Namespace) -> None:
    """Write the command line's choices into ``cfg``.

    Raises:
        ValueError: If the config's optimizer wrapper has no mixed-precision counterpart, there is no batch size to
            scale the learning rate by, or the config has no recipe whose numbers could be changed.
        FileNotFoundError: If there are no images at the place that is given.
    """
    if args.data is not None:
        use_data(cfg, args.data)
    if numbers := {name: value for name in ('epochs', 'batch_size') if (value := getattr(args, name)) is not None}:
        follow(cfg, **numbers)
    if args.allow_other_data:
        cfg.train_cfg.allow_other_data = True
    if args.amp:
        wrapper = cfg.optim_wrapper.get('type', 'OptimWrapper')
        wrapper = wrapper if isinstance(wrapper, str) else wrapper.__name__  # a class, in a config in pure Python
        if wrapper not in (*AMP_WRAPPERS, *AMP_WRAPPERS.values()):
            raise ValueError(f'--amp does not go with optim_wrapper {wrapper!r}; valid: {", ".join(AMP_WRAPPERS)}')
        cfg.optim_wrapper.type = AMP_WRAPPERS.get(wrapper, wrapper)
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise ValueError("--auto-scale-lr needs a config with 'auto_scale_lr.base_batch_size'")
        cfg.auto_scale_lr.enable = True
    other = (args.cfg_options or {}).get('load_from')
    if other is not None and args.resume not in (None, 'auto', other):
        raise OptionError(f'--resume {args.resume} and load_from={other}: a run starts from one checkpoint')


def train(args: argparse.Namespace) -> None:
    cfg = read_config(args.config, args.cfg_options, args.work_dir)
    merge_args(cfg, args)
    prepare(cfg, args.launcher, scale_to_gpus=args.scale_to_gpus)
    with WorkDir(cfg.work_dir):
        build_runner(cfg, args.resume).train()
    leave_distributed()


def main() -> None:
    args = parse_args()
    if code := run_tool('train', train, args, debug=args.debug):
        sys.exit(code)


if __name__ == '__main__':
    main()
