"""What runs on a GPU, with a variant on the CPU wherever that shows that the test itself works."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.structures import DataSample

DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)]
DIGITS = Path(__file__).parents[2] / 'configs' / 'poa' / 'vitt_digits.py'
HEAD = dict(type='MultiPrototypeHead', num_prototypes=[64, 128], hidden_channels=96, bottleneck_channels=32)


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def true_float32():
    """Products in float32, not in TensorFloat-32; what a test switches on ends with it."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def on(monkeypatch):
    """Lets mmengine's runners train on the CPU of a machine with a GPU, too."""

    def choose(device):
        monkeypatch.setattr('mmengine.device.utils.DEVICE', str(device))

    return choose


@pytest.fixture
def make_poa(supernets, randomise):
    """Maker of small models of every family, initialised alike on every device."""

    def make(device, family='vit', backbone=None, **options):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = MODELS.build(dict(type='POA', backbone=supernets[family] | (backbone or {}), head=HEAD, **options))
            randomise(model)
        return model.to(device).train()

    return make


@pytest.fixture
def raw_batch():
    """What a loader gives: views as bytes, pinned where there is a GPU, and masks."""

    def make(model, images=4, local=2):
        generator = torch.Generator().manual_seed(0)
        channels = model.backbone.in_channels
        views = [
            torch.randint(256, (images, channels, size, size), generator=generator, dtype=torch.uint8)
            for size in (64, 64, *[32] * local)
        ]
        if torch.cuda.is_available():
            views = [view.pin_memory() for view in views]
        masks = torch.rand(images, 2, *model.backbone.mask_grid((64, 64)), generator=generator) < 0.4
        masks[0, 0] = False
        return dict(inputs=views, data_samples=[DataSample(mask=mask) for mask in masks])

    return make


@pytest.fixture
def one_subnet():
    """Makes a model deal one subnet for ever."""

    def fix(model, subnet):
        model.deck = SimpleNamespace(deal=lambda: subnet, last=subnet)
        return model

    return fix


@pytest.fixture
def loss_and_gradients(one_subnet):
    """Loss and gradients, in float32 on the CPU, of one step of a model on normalised views."""

    def run(model, inputs, samples, subnet, dtype=None):
        device = next(model.parameters()).device
        one_subnet(model, subnet)
        model.zero_grad()
        torch.manual_seed(1)
        with torch.autocast(device.type, dtype=dtype) if dtype else nullcontext():
            losses = model.loss([view.to(device) for view in inputs], samples)
        losses['loss'].backward()
        grads = {name: param.grad.float().cpu() for name, param in model.named_parameters() if param.grad is not None}
        return {name: value.detach().float().cpu() for name, value in losses.items()}, grads

    return run


@pytest.fixture
def amp(monkeypatch):
    """Maker of mixed-precision wrappers as a recipe would build them; on the CPU with a scaler for it, in bfloat16."""

    def make(model, dtype='float16', init_scale=2.0**10, **options):
        device = next(model.parameters()).device
        monkeypatch.setattr('poa_mm.engine.optimizers.constructor.get_device', lambda: 'cuda')
        monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
        wrapper = build_optim_wrapper(
            model,
            dict(
                type='POAAmpOptimWrapper',
                dtype=dtype if device.type == 'cuda' else 'bfloat16',
                loss_scale=dict(init_scale=init_scale),
                optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.04),
                clip_grad=dict(max_norm=1.5),
                constructor='POAOptimWrapperConstructor',
                paramwise_cfg=dict(flat_decay_mult=0.0),
                **options,
            ),
        )
        if device.type == 'cpu':
            if not hasattr(torch.amp, 'GradScaler'):
                pytest.skip('no gradient scaler for the CPU before torch 2.3')
            wrapper.loss_scaler = torch.amp.GradScaler('cpu', init_scale=init_scale)
        return wrapper

    return make


@pytest.fixture
def train_step():
    """One iteration as mmengine's loop does it: preprocess, loss, backward, clip, step."""

    def run(model, wrapper, batch):
        data = model.data_preprocessor(batch, True)
        with wrapper.optim_context(model):
            losses = model.loss(**data)
        wrapper.update_params(losses['loss'])
        return losses

    return run


@pytest.fixture(autouse=True)
def default_scope():
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


@pytest.fixture
def digits_run():
    """Maker of configs of a run on digits that takes seconds."""

    def make(work_dir, max_iters=4, **options):
        cfg = Config.fromfile(DIGITS)
        # As after the ramps of the recipe: every loss takes part. Local crops of another size than global ones.
        cfg.merge_from_dict(
            {
                'custom_hooks.1.patch_loss_start': 0,
                'custom_hooks.1.freeze_prototypes_iters': 0,
                'train_dataloader.batch_size': 8,
                'train_dataloader.num_workers': 0,
                'train_dataloader.dataset.pipeline.0.transforms.1.0.scale': 4,
                'train_cfg.max_iters': max_iters,
                'default_hooks.checkpoint.interval': 2,
                'model.backbone.drop_path_rate': 0.2,
                'log_level': 'ERROR',
                'work_dir': str(work_dir),
                **options,
            }
        )
        for scheduler in cfg.param_scheduler:  # of a run of four iterations
            scheduler.end, scheduler.begin = max(max_iters, 4) if scheduler.begin else 2, 2 if scheduler.begin else 0
        return cfg

    return make
