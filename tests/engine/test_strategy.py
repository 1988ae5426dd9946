"""Sharded training on two processes computes what distributed training without sharding computes."""

import os
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS, STRATEGIES
from mmpretrain.models import VisionTransformer
from torch.testing import assert_close

from poa_mm.checkpoint import CheckpointError, check_integrity, load_teacher, read_checkpoint
from poa_mm.checkpoint.sharded import dcp
from poa_mm.deploy.extract import extract_subnets
from poa_mm.engine.hooks.model import model_of
from poa_mm.engine.resume import set_start

ROOT = Path(__file__).parents[2]
needs_sharding = pytest.mark.skipif(dcp is None, reason=f'torch {torch.__version__} is too old for FullyShardStrategy')
SMALL = {
    'launcher': 'pytorch',
    'log_level': 'ERROR',
    'model.backbone.drop_path_rate': 0.2,
    'train_dataloader.batch_size': 8,
    'train_dataloader.num_workers': 0,
    'train_cfg.max_iters': 5,
    'default_hooks.checkpoint.interval': 2,
    'default_hooks.checkpoint.max_keep_ckpts': 2,
    'param_scheduler.0.end': 2,
    # As after the ramps of the recipe: every loss takes part.
    'custom_hooks.1.patch_loss_start': 0,
    'custom_hooks.1.freeze_prototypes_iters': 0,
}
WHOLE = {
    'runner_type': 'Runner',
    'model_wrapper_cfg': dict(type='MMDistributedDataParallel', broadcast_buffers=False, device_ids=None),
}
PIECES = {'model.micro_batches': 3, 'model.queue': 100}
SHARDED = {'runner_type': 'FlexibleRunner', 'strategy.type': 'FullyShardStrategy'}


class Record(Hook):
    """What each iteration leaves, tensors whole; on rank 1, the batch of one of them is NaN."""

    priority = 'LOWEST'

    def __init__(self, nan):
        self.nan = nan
        self.iterations = {}

    def before_train(self, runner):
        self.start = whole(model_of(runner).state_dict())

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.nan and runner.rank == 1:
            data_batch['inputs'][0] = data_batch['inputs'][0] * torch.tensor(float('nan'))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        norms = (f'train/grad_norm_{name}' for name in ('backbone', 'head'))
        state = runner.optim_wrapper.optimizer.state_dict()['state']
        self.iterations[runner.iter] = dict(
            losses={name: float(value) for name, value in outputs.items()},
            norms={name: float(runner.message_hub.get_scalar(name).current()) for name in norms},
            weights=whole(model_of(runner).state_dict()),
            optimizer={index: whole(state) for index, state in state.items()},
        )
        params = model_of(runner).named_parameters()
        self.shards = {name: getattr(param, '_local_tensor', param).numel() / param.numel() for name, param in params}


def whole(tensors):
    return {
        name: (tensor.full_tensor() if hasattr(tensor, 'full_tensor') else tensor).detach().clone()
        for name, tensor in tensors.items()
    }


def train(work_dir, how, resume=None, nan=None, options=()):
    cfg = Config.fromfile(ROOT / 'configs' / 'poa' / 'vitt_digits.py')
    cfg.merge_from_dict({**SMALL, **how, 'work_dir': str(work_dir), **dict(options)})
    set_start(cfg, None if resume is None else str(resume))
    runner = RUNNERS.build(cfg)
    record = Record(nan)
    runner.register_hook(record)
    runner.train()
    return record


def worker(rank, world_size, folder, jobs):
    torch.set_num_threads(1)
    os.environ['LOCAL_RANK'] = str(rank)
    dist.init_process_group('gloo', f'file://{folder}/init{world_size}', rank=rank, world_size=world_size)
    for name, job in jobs.items():
        try:
            result = train(folder / name, **job)
        except ValueError as error:
            result = error
        torch.save(result, folder / f'{name}_{rank}.pth')
        dist.barrier()  # the next one may start from what rank 0 has written
    dist.barrier()  # and no destroy_process_group, which may hang with gloo on torch 2.1


