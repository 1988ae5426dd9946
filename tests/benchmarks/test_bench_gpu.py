"""The benchmark of GPUs runs, on a CPU with tiny sizes, and adds up."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / 'benchmarks'))
import bench_gpu
import gpu_step


@pytest.mark.slow
def test_everything_in_small(tmp_path):
    bench_gpu.main(['--size', 'tiny', '--device', 'cpu', '--minutes', '60', '--json', str(tmp_path / 'gpu.json')])
    result = json.loads((tmp_path / 'gpu.json').read_text())
    ways = {(row['kind'], row['dtype'], row['mode']) for row in result['rows']}
    assert ways == {
        ('joint', 'bfloat16', 'plain'),
        *(('shipped', dtype, mode) for dtype in ('bfloat16', 'float16') for mode in ('plain', 'with_cp')),
    }
    for row in result['rows']:
        assert row['images_per_second'] > 0 and row['estimated_gib'] > 0 and row['skipped_steps'] == 0
        assert {'preprocessing', 'teacher', 'intact', 'elastic', 'backward', 'optimizer', 'EMA'} <= set(row['phases'])
        slowest = max(row['seconds'].values())
        assert sum(row['phases'].values()) <= 1.5 * slowest
    assert result['device'] == 'CPU' and not result['left_out']
    assert 0 <= result['loading']['waits'] <= 1 and result['loading']['images_per_second'] > 0
    assert result['targets']['time_of_an_image_over_joint'] > 0
    flops = list(result['gflop_of_an_image'].values())
    assert flops == sorted(flops) and flops[0] > 0


def test_what_no_time_was_left_for_is_named():
    bench = bench_gpu.Bench('tiny', torch.device('cpu'), minutes=0)
    assert bench.measure(bench_gpu.POA, 'bfloat16', 'plain', [4, 2]) == []
    assert bench.left_out == ['POA bfloat16 plain at 4']


def test_the_largest_batch_that_fits_and_the_usual_one(monkeypatch):
    bench = bench_gpu.Bench('tiny', torch.device('cpu'), minutes=1)
    tried = []

    def row(kind, dtype, mode, images):
        tried.append(images)
        if images > 8:
            raise torch.cuda.OutOfMemoryError('too large')
        return dict(batch=images)

    monkeypatch.setattr(bench, '_row', row)
    assert bench.measure(bench_gpu.POA, 'bfloat16', 'plain', [32, 8, 4, 2]) == [dict(batch=8), dict(batch=2)]
    assert tried == [32, 8, 2]  # the usual batch of this size is 2


def test_a_way_that_fails_is_named_and_costs_nothing_else(monkeypatch, capsys):
    bench = bench_gpu.Bench('tiny', torch.device('cpu'), minutes=1)

    def row(kind, dtype, mode, images):
        if dtype == 'float16':
            raise RuntimeError('shapes do not match\nsecond line')
        return dict(batch=images)

    monkeypatch.setattr(bench, '_row', row)
    assert bench.measure(bench_gpu.POA, 'float16', 'plain', [4]) == []
    assert bench.measure(bench_gpu.POA, 'bfloat16', 'plain', [4]) == [dict(batch=4)]
    assert bench.left_out == ['POA float16 plain at 4 failed: RuntimeError: shapes do not match']
    assert 'Traceback' in capsys.readouterr().err


def test_a_file_that_could_not_be_written_is_refused_first(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        bench_gpu.main(['--device', 'cpu', '--size', 'tiny', '--json', str(tmp_path / 'none' / 'gpu.json')])
    assert stop.value.code == 2
    assert 'there is no folder' in capsys.readouterr().err


def test_targets_compare_equal_batches():
    common = dict(dtype='bfloat16', peak_gib=20.0, estimated_gib=19.0)
    rows = [
        dict(common, kind='shipped', mode='plain', batch=96, images_per_second=9, share_of_peak=0.9),
        dict(common, kind='shipped', mode='plain', batch=50, images_per_second=4, share_of_peak=0.3),
        dict(common, kind='shipped', mode='compiled', batch=50, images_per_second=5, share_of_peak=0.4),
        dict(common, kind='joint', mode='plain', batch=64, images_per_second=8, share_of_peak=0.2),
        dict(
            common | dict(peak_gib=50.0), kind='joint', mode='plain', batch=50, images_per_second=3, share_of_peak=0.2
        ),
    ]
    assert bench_gpu.targets(rows, 50) == dict(
        batch=50,
        joint_batch=50,
        share_of_peak=0.4,
        time_of_an_image_over_joint=0.75,
        memory_over_joint=0.4,
        memory_over_estimate=pytest.approx(20 / 19, abs=1e-3),
    )
    assert bench_gpu.targets(rows[:3], 50) == bench_gpu.targets(rows, 32) == {}


def test_an_inner_phase_does_not_count_for_the_outer_one(monkeypatch):
    class Event:
        now = 0

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.time, Event.now = Event.now, Event.now + 1000

        def elapsed_time(self, other):
            return other.time - self.time

    monkeypatch.setattr(torch.cuda, 'Event', Event)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: None)
    watch = gpu_step.EventWatch(torch.device('cuda'))
    with watch.phase('outer'):
        with watch.phase('inner'):
            pass
        with watch.phase('inner'):
            pass
    assert watch.collect() == {'inner': 2.0, 'outer': 3.0}
    assert watch.collect() == {'inner': 2.0, 'outer': 3.0}
