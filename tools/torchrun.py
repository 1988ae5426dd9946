"""torchrun, whose end is that of its workers: their messages and their exit code, not a report on top of them.

`tools/dist_train.sh` calls it. The arguments are those of `python -m torch.distributed.run`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as run

MISTAKE = 2  # exit code of a worker that has said in one line what its user got wrong


def main() -> int:
    if os.environ.get('POA_MM_DEBUG', '0') in ('', '0'):
        # These say which process has ended with which code. The process itself has said why.
        logging.getLogger('torch.distributed.elastic').setLevel(logging.CRITICAL)
    try:
        run(sys.argv[1:])
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        if MISTAKE in codes.values():
            return MISTAKE
        rank, failure = error.get_first_failure()
        how = f'by {signal.Signals(-failure.exitcode).name}' if failure.exitcode < 0 else f'with {failure.exitcode}'
        print(f'dist_train: error: rank {rank} has ended {how}, and with it the run', file=sys.stderr)
        return 1
    except SignalException as error:
        print(f'dist_train: stopped by {error.sigval.name}', file=sys.stderr)
        return 128 + error.sigval
    return 0


if __name__ == '__main__':
    sys.exit(main())