def result_of(folder, name, rank=0):
    result = torch.load(folder / f'{name}_{rank}.pth', weights_only=False)
    if isinstance(result, Exception):
        raise result
    return result


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """Runs of two ranks, by name."""
    folder = tmp_path_factory.mktemp('runs')
    checkpoint, whole_checkpoint = folder / 'sharded' / 'iter_4.pth', folder / 'whole' / 'iter_4.pth'
    jobs = dict(
        whole=dict(how=WHOLE, nan=3),
        sharded=dict(how=SHARDED, nan=3),
        resumed=dict(how=SHARDED, resume=checkpoint),
        from_whole=dict(how=SHARDED, options={'load_from': str(whole_checkpoint), 'train_cfg.max_iters': 1}),
        resumed_from_whole=dict(how=SHARDED, resume=whole_checkpoint),
        other_network=dict(how=SHARDED, resume=checkpoint, options={'model.backbone.widths': [48, 96]}),
        bfloat16=dict(how=SHARDED, options={'strategy.param_dtype': 'bfloat16', 'train_cfg.max_iters': 1}),
        whole_checkpointed=dict(how=WHOLE, options={'model.backbone.with_cp': True}),
        sharded_checkpointed=dict(how=SHARDED, options={'model.backbone.with_cp': True}),
        pieces=dict(how=WHOLE, options=PIECES),
        pieces_resumed=dict(how=WHOLE, options=PIECES, resume=folder / 'pieces' / 'iter_4.pth'),
        pieces_sharded=dict(how=SHARDED, options=PIECES),
        pieces_sharded_resumed=dict(how=SHARDED, options=PIECES, resume=folder / 'pieces_sharded' / 'iter_4.pth'),
        own_blocks=dict(how=SHARDED, options={'model.weight_is': 0}),
    )
    mp.spawn(worker, (2, folder, jobs), nprocs=2)
    return folder


@needs_sharding
@pytest.mark.slow
@pytest.mark.parametrize('rank', [0, 1])
def test_equals_training_without_shards(runs, rank):
    expected, found = (result_of(runs, name, rank) for name in ('whole', 'sharded'))
    for iteration in range(5):
        assert_close(found.iterations[iteration], expected.iterations[iteration], rtol=1e-4, atol=1e-4, equal_nan=True)
    before, after = (found.iterations[iteration] for iteration in (2, 3))
    for part in ('weights', 'optimizer'):
        assert_close(after[part], before[part], rtol=0, atol=0)  # NaN on rank 1
    assert set(expected.shards.values()) == {1}
    for name, share in found.shards.items():  # of student and teacher alike
        undivided = name.endswith(('token', 'pos_embed'))  # one row
        assert share == (1 - rank if undivided else 0.5), name


@needs_sharding
@pytest.mark.slow
@pytest.mark.parametrize('how', ['whole', 'sharded'])
def test_activation_checkpointing_changes_nothing(runs, how):
    for rank in range(2):
        expected, found = (result_of(runs, name, rank) for name in (how, f'{how}_checkpointed'))
        for iteration in range(3):  # then comes the NaN
            assert_close(found.iterations[iteration], expected.iterations[iteration], rtol=0, atol=0)


@needs_sharding
@pytest.mark.slow
def test_resumed_on_as_many_ranks(runs):
    for rank in range(2):
        expected, found = (result_of(runs, name, rank) for name in ('sharded', 'resumed'))
        assert found.iterations.keys() == {4}
        assert_close(found.start, expected.iterations[3]['weights'], rtol=0, atol=0)
        assert_close(found.iterations[4], expected.iterations[4], rtol=0, atol=0)


@needs_sharding
@pytest.mark.slow
@pytest.mark.parametrize('how', ['pieces', 'pieces_sharded'])
def test_pieces_and_queue_are_resumed(runs, how):
    """The queue of all ranks is in the checkpoint."""
    for rank in range(2):
        expected, found = (result_of(runs, name, rank) for name in (how, f'{how}_resumed'))
        queue = expected.iterations[3]['weights']['queues.0.rows']
        assert queue.any(dim=1).sum() == 100  # 4 x 2 ranks x 16 class tokens are more than it holds
        assert torch.equal(queue, result_of(runs, how, 0).iterations[3]['weights']['queues.0.rows'])
        assert_close(found.start, expected.iterations[3]['weights'], rtol=0, atol=0)
        assert_close(found.iterations[4], expected.iterations[4], rtol=0, atol=0)


