"""Whole runs: resumed on the spot or on another device, extracted, scored, compiled, sharded, on two GPUs."""

import os
import socket
from itertools import count
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS, DefaultScope
from torch.testing import assert_close

from poa_mm.checkpoint import load_teacher, read_checkpoint
from poa_mm.checkpoint.sharded import dcp
from poa_mm.deploy.extract import extract_subnets
from poa_mm.elastic import Subnet
from poa_mm.engine import CompileBlocksHook
from poa_mm.engine.hooks.model import model_of
from poa_mm.engine.launch import prepare
from poa_mm.engine.resume import set_start
from poa_mm.evaluation import evaluate_knn

RUNS = count()  # two of one name in one second would share mmengine's log
AMP = {'optim_wrapper.type': 'POAAmpOptimWrapper', 'optim_wrapper.dtype': 'float16'}
# What the CPU's own tests show in other ways.
slowly_on_cpu = pytest.mark.parametrize(
    'device', [pytest.param('cpu', marks=pytest.mark.slow), pytest.param('cuda', marks=pytest.mark.gpu)], indirect=True
)
SUBNETS = [Subnet(48, 3), Subnet(64, 5), Subnet(96, 6)]


class Losses(Hook):
    """The loss of each iteration, and how many steps were left out."""

    def __init__(self):
        self.losses, self.skipped = {}, 0

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses[runner.iter] = float(outputs['loss'])
        self.skipped += runner.optim_wrapper.skipped


def train(cfg, resume=None):
    cfg = Config(cfg.to_dict() | dict(experiment_name=f'gpu-{next(RUNS)}'))
    prepare(cfg, 'none')
    set_start(cfg, resume and str(resume))
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else RUNNERS.get('Runner').from_cfg(cfg)
    losses = Losses()
    runner.register_hook(losses)
    runner.train()
    return runner, losses


def weights(path):
    return read_checkpoint(path)['state_dict']


@pytest.fixture
def trained(on, digits_run, tmp_path):
    """Maker of a run of two iterations on a device, in mixed precision where it can; its config and checkpoint."""

    def make(device):
        on(device)
        cfg = digits_run(tmp_path / device, max_iters=2, **AMP)
        runner, losses = train(cfg)
        assert next(runner.model.parameters()).device.type == device
        assert len(losses.losses) == 2
        return cfg, tmp_path / device / 'iter_2.pth'

    return make


JOURNEYS = [
    ('cpu', 'cpu'),
    *(pytest.param(*way, marks=pytest.mark.gpu) for way in (('cuda', 'cpu'), ('cpu', 'cuda'), ('cuda', 'cuda'))),
]


@pytest.mark.parametrize(('start', 'end'), JOURNEYS)
def test_a_run_goes_on_on_another_device(trained, on, digits_run, tmp_path, start, end):
    _, checkpoint = trained(start)
    before = weights(checkpoint)
    on(end)
    runner, losses = train(digits_run(tmp_path / 'resumed', max_iters=4, **AMP), resume=checkpoint)
    assert next(runner.model.parameters()).device.type == end
    assert sorted(losses.losses) == [2, 3]
    assert all(value == value and abs(value) < 1e3 for value in losses.losses.values())
    after = weights(tmp_path / 'resumed' / 'iter_4.pth')
    assert all(value.device.type == 'cpu' and value.isfinite().all() for value in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith('teacher.'))
    state = runner.optim_wrapper.optimizer.state
    assert {entry['exp_avg'].device.type for entry in state.values()} == {end}


@pytest.mark.parametrize(('start', 'end'), JOURNEYS)
def test_extraction_and_scores_on_another_device(trained, tmp_path, start, end):
    cfg, checkpoint = trained(start)
    entries = extract_subnets(checkpoint, SUBNETS, tmp_path / 'subnets')
    assert all(entry['max_abs_diff'] <= 1e-4 for entry in entries)
    images = torch.randn(16, 3, 8, 8)
    features, scores = [], []
    for device in ('cpu', end):
        backbone = load_teacher(checkpoint)[0].to(device)
        backbone.eval()
        with torch.no_grad():
            features.append([backbone.extract_features(images.to(device), subnet).cls.cpu() for subnet in SUBNETS])
        scores.append(evaluate_knn(cfg, backbone, SUBNETS, progress=False))
    assert_close(features[1], features[0], rtol=0, atol=1e-4)
    for subnet, score in scores[0].items():  # of 359 digits, rounding may move one or two over a border
        assert scores[1][subnet]['accuracy'] == pytest.approx(score['accuracy'], abs=0.01)


@slowly_on_cpu
@pytest.mark.parametrize('precision', [{}, AMP], ids=['float32', 'mixed'])
def test_resumed_to_the_last_bit(on, digits_run, tmp_path, device, precision):
    """With deterministic algorithms; local crops have another size, so position embeddings are resized."""
    if device.type == 'cuda' and os.environ.get('CUBLAS_WORKSPACE_CONFIG') is None:
        pytest.skip('CUBLAS_WORKSPACE_CONFIG has to be set before CUDA starts: make test-gpu')
    on(device)
    options = {**precision, 'randomness.deterministic': True, 'env_cfg.cudnn_benchmark': False}
    train(digits_run(tmp_path / 'straight', max_iters=4, **options))
    whole = weights(tmp_path / 'straight' / 'iter_4.pth')
    train(digits_run(tmp_path / 'resumed', max_iters=4, **options), resume=tmp_path / 'straight' / 'iter_2.pth')
    resumed = weights(tmp_path / 'resumed' / 'iter_4.pth')
    assert whole.keys() == resumed.keys()
    different = [name for name in whole if not torch.equal(whole[name], resumed[name])]
    assert not different


