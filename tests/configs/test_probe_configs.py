"""The ImageNet probes as shipped: they build, and train on digits with a small backbone in the place of theirs."""

import inspect
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, METRICS, MODELS, TRANSFORMS, DefaultScope, init_default_scope
from mmengine.runner import Runner
from safetensors.torch import load_file, save_file

from poa_mm.checkpoint import CheckpointError, load_teacher
from poa_mm.elastic import Subnet
from poa_mm.models import ElasticResNet, ElasticSwinTransformer

CONFIGS = Path(__file__).parents[2] / 'configs'
PROBES = sorted((CONFIGS / 'probe').glob('*.py'))
SUBNETS = {
    'vit-s-p16': '384x12',
    'vit-b-p16': '768x12',
    'vit-l-p16': '1024x24',
    'swin-t': '96x6',
    'r50': '64x3-4-6-3',
}


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmpretrain')
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(scope='module')
def paper_supernets():
    """Those of the recipe and of the paper, without memory for their weights."""
    init_default_scope('mmpretrain')
    with torch.device('meta'):
        vit = MODELS.build(Config.fromfile(CONFIGS / 'poa' / 'vitl_in1k.py').model.backbone)
        return dict(vit=vit, swin=ElasticSwinTransformer(), r50=ElasticResNet())


def build(cfg):
    """Without memory for the weights where mmpretrain's class can do without."""
    with torch.device('meta' if 'VisionTransformer' in cfg.model.backbone.type else 'cpu'):
        return MODELS.build(cfg.model)


def shapes(state):
    return {key: tensor.shape for key, tensor in state.items()}


def test_all_are_there():
    names = {f'{task}_poa-{network}_in1k' for task in ('linear', 'knn') for network in SUBNETS}
    names |= {f'finetune_poa-vit-{size}-p16_in1k' for size in 'sbl'}
    assert names == {path.stem for path in PROBES}


@pytest.mark.parametrize('path', PROBES, ids=lambda path: path.stem)
def test_builds_and_takes_the_extracted_weights(path, paper_supernets):
    cfg = Config.fromfile(path)
    network = path.stem.split('_')[1].removeprefix('poa-')
    supernet, subnet = paper_supernets[network.split('-')[0]], SUBNETS[network]
    assert path.read_text().startswith('"""') and f'({subnet})' in path.read_text(), 'a config explains itself'
    model = build(cfg)
    assert cfg.model.backbone.init_cfg.checkpoint == f'subnets/poa_{subnet}.safetensors'
    _, state = supernet.extract(Subnet.parse(subnet))
    assert shapes(model.backbone.state_dict()) == shapes(state)

    if 'knn' in path.stem:
        assert {'bank', 'query'} <= set(cfg.knn)
        return
    for part in ('train', 'val', 'test'):
        for transform in cfg[f'{part}_dataloader'].dataset.pipeline:
            TRANSFORMS.build(transform)
    for part in ('val', 'test'):
        METRICS.build(cfg[f'{part}_evaluator'])
    for hook in cfg.custom_hooks:
        HOOKS.build(hook)
    assert cfg.train_dataloader.batch_size * 8 == 1024
    build_optim_wrapper(model, cfg.optim_wrapper)


def parameter_groups(name):
    """``(lr, weight decay)`` of every trainable parameter of a shipped config."""
    cfg = Config.fromfile(CONFIGS / 'probe' / f'{name}.py')
    model = build(cfg)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    found = {param: (group['lr'], group['weight_decay']) for group in groups for param in group['params']}
    return {name: found[param] for name, param in model.named_parameters() if param.requires_grad}


@pytest.mark.parametrize(('size', 'decay', 'depth'), [('s', 0.75, 12), ('b', 0.65, 12), ('l', 0.75, 24)])
def test_learning_rates_of_fine_tuning(size, decay, depth):
    groups = parameter_groups(f'finetune_poa-vit-{size}-p16_in1k')
    expected = {
        'backbone.cls_token': (1e-3 * decay ** (depth + 1), 0),
        'backbone.pos_embed': (1e-3 * decay ** (depth + 1), 0),
        'backbone.patch_embed.projection.weight': (1e-3 * decay ** (depth + 1), 0.05),
        'backbone.layers.0.attn.qkv.weight': (1e-3 * decay**depth, 0.05),
        'backbone.layers.0.attn.qkv.bias': (1e-3 * decay**depth, 0),
        'backbone.layers.0.attn.gamma1.weight': (1e-3 * decay**depth, 0),
        'backbone.layers.4.ln1.weight': (1e-3 * decay ** (depth - 4), 0),
        f'backbone.layers.{depth - 1}.ffn.layers.1.weight': (1e-3 * decay, 0.05),
        'backbone.ln1.weight': (1e-3, 0),
        'head.fc.weight': (1e-3, 0.05),
        'head.fc.bias': (1e-3, 0),
    }
    assert {name: groups[name] for name in expected} == {name: pytest.approx(pair) for name, pair in expected.items()}


def test_learning_rates_of_the_sweep():
    groups = parameter_groups('linear_poa-vit-s-p16_in1k')
    rates = [4 * digit * 10**power for power in range(-5, -1) for digit in (1, 2, 5)] + [0.4]
    assert groups == {
        f'head.classifiers.{index}.{kind}': (pytest.approx(rate), 0)
        for index, rate in enumerate(rates)
        for kind in ('weight', 'bias')
    }