@needs_sharding
@pytest.mark.slow
def test_pieces_of_shards(runs):
    for rank in range(2):
        expected, found = (result_of(runs, name, rank) for name in ('pieces', 'pieces_sharded'))
        for iteration in range(5):
            assert_close(found.iterations[iteration], expected.iterations[iteration], rtol=1e-4, atol=1e-4)


@needs_sharding
@pytest.mark.slow
def test_resumed_on_one_rank(runs):
    checkpoint = runs / 'sharded' / 'iter_4.pth'
    jobs = dict(
        refused=dict(how=SHARDED, resume=checkpoint),
        single=dict(how=SHARDED, resume=checkpoint, options={'train_cfg.allow_other_ranks': True}),
    )
    mp.spawn(worker, (1, runs, jobs), nprocs=1)
    with pytest.raises(CheckpointError, match='run with 2 ranks'):
        result_of(runs, 'refused')
    expected, found = result_of(runs, 'sharded').iterations[3], result_of(runs, 'single')
    assert_close(found.start, expected['weights'], rtol=0, atol=0)
    assert found.iterations.keys() == {4}
    # What AdamW remembers is there: its mean of squares keeps 0.98 of itself.
    for index, state in found.iterations[4]['optimizer'].items():
        before = expected['optimizer'][index]
        assert (state['exp_avg_sq'] >= 0.98 * before['exp_avg_sq'] * (1 - 1e-5)).all()
        assert state['step'] == before['step'] + 1


@needs_sharding
@pytest.mark.slow
def test_checkpoints_of_a_run(runs, tmp_path):
    work_dir = runs / 'sharded'
    assert sorted(path.name for path in work_dir.glob('*.pth')) == ['iter_4.pth', 'iter_5.pth']
    assert not list(work_dir.glob('.*'))
    assert (work_dir / 'last_checkpoint').read_text() == str(work_dir / 'iter_5.pth')
    check_integrity(work_dir / 'iter_5.pth')
    expected = result_of(runs, 'sharded').iterations[4]['weights']
    found = read_checkpoint(work_dir / 'iter_5.pth')
    assert_close(found['state_dict'], expected, rtol=0, atol=0)
    assert found['meta']['iter'] == 5


@needs_sharding
@pytest.mark.slow
def test_extraction(runs, tmp_path):
    entries = [extract_subnets(runs / name / 'iter_5.pth', ['48x3'], tmp_path / name) for name in ('sharded', 'whole')]
    assert [entry['subnet'] for (entry,) in entries] == ['48x3', '48x3']  # verified against the supernet
    found, expected = (load_teacher(runs / name / 'iter_5.pth')[0].state_dict() for name in ('sharded', 'whole'))
    assert_close(found, expected, rtol=1e-4, atol=1e-4)


@needs_sharding
@pytest.mark.slow
def test_starts_from_a_run_without_shards(runs):
    expected = result_of(runs, 'whole').iterations[3]['weights']
    assert_close(result_of(runs, 'from_whole').start, expected, rtol=0, atol=0)
    with pytest.raises(CheckpointError, match='load_from starts a new run'):
        result_of(runs, 'resumed_from_whole')


@needs_sharding
@pytest.mark.slow
def test_other_network(runs):
    with pytest.raises(CheckpointError, match='its space is'):
        result_of(runs, 'other_network')


@needs_sharding
@pytest.mark.slow
def test_bfloat16(runs):
    expected, found = (result_of(runs, name).iterations[0]['losses']['loss'] for name in ('sharded', 'bfloat16'))
    assert 0 < abs(found - expected) < 0.05 * expected


@needs_sharding
@pytest.mark.slow
def test_ranks_with_gradients_of_different_blocks(runs):
    with pytest.raises(ValueError, match=r'model\.deck\.sync=True'):
        result_of(runs, 'own_blocks')


@needs_sharding
@pytest.mark.parametrize(
    'options, error', [({}, 'needs a launcher'), ({'param_dtype': 'half'}, "'half' is not one of bfloat16")]
)
def test_bad_options(tmp_path, options, error):
    cfg = dict(type='FullyShardStrategy', work_dir=str(tmp_path), env_kwargs=dict(launcher='none'), **options)
    with pytest.raises(ValueError, match=error):
        STRATEGIES.build(cfg)


