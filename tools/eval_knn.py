"""Score the subnets of a pre-trained supernet, or one extracted from it, by k-nearest neighbours."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.registry import init_default_scope

from poa_mm.engine.launch import init_distributed, leave_distributed, read_config
from poa_mm.engine.options import add_config_options
from poa_mm.evaluation import evaluate_knn, load_backbone, print_table, save_report
from poa_mm.evaluation.data import open_data
from poa_mm.mistakes import add_debug, check_out_dir, run_tool

READS = ('model', 'knn', 'data_preprocessor', 'default_scope', 'work_dir', 'custom_imports')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help="config file with the entries 'model' and 'knn'")
    parser.add_argument(
        'checkpoint',
        nargs='?',
        help="checkpoint of the pre-training or of the extracted network (default: the one in the config's init_cfg)",
    )
    parser.add_argument(
        '--subnets', nargs='+', default=['all'], metavar='SUBNET', help='such as 384x12 or small (default: all)'
    )
    parser.add_argument('-o', '--out', metavar='DIR', help='where the report goes (default: WORK_DIR/knn)')
    parser.add_argument(
        '--launcher', choices=('none', 'pytorch', 'slurm'), default='none', help='how processes were started'
    )
    add_config_options(parser)
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help=argparse.SUPPRESS)
    add_debug(parser)
    return parser.parse_args()


def evaluate(args: argparse.Namespace) -> None:
    cfg = read_config(args.config, args.cfg_options, reads=READS)
    backbone_cfg = (cfg.get('model') or {}).get('backbone')
    if backbone_cfg is None:
        raise ValueError(f"{args.config} has no 'model.backbone'")
    subnets = None if args.subnets == ['all'] else args.subnets
    if subnets is not None and 'all' in subnets:
        raise ValueError(f'--subnets all names every subnet and stands alone; got {" ".join(subnets)}')
    out_dir = args.out or Path(cfg.work_dir, 'knn')
    check_out_dir(out_dir)
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    init_distributed(args.launcher)

    data = open_data(cfg)  # what is missing comes to light before the weights are read
    backbone = load_backbone(backbone_cfg, args.checkpoint, data.preprocessor)
    results = evaluate_knn(cfg, backbone.to(get_device()), subnets, data=data)
    if is_main_process():
        paths = save_report(results, out_dir)
        print_table(results)
        print('wrote', *paths)
    leave_distributed()


def main() -> None:
    args = parse_args()
    if code := run_tool('eval_knn', evaluate, args, debug=args.debug):
        sys.exit(code)


if __name__ == '__main__':
    main()
