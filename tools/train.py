"""Train a model from any mmengine config, ours or a downstream library's."""

from __future__ import annotations

import argparse
import os.path as osp

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from poa_mm.engine.launch import LAUNCHERS, prepare

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
    parser.add_argument('--amp', action='store_true', help='train in mixed precision')
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none', help='how processes were started')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override the config: key=value ...')
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def merge_args(cfg: Config, args: argparse.Namespace) -> None:
    """Write the command line's choices into ``cfg``.

    Raises:
        ValueError: If the config's optimizer wrapper has no mixed-precision counterpart.
    """
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    if args.work_dir:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('work_dirs', osp.splitext(osp.basename(args.config))[0])
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if args.amp:
        wrapper = cfg.optim_wrapper.get('type', 'OptimWrapper')
        wrapper = wrapper if isinstance(wrapper, str) else wrapper.__name__  # a class, in a config in pure Python
        if wrapper not in (*AMP_WRAPPERS, *AMP_WRAPPERS.values()):
            raise ValueError(f'--amp does not go with optim_wrapper {wrapper!r}; valid: {", ".join(AMP_WRAPPERS)}')
        cfg.optim_wrapper.type = AMP_WRAPPERS.get(wrapper, wrapper)


def main() -> None:
    args = parse_args()
    cfg = Config.fromfile(args.config)
    merge_args(cfg, args)
    prepare(cfg, args.launcher)
    runner = Runner.from_cfg(cfg) if 'runner_type' not in cfg else RUNNERS.build(cfg)
    runner.train()


if __name__ == '__main__':
    main()