@pytest.mark.skipif(dcp is not None, reason='about old versions of torch')
def test_old_torch():
    with pytest.raises(ValueError, match=rf'FullyShardStrategy needs torch .* this is {re.escape(torch.__version__)}'):
        STRATEGIES.build(dict(type='FullyShardStrategy'))


# --- a frozen teacher -------------------------------------------------------------------------


@pytest.fixture(scope='module')
def frozen_runs(tmp_path_factory):
    """Runs of two ranks with either kind of frozen teacher, sharded and not."""
    folder = tmp_path_factory.mktemp('frozen')
    options = dict(arch=dict(embed_dims=64, num_layers=2, num_heads=4, feedforward_channels=64))
    options |= dict(img_size=8, patch_size=4)
    network = VisionTransformer(**options)
    network.init_weights()
    torch.save({'state_dict': network.state_dict()}, folder / 'network.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(folder / 'network.pth'))
    another = dict(backbone=dict(type='VisionTransformer', **options, init_cfg=init_cfg))
    jobs = dict(start=dict(how=WHOLE, options={'train_cfg.max_iters': 2}))
    for name, teacher in dict(source='source', another=another).items():
        more = {'model.frozen_teacher': teacher}
        if teacher == 'source':
            more['load_from'] = str(folder / 'start' / 'iter_2.pth')
        for kind, how in dict(whole=WHOLE, sharded=SHARDED).items():
            jobs[f'{name}_{kind}'] = dict(how=how, options={**more, 'train_cfg.max_iters': 3})
        resumed = folder / f'{name}_sharded' / 'iter_2.pth'
        jobs[f'{name}_resumed'] = dict(how=SHARDED, resume=resumed, options={**more, 'train_cfg.max_iters': 3})
    mp.spawn(worker, (2, folder, jobs), nprocs=2)
    return folder


@needs_sharding
@pytest.mark.slow
@pytest.mark.parametrize('teacher', ['source', 'another'])
def test_a_frozen_teacher_is_the_same_with_and_without_shards(frozen_runs, teacher):
    expected, found = (result_of(frozen_runs, f'{teacher}_{kind}') for kind in ('whole', 'sharded'))
    for iteration in range(3):
        assert_close(found.iterations[iteration], expected.iterations[iteration], rtol=1e-4, atol=1e-4)
    names = [name for name in found.start if name.startswith('frozen_teacher.')]
    assert names and ('L_IS_feature' in found.iterations[0]['losses']) == (teacher == 'another')
    source = read_checkpoint(frozen_runs / 'start' / 'iter_2.pth')['state_dict']
    if teacher == 'another':
        network = read_checkpoint(frozen_runs / 'network.pth')['state_dict']
        source = {f'teacher.backbone.{name}': value for name, value in network.items()}
    for name in names:
        last = found.iterations[2]['weights'][name]
        assert torch.equal(last, found.start[name]), name
        if name != 'frozen_teacher.loaded':
            assert torch.equal(last, source[name.removeprefix('frozen_')]), name
    shares = [share for name, share in found.shards.items() if name.startswith('frozen_teacher.')]
    assert min(shares) <= 0.5


@needs_sharding
@pytest.mark.slow
@pytest.mark.parametrize('teacher', ['source', 'another'])
def test_a_frozen_teacher_resumed(frozen_runs, teacher):
    expected, found = (result_of(frozen_runs, f'{teacher}_{kind}') for kind in ('sharded', 'resumed'))
    assert found.iterations.keys() == {2}
    assert_close(found.start, expected.iterations[1]['weights'], rtol=0, atol=0)
    assert_close(found.iterations[2], expected.iterations[2], rtol=0, atol=0)
    backbone, _ = load_teacher(frozen_runs / f'{teacher}_sharded' / 'iter_2.pth')
    weights = {f'teacher.backbone.{name}': value for name, value in backbone.state_dict().items()}
    assert_close(weights, {name: found.start[name] for name in weights}, rtol=0, atol=0)
