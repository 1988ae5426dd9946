"""Images that could not be used: counted, listed, and too many of them stop the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.dist import all_gather_object, all_reduce, barrier, broadcast_object_list, is_main_process
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from poa_mm.checkpoint import write_file
from poa_mm.mistakes import UserError

from .once import OnceHook

FILE = 'bad_images.jsonl'


class BadDataError(UserError, RuntimeError):
    """Too many of the images cannot be used."""


@HOOKS.register_module()
class BadDataHook(OnceHook):
    """Lists the images for which :class:`~poa_mm.datasets.SeededDataset` has read others, of all ranks.

    ``bad_images.jsonl`` in the work dir has one line for each time that an image could not be used: ``position`` of
    the sample in the run, ``index`` in the dataset, ``path`` and ``reason``. The number of lines goes to the log as
    ``bad_images``, the share that they have in all images read as ``bad_image_share``. The first one is warned of.

    The count goes on after a resume. Lines of iterations that a resumed run reads again are removed first, and so is
    the list of an earlier run in the same work dir, so that the file is exactly about the run that has written it.

    Args:
        max_share: Share of the images read, above which the run stops. Default: 0.01.
        min_images: Images that are read before a share can stop the run. Default: 1000.

    Raises:
        ValueError: If ``max_share`` is not in [0, 1] or ``min_images`` is below 1.
    """

    priority = 'LOW'  # after the position in the data has been restored

    def __init__(self, max_share: float = 0.01, min_images: int = 1000):
        if not 0 <= max_share <= 1:
            raise ValueError(f'max_share {max_share} is not in [0, 1]')
        if min_images < 1:
            raise ValueError(f'min_images {min_images} is below 1')
        self.max_share = max_share
        self.min_images = min_images

    def before_train(self, runner: Runner) -> None:
        """Go on with the list as it was at the position where the run starts."""
        self._path = Path(runner.work_dir, FILE)
        self._reads_positions = hasattr(runner.train_loop, 'samples_before')  # other loops substitute nothing
        count = [0]
        if self._reads_positions and is_main_process():
            count = [_prune(self._path, runner.train_loop.samples_before(runner.iter))]
        broadcast_object_list(count)
        self._count = count[0]

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch=None) -> None:
        """List the bad images of the batch.

        Raises:
            BadDataError: On all ranks, if they are too many.
        """
        if not self._reads_positions:
            return
        bad = [entry for sample in data_batch['data_samples'] for entry in sample.get('bad_images', [])]
        number = torch.tensor(len(bad))
        all_reduce(number)
        if number:
            self._list(runner, [entry for rank in all_gather_object(bad) for entry in rank])
        images = runner.train_loop.samples_before(runner.iter + 1) + self._count
        share = self._count / images
        runner.message_hub.update_scalar('train/bad_images', self._count)
        runner.message_hub.update_scalar('train/bad_image_share', share)
        if images >= self.min_images and share > self.max_share:
            raise BadDataError(
                f'{self._count} of {images} images ({share:.1%}) cannot be used, more than '
                f'max_share={self.max_share}; see {self._path}'
            )

    def _list(self, runner: Runner, bad: Sequence[dict]) -> None:
        bad = sorted(bad, key=lambda entry: entry['position'])
        if is_main_process():
            with self._path.open('a') as file:
                file.writelines(json.dumps(entry) + '\n' for entry in bad)
        if self._count == 0:
            runner.logger.warning(
                f"Image '{bad[0]['path']}' cannot be used ({bad[0]['reason']}): another is read instead. "
                f'Such images are listed in {self._path}; more than {self.max_share:.1%} stop the run.'
            )
        self._count += len(bad)
        barrier()  # the list is there when a rank stops the run


def _prune(path: Path, position: int) -> int:
    """Remove what lies at ``position`` or behind, and a line that a kill has cut short; how many lines are left."""
    if not path.is_file():
        return 0
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith('\n')]
    kept = [line for line in lines if json.loads(line)['position'] < position]
    write_file(path, [''.join(kept).encode()])
    return len(kept)