# --- on digits -------------------------------------------------------------------------------

LEAF = """
_base_ = r'{base}'

from poa_mm.deploy.downstream import classifier, resnet, swin, vit

tiny = dict({sizes}, drop_path_rate={drop_path})
model = classifier({family}('{subnet}', checkpoint=r'{checkpoint}', **tiny), frozen={frozen})
model['head'].update(num_classes=10)
data_preprocessor = dict(mean=[78.0] * 3, std=[95.0] * 3, num_classes=10)
loader = dict(batch_size=64, num_workers=0, persistent_workers=False, pin_memory=False)
digits = dict(
    _delete_=True, type='Digits', split='val', pipeline=[dict(type='Resize', scale={scale}), dict(type='PackInputs')]
)
train_dataloader = dict(**loader, dataset=digits)
val_dataloader = dict(**loader, dataset=digits)
train_cfg = dict(max_epochs={epochs}, val_interval={epochs})
optim_wrapper = dict(optimizer=dict(lr={lr}))
default_hooks = dict(checkpoint=dict(save_last=False))
"""


SIZES = dict(
    vit='img_size=8, patch_size=4, head_dim=16',
    swin='depths=(1, 1, 4, 1), head_dim=8, img_size=64, window_size=4',
    resnet='stem_channels=8, base_channels=8, num_groups=4',
)


@pytest.fixture(scope='module')
def weights(tmp_path_factory, elastic_vit):
    """File of the subnet 32x2 of a random supernet."""
    supernet = elastic_vit(img_size=8, patch_size=4, layer_scale_init_value=1e-5)
    path = tmp_path_factory.mktemp('subnets') / 'poa_32x2.safetensors'
    save_file(supernet.extract(Subnet(32, 2))[1], path)
    return path


@pytest.fixture
def runner(tmp_path):
    """Maker of runners of a shipped recipe with a small backbone."""

    def make(task, checkpoint, subnet='32x2', lr=1.0, epochs=6, family='vit'):
        leaf = tmp_path / f'{task}_digits.py'
        base = CONFIGS / 'probe' / '_base_' / f'{task}_in1k.py'
        settings = dict(frozen=task == 'linear', drop_path=0.0 if task == 'linear' else 0.1, lr=lr, epochs=epochs)
        settings |= dict(family=family, sizes=SIZES[family], scale=8 if family == 'vit' else 32)
        leaf.write_text(LEAF.format(base=base, subnet=subnet, checkpoint=checkpoint, **settings))
        cfg = Config.fromfile(leaf)
        cfg.merge_from_dict(dict(work_dir=str(tmp_path), test_dataloader=None, test_evaluator=None, test_cfg=None))
        # Not from_cfg, as mmengine takes seconds to format a config.
        arguments = {name: cfg[name] for name in inspect.signature(Runner).parameters if name in cfg}
        return Runner(**arguments, experiment_name=f'{tmp_path.parent.name}_{tmp_path.name}')

    return make


def test_linear_probe_of_digits(runner, weights):
    run = runner('linear', weights)
    run.train()
    for name, tensor in load_file(weights).items():
        assert torch.equal(run.model.backbone.state_dict()[name], tensor), name
    metrics = run.val_loop.run()
    assert len([name for name in metrics if name.startswith('accuracy/top1_lr_')]) == 13
    assert metrics['accuracy/top1'] > 40 > metrics['accuracy/top1_lr_4e-05'], 'ten classes'
    assert list(Path(run.work_dir).glob('best_accuracy_top1_epoch_*.pth'))
    assert max(group['lr'] for group in run.optim_wrapper.param_groups) < 0.05, 'the cosine ends with the run'


@pytest.mark.parametrize(('family', 'subnet'), [('swin', '24x3'), ('resnet', '12x3-2-1-3')])
def test_linear_probe_of_the_other_families(runner, family, subnet, supernet_file, tmp_path):
    supernet, _ = load_teacher(supernet_file(family))
    state = supernet.extract(supernet.space.parse(subnet))[1]
    save_file(state, tmp_path / 'subnet.safetensors')
    run = runner('linear', tmp_path / 'subnet.safetensors', subnet, family=family, epochs=4)
    run.train()
    for name, tensor in state.items():
        assert torch.equal(run.model.backbone.state_dict()[name], tensor), name
    assert run.val_loop.run()['accuracy/top1'] > 20, 'ten classes'


def test_fine_tuning_on_digits(runner, weights):
    run = runner('finetune', weights, lr=0.02, epochs=15)  # 5 of warm-up
    run.train()
    before = load_file(weights)
    after = run.model.backbone.state_dict()
    assert before.keys() == after.keys()
    assert all(not torch.equal(after[name], before[name]) for name in before)
    metrics = run.val_loop.run()
    assert metrics['accuracy/top1'] > 40
    assert max(group['lr'] for group in run.optim_wrapper.param_groups) < 0.001, 'the cosine ends with the run'


@pytest.mark.parametrize('task', ['linear', 'finetune'])
def test_weights_of_another_subnet_stop_the_run(runner, weights, task):
    with pytest.raises(CheckpointError, match=r'poa_32x2\.safetensors does not fit backbone .*layers\.2'):
        runner(task, weights, subnet='32x3').train()