@slowly_on_cpu
def test_a_batch_of_nan_is_left_out(on, digits_run, tmp_path, device):
    class Poison(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 1:
                data_batch['inputs'][0] = data_batch['inputs'][0] * torch.tensor(float('nan'))

    on(device)
    cfg = digits_run(tmp_path, max_iters=2, **{'default_hooks.checkpoint.interval': 1})
    runner = RUNNERS.get('Runner').from_cfg(Config(cfg.to_dict() | dict(experiment_name=f'gpu-{next(RUNS)}')))
    runner.register_hook(Poison(), priority='VERY_HIGH')
    runner.train()
    assert runner.optim_wrapper.skipped_in_a_row == 1
    first, second = (weights(tmp_path / f'iter_{number}.pth') for number in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- compiled ---


@pytest.mark.skipif(torch.__version__ < (2, 5), reason=f'torch {torch.__version__} compiles no block by itself')
@slowly_on_cpu
@pytest.mark.parametrize('with_cp', [False, True], ids=['plain', 'checkpointed'])
def test_compiled_blocks(make_poa, raw_batch, loss_and_gradients, device, with_cp):
    """A few graphs for all subnets, and the same numbers; on the CPU without code generation."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    model = make_poa(device, backbone=dict(drop_path_rate=0.3, with_cp=with_cp))
    subnets = list(model.backbone.space)[::4]
    batch = raw_batch(model)
    views = [(view.float() - 128) / 64 for view in batch['inputs']]
    plain = [loss_and_gradients(model, views, batch['data_samples'], subnet) for subnet in subnets]
    backend = CompileCounterWithBackend('inductor' if device.type == 'cuda' else 'eager')
    CompileBlocksHook(backend=backend).before_train(SimpleNamespace(model=model))
    for subnet, (losses, grads) in zip(subnets, plain):
        found, found_grads = loss_and_gradients(model, views, batch['data_samples'], subnet)
        assert_close(found['loss'], losses['loss'], rtol=1e-4, atol=0)
        for name, grad in grads.items():
            assert (found_grads[name] - grad).abs().max() <= 1e-3 * grad.abs().max() + 1e-7, name
    assert 0 < backend.frame_count <= 4 + 2 * (device.type == 'cuda')
    torch._dynamo.reset()


# --- sharded and distributed ---


def free_port():
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return server.getsockname()[1]


@pytest.fixture
def one_rank(device, monkeypatch, tmp_path):
    """A process group of this process alone."""
    for name, value in dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=1).items():
        monkeypatch.setenv(name, str(value))
    backend = 'nccl' if device.type == 'cuda' else 'gloo'
    dist.init_process_group(backend, f'file://{tmp_path}/init', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.skipif(dcp is None, reason=f'torch {torch.__version__} is too old for FullyShardStrategy')
@slowly_on_cpu
def test_sharded_in_bfloat16(on, digits_run, tmp_path, device, one_rank):
    on(device)
    sharded = {'runner_type': 'FlexibleRunner', 'launcher': 'pytorch', 'strategy.type': 'FullyShardStrategy'}
    found = []
    for options in ({}, {'strategy.param_dtype': 'bfloat16'}):
        cfg = digits_run(tmp_path / str(len(found)), max_iters=2, **sharded, **options)
        runner = RUNNERS.build(Config(cfg.to_dict() | dict(experiment_name=f'gpu-{next(RUNS)}')))
        losses = Losses()
        runner.register_hook(losses)
        runner.train()
        params = list(runner.model.parameters())
        assert all(param.device.type == device.type and param.dtype == torch.float32 for param in params)
        assert losses.skipped == 0
        found.append(losses.losses)
    assert found[0].keys() == found[1].keys() == {0, 1}
    for iteration, loss in found[0].items():
        assert found[1][iteration] == pytest.approx(loss, rel=0.02)
    assert found[1] != found[0]
    backbone, _ = load_teacher(tmp_path / '1' / 'iter_2.pth')
    assert all(param.isfinite().all() for param in backbone.parameters())


def rank_of_two(rank, folder, cfg, port):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1')
    os.environ['MASTER_PORT'] = str(port)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        cfg = Config(cfg | dict(experiment_name='two'))
        prepare(cfg, 'pytorch')
        runner = RUNNERS.get('Runner').from_cfg(cfg)
        losses = Losses()
        runner.register_hook(losses)
        runner.train()
    state = {name: value.cpu() for name, value in model_of(runner).state_dict().items()}
    torch.save(dict(state=state, losses=losses.losses, backend=dist.get_backend()), f'{folder}/{rank}.pth')
    dist.barrier()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two CUDA devices')
def test_two_gpus_agree(digits_run, tmp_path):
    cfg = digits_run(tmp_path / 'work', max_iters=3, **AMP).to_dict()
    cfg['recipe'].update(gpus=2, batch_size=cfg['train_dataloader']['batch_size'])
    mp.spawn(rank_of_two, (str(tmp_path), cfg, free_port()), nprocs=2)
    first, second = (torch.load(tmp_path / f'{rank}.pth', weights_only=False) for rank in range(2))
    assert first['backend'] == 'nccl'
    assert all(torch.equal(value, second['state'][name]) for name, value in first['state'].items())
    assert all(value == value for value in first['losses'].values())
