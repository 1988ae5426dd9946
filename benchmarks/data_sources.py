"""What `bench_data.py --scan` and `--sources` measure: lists of millions of files, and where images lie."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console
from rich.table import Table

FILES_A_FOLDER = 1000
DRAWS = 1000  # samples looked up after a data set is opened
MIB = 2**20


# --- a folder of millions of files -----------------------------------------------------------
def scan(number: int, folder: str | None) -> dict[str, dict[str, float]]:
    """Seconds and memory of opening a folder of empty files: of a tenth of them, of all, and extrapolated to ten times.

    Each figure is that of a process of its own, after its imports.
    """
    rows = {}
    with tempfile.TemporaryDirectory(dir=folder) as root:
        for size in (number // 10, number):
            made = Path(root, f'files{size}')
            make_files(made, size)
            for kind in ('CustomDataset', 'ImageFolder, first', 'ImageFolder, again'):
                rows[f'{kind}, {size:,}'] = in_process(kind.split(',')[0], made, Path(root, 'index'))
    for kind in ('CustomDataset', 'ImageFolder, first', 'ImageFolder, again'):
        small, large = (rows[f'{kind}, {size:,}'] for size in (number // 10, number))
        slope = {key: (large[key] - small[key]) / (number - number // 10) for key in large}
        rows[f'{kind}, {number * 10:,} (extrapolated)'] = {key: large[key] + slope[key] * number * 9 for key in large}
    table = Table('data set, files', 'open, s', 'of the processor, s', 'memory a process, MiB', 'at its peak, MiB')
    for name, row in rows.items():
        values = (f'{row[key]:.2f}' if key in ('seconds', 'processor') else f'{row[key]:.0f}' for key in row)
        table.add_row(name, *values)
    Console().print(table)
    return rows


def make_files(root: Path, number: int) -> None:
    """Empty files with names of ImageNet's length."""
    for start in range(0, number, FILES_A_FOLDER):
        folder = root / f'n{start // FILES_A_FOLDER:08d}'
        folder.mkdir(parents=True)
        for index in range(start, min(start + FILES_A_FOLDER, number)):
            os.close(os.open(folder / f'{folder.name}_{index}.JPEG', os.O_CREAT | os.O_WRONLY))


def in_process(kind: str, root: Path, index: Path) -> dict[str, float]:
    """Open the data set in a process of its own."""
    command = [sys.executable, __file__, kind, str(root), str(index)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def open_and_draw(kind: str, root: str, index: str) -> dict[str, float]:
    """Seconds until the first sample is known, and memory beyond that of the imports."""
    from mmengine.registry import DATASETS, init_default_scope

    import poa_mm  # noqa: F401
    from poa_mm.datasets import ResumableSampler

    init_default_scope('mmpretrain')
    options = dict(cache_dir=index) if kind == 'ImageFolder' else {}
    Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew
    before, start, spent = memory(), time.perf_counter(), processor()
    dataset = DATASETS.build(dict(type=kind, data_prefix=root, with_label=False, **options))
    stream = iter(ResumableSampler(dataset, seed=0))
    dataset.get_data_info(next(stream).index)
    seconds, spent = time.perf_counter() - start, processor() - spent
    for _ in range(DRAWS):
        dataset.get_data_info(next(stream).index)
    after = memory()
    return dict(
        seconds=seconds, processor=spent, memory=after['VmRSS'] - before['VmRSS'], peak=after['VmHWM'] - before['VmRSS']
    )


def processor() -> float:
    """Seconds of the processor that this process and its children have had: other work hardly counts."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def memory() -> dict[str, float]:
    """Of this process, in MiB."""
    lines = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())
    return {key: int(lines[key].split()[0]) * 1024 / MIB for key in ('VmRSS', 'VmHWM')}


# --- folder, tar, Arrow ----------------------------------------------------------------------
def compare_sources(paths: list[Path], rounds: int) -> dict[str, dict[str, float]]:
    """Images a second, read in random order and decoded, from a folder, shards and an Arrow file of the same images.

    Cold: the system's cache of these files is dropped before each round; what lies below it (the disk's or the host's
    cache) is not. Seconds of warm rounds are the processor's; of cold ones, where waiting counts, the clock's.
    """
    root = paths[0].parent
    rates: dict[str, dict[str, list[float]]] = {}
    order = np.random.default_rng(0).permutation(len(paths))
    for name, opened, files in sources(root):
        for what in ('read', 'read and decode'):
            for cache in ('cold', 'warm'):
                for _ in range(rounds):
                    if cache == 'cold':
                        drop(files)  # before they are mapped: what is mapped stays
                    source = opened()
                    read = source.read if what == 'read' else decoded(source)
                    clock = time.process_time if cache == 'warm' else time.perf_counter  # cold: waiting counts
                    start = clock()
                    for index in order:
                        read(int(index))
                    rate = len(order) / (clock() - start)
                    rates.setdefault(name, {}).setdefault(f'{what}, {cache}', []).append(rate)
                    del source, read
    result = {name: {what: median(values) for what, values in row.items()} for name, row in rates.items()}
    table = Table('images/s a process', *next(iter(result.values())))
    for name, row in result.items():
        table.add_row(name, *(f'{rate:,.0f}' for rate in row.values()))
    Console().print(table)
    return result


def sources(root: Path) -> Iterator[tuple[str, Callable[[], object], list[Path]]]:
    """Each source of the images in a folder: its name, what opens it, and its files."""
    from poa_mm.datasets.sources import ArrowSource, FolderSource, TarSource
    from poa_mm.datasets.write_shards import write_shards

    folder = FolderSource(root)
    yield 'folder', lambda: FolderSource(root), [Path(folder.name(index)) for index in range(len(folder))]
    with tempfile.TemporaryDirectory(dir=root.parent) as place:
        shards = write_shards(folder, Path(place, 'shards'), per_shard=1000)
        yield 'tar', lambda: TarSource(Path(place, 'shards'), '*.tar', ('.jpg',), cache_dir=place), shards
        try:
            import datasets.arrow_dataset
        except ModuleNotFoundError:
            return
        datasets.disable_progress_bars()
        rows = dict(image=[dict(bytes=folder.read(index), path=None) for index in range(len(folder))])
        features = datasets.Features(dict(image=datasets.Image()))
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(Path(place, 'arrow'))
        del rows
        yield 'Arrow', lambda: ArrowSource(Path(place, 'arrow')), sorted(Path(place, 'arrow').glob('*.arrow'))


def decoded(source: object) -> Callable[[int], object]:
    """Reads an image as a run does."""
    from poa_mm.datasets import SafeLoadImageFromFile

    load = SafeLoadImageFromFile()
    return lambda index: load(dict(img_path=source.name(index), img_bytes=source.read(index)))


def drop(files: list[Path]) -> None:
    """Forget what the system has cached of these files."""
    os.sync()
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


if __name__ == '__main__':
    print(json.dumps(open_and_draw(*sys.argv[1:])))
