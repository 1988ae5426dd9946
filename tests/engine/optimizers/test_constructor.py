import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from torch.testing import assert_close

from poa_mm.engine import POAOptimWrapper
from poa_mm.engine.optimizers import constructor


@pytest.fixture
def model(run_config):
    return MODELS.build(run_config.model)


@pytest.fixture
def settings(model, run_config):
    """Group of each student parameter by its name."""
    wrapper = build_optim_wrapper(model, run_config.optim_wrapper)
    names = {id(param): name for name, param in model.named_parameters()}
    return {names[id(p)]: group for group in wrapper.optimizer.param_groups for p in group['params']}


def test_every_student_parameter_and_no_other_is_trained(model, settings):
    assert set(settings) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith('teacher.') for name in settings)


@pytest.mark.parametrize(
    ('name', 'lr_scale'),
    [
        # 3 blocks: embeddings at depth 0, blocks at 1..3, what follows at 4
        ('backbone.cls_token', 0.9**4),
        ('backbone.mask_token', 0.9**4),
        ('backbone.pos_embed', 0.9**4),
        ('backbone.patch_embed.projection.weight', 0.2 * 0.9**4),
        ('backbone.patch_embed.projection.bias', 0.2 * 0.9**4),
        ('backbone.layers.0.attn.qkv.weight', 0.9**3),
        ('backbone.layers.2.ffn.layers.1.bias', 0.9),
        ('backbone.ln1.weight', 1.0),
        ('head.projectors.0.layers.0.weight', 1.0),
        ('head.prototypes.1.gain', 1.0),
    ],
)
def test_learning_rates_by_hand(settings, name, lr_scale):
    assert settings[name]['lr'] == pytest.approx(0.01 * lr_scale)
    assert settings[name]['lr_scale'] == pytest.approx(lr_scale)


def test_no_decay_on_bias_norm_and_layer_scale(settings):
    spared = {name for name, group in settings.items() if group['weight_decay'] == 0}
    assert spared == {name for name in settings if name.endswith('.bias') or '.ln' in name or '.gamma' in name}
    assert all(settings[name]['weight_decay'] == 0.04 for name in set(settings) - spared)


def test_groups_are_few_and_marked(settings):
    groups = {id(group): group for group in settings.values()}.values()
    keys = [tuple((k, v) for k, v in group.items() if k not in ('params', 'initial_lr')) for group in groups]
    assert len(set(keys)) == len(keys) < len(settings) / 2
    for name, group in settings.items():
        assert group['module'] == name.split('.')[0]
        assert group['prototypes'] == ('prototypes' in name)


def test_mixed_precision_gives_way_on_the_cpu(model, run_config, monkeypatch):
    monkeypatch.setattr('poa_mm.engine.optimizers.constructor.get_device', lambda: 'cpu')
    cfg = run_config.optim_wrapper
    cfg.update(type='POAAmpOptimWrapper', dtype='float16', loss_scale='dynamic')
    wrapper = build_optim_wrapper(model, cfg)
    assert type(wrapper) is POAOptimWrapper
    assert cfg.type == 'POAAmpOptimWrapper'  # the user's config is not changed


@pytest.mark.parametrize('has_it', [True, False])
def test_adamw_is_fused_where_torch_can(model, run_config, monkeypatch, has_it):
    monkeypatch.setattr(constructor, 'has_fused_adamw', lambda device: has_it)
    built = []
    monkeypatch.setattr(constructor.LayerDecayOptimWrapperConstructor, '__call__', lambda self, _: built.append(self))
    build_optim_wrapper(model, run_config.optim_wrapper)
    assert built[0].optimizer_cfg.get('fused', False) is has_it


@pytest.mark.parametrize('optimizer', [dict(type='AdamW', fused=False), dict(type='SGD')])
def test_the_config_decides(model, run_config, monkeypatch, optimizer):
    monkeypatch.setattr(constructor, 'has_fused_adamw', lambda device: True)
    wrapper = build_optim_wrapper(
        model, {**run_config.optim_wrapper, 'optimizer': dict(lr=0.01, weight_decay=0, **optimizer)}
    )
    assert not wrapper.optimizer.defaults.get('fused')


def test_fused_adamw_takes_the_same_step():
    cpu = torch.device('cpu')
    if not constructor.has_fused_adamw(cpu):
        pytest.skip('this torch has no fused AdamW for CPUs')
    torch.manual_seed(0)
    start, grads = torch.randn(50), torch.randn(3, 50)
    found = []
    for fused in (True, False):
        param = torch.nn.Parameter(start.clone())
        optimizer = torch.optim.AdamW([param], lr=0.1, weight_decay=0.04, fused=fused)
        for grad in grads:
            param.grad = grad.clone()
            optimizer.step()
        found.append(param.detach())
    assert_close(*found)
    assert not torch.equal(found[0], start)


def test_where_torch_cannot(monkeypatch):
    def refuse(params, fused):
        raise RuntimeError('not on this device')

    monkeypatch.setattr(torch.optim, 'AdamW', refuse)
    assert not constructor.has_fused_adamw(torch.device('cpu'))
