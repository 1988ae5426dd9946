import re

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from safetensors.torch import save_file

from poa_mm.checkpoint import CheckpointError, load_teacher, read_checkpoint
from poa_mm.deploy import public_checkpoint
from poa_mm.deploy.public_checkpoint import convert_public_state_dict, find_branches, import_public_checkpoint
from poa_mm.elastic import Subnet


@pytest.fixture
def branches(public):
    """The teacher's and the student's tensors, each by names without prefix."""
    return {
        branch: {name.split('.', 1)[1]: tensor for name, tensor in public.items() if name.startswith(branch)}
        for branch in ('teacher', 'student')
    }


def flat(branches, prefix=''):
    return {f'{prefix}{branch}.{name}': t for branch, tensors in branches.items() for name, t in tensors.items()}


LAYOUTS = {
    'flat': lambda b: flat(b),
    'nested': lambda b: dict(b),
    'in model': lambda b: {'model': flat(b), 'iteration': 7},
    'nested in model': lambda b: {'model': dict(b), 'optimizer': {'state': {}}, 'iteration': 7},
    'with extras': lambda b: {**b, 'optimizer': {'state': {}}, 'iteration': 7},
    'ddp': lambda b: {'model': flat(b, 'module.')},
    'fsdp': lambda b: {
        branch: {name.replace('.', '._fsdp_wrapped_module.', 1): tensor for name, tensor in tensors.items()}
        for branch, tensors in b.items()
    },
    'chunked': lambda b: flat(
        {
            branch: {
                re.sub(r'blocks\.(\d+)', lambda m: f'blocks.{int(m[1]) // 2}.{m[1]}', name): tensor
                for name, tensor in tensors.items()
            }
            for branch, tensors in b.items()
        }
    ),
    'with centres': lambda b: {'model': {**flat(b), 'dino_loss.center': torch.zeros(1, 64)}},
}
IGNORED = {
    'in model': ['iteration'],
    'nested in model': ['optimizer', 'iteration'],
    'with extras': ['optimizer', 'iteration'],
    'with centres': ['dino_loss.center'],
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_layouts(branches, layout, same_tensors):
    found = find_branches(LAYOUTS[layout](branches))
    assert found.ignored == IGNORED.get(layout, [])
    for branch in ('teacher', 'student'):
        same_tensors(convert_public_state_dict(getattr(found, branch)), convert_public_state_dict(branches[branch]))


@pytest.mark.parametrize('box', [lambda t: t, lambda t: {'teacher': t}, lambda t: {'model': {'teacher': t}}])
def test_a_teacher_alone(branches, box, config, tmp_path, same_tensors):
    torch.save(box(branches['teacher']), tmp_path / 'teacher.pth')
    report = import_public_checkpoint(config, tmp_path / 'teacher.pth', tmp_path / 'poa.pth')
    assert report.student_copied
    state = read_checkpoint(tmp_path / 'poa.pth')['state_dict']
    teacher = {name[len('teacher.') :]: tensor for name, tensor in state.items() if name.startswith('teacher.')}
    same_tensors(teacher, convert_public_state_dict(branches['teacher']))
    same_tensors({name: t for name, t in state.items() if not name.startswith('teacher.')}, teacher)


def test_every_weight_arrives_where_it_belongs(golden_checkpoint, branches, config, golden, same_tensors):
    content = torch.load(golden_checkpoint, weights_only=True)
    state = content['state_dict']
    same_tensors(
        {name: tensor for name, tensor in state.items() if not name.startswith('teacher.')},
        convert_public_state_dict(branches['student']),
    )
    assert content['poa'] == {
        'format': 1, **{part: config.model[part].to_dict() for part in ('backbone', 'head', 'data_preprocessor')},
        'deck': {'seed': 0, 'dealt': 0},
    }  # fmt: skip
    backbone, _ = load_teacher(golden_checkpoint)
    tensors, _ = golden('vit_step')
    with torch.no_grad():
        features = backbone.extract_features(tensors['batch.collated_global_crops'], Subnet(48, 3))
    torch.testing.assert_close(features.cls, tensors['features.48x3.global.cls'], rtol=0, atol=1e-5)
    torch.testing.assert_close(features.patch, tensors['features.48x3.global.patch'], rtol=0, atol=1e-5)


def test_pth_and_safetensors_and_half_precision(public, config, golden_checkpoint, tmp_path, same_tensors):
    torch.save({'model': public, 'iteration': 3}, tmp_path / 'public.pth')
    report = import_public_checkpoint(config, tmp_path / 'public.pth', tmp_path / 'new' / 'poa.pth')
    assert report == (['iteration'], False, 'teacher', True)
    expected = read_checkpoint(golden_checkpoint)['state_dict']
    same_tensors(read_checkpoint(tmp_path / 'new' / 'poa.pth')['state_dict'], expected)

    torch.save({name: tensor.half() for name, tensor in public.items()}, tmp_path / 'half.pth')
    import_public_checkpoint(config, tmp_path / 'half.pth', tmp_path / 'poa.pth')
    same_tensors(
        read_checkpoint(tmp_path / 'poa.pth')['state_dict'], {k: v.half().float() for k, v in expected.items()}
    )


def test_the_preprocessor_may_stand_beside_the_model(public, config, tmp_path):
    save_file(public, tmp_path / 'public.safetensors')
    cfg = config.to_dict()
    cfg['data_preprocessor'] = cfg['model'].pop('data_preprocessor')
    import_public_checkpoint(Config(cfg), tmp_path / 'public.safetensors', tmp_path / 'poa.pth')
    described = read_checkpoint(tmp_path / 'poa.pth')['poa']['data_preprocessor']
    assert described['mean'] == [1.5, 2.5, 3.5]


FAMILIES = {
    'swin': dict(
        type='ElasticSwinTransformer',
        arch=dict(embed_dims=32, depths=[1, 1, 4, 1], num_heads=[4, 8, 16, 32]),
        widths=[16, 24, 32],
        depths=[2, 3, 4],
        img_size=64,
        window_size=4,
        stem_norm='full',
    ),
    'resnet': dict(
        type='ElasticResNet',
        stage_blocks=[1, 2, 4, 1],
        mid_channels=16,
        depths=[1, [1, 2], [2, 3, 4], 1],
        stem_channels=8,
        base_channels=8,
        num_groups=4,
        img_size=64,
    ),
}


@pytest.mark.parametrize('branches', [['teacher'], ['teacher', 'student']], ids='-'.join)
@pytest.mark.parametrize('family', FAMILIES)
@torch.no_grad()
def test_other_families(family, branches, golden, tmp_path):
    """What the golden backbone computes arrives, and what is left out is reported."""
    tensors, told = golden(family)
    head = dict(type='MultiPrototypeHead', num_prototypes=[8], hidden_channels=16, bottleneck_channels=8)
    config = Config(dict(model=dict(type='POA', backbone=FAMILIES[family], head=head)))
    weights = {f'backbone.{name[6:]}': tensor for name, tensor in tensors.items() if name.startswith('model.')}
    for name, tensor in MODELS.build(config.model).head.state_dict().items():
        layer, name = re.fullmatch(r'(?:projectors|prototypes)\.0\.(?:layers\.(\d)\.)?(\w+)', name).groups()
        public = f'mlp0.{layer}.{"linear." * (layer == "0")}{name}' if layer else f'last_layer0.weight_{name[0]}'
        weights[f'dino_head.{public.replace("weight_w", "weight_v")}'] = tensor
    torch.save(dict.fromkeys(branches, weights), tmp_path / 'public.pth')

    report = import_public_checkpoint(config, tmp_path / 'public.pth', tmp_path / 'poa.pth')
    assert report.student_copied == (len(branches) == 1)
    unused = [f'norm{stage}.norm.{name}' for stage in range(3) for name in ('weight', 'bias')]
    expected = {f'{branch}.backbone.{name}' for branch in branches for name in unused} if family == 'swin' else set()
    assert set(report.ignored) == expected and len(report.ignored) == len(expected)

    backbone, _ = load_teacher(tmp_path / 'poa.pth')
    for name, size in told['networks'].items():
        width, depth = size['width'], size['depth']
        subnet = Subnet(width, depth) if isinstance(width, int) else Subnet(width[0], tuple(depth))
        found = backbone.extract_features(tensors['image'], subnet).cls
        torch.testing.assert_close(found, tensors[f'{name}.pooled'], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    'name',
    ['backbone.register_tokens', 'ibot_head.mlp0.0.linear.weight', 'backbone.blocks.0.ls3.gamma', 'features.x', ''],
)
def test_an_unknown_name(branches, name):
    with pytest.raises(CheckpointError, match=f'{re.escape(name)}: not a weight'):
        convert_public_state_dict({**branches['teacher'], name: torch.zeros(1)})


@pytest.mark.parametrize('twin', ['module.backbone.cls_token', 'backbone.blocks.7.0.ls1.gamma'])
def test_two_names_for_one_weight(branches, twin):
    with pytest.raises(CheckpointError, match=f'and {twin} are both'):
        convert_public_state_dict({**branches['teacher'], twin: torch.zeros(64)})


def test_not_a_tensor(branches):
    with pytest.raises(CheckpointError, match=r'cls_token: expected a tensor, found list'):
        convert_public_state_dict({**branches['teacher'], 'backbone.cls_token': [0.0]})


def edit(**changes):
    def change(state):
        for name, value in changes.items():
            if value is None:
                state.pop(name)
            else:
                state[name] = value
        return state

    return change


BROKEN = {
    'a batch besides': (edit(**{'batch.crops': torch.zeros(1)}), r'besides batch\.crops'),
    'missing weight': (edit(**{'teacher.backbone.cls_token': None}), r'teacher .*missing backbone\.cls_token'),
    'missing in the student': (edit(**{'student.dino_head.mlp1.2.bias': None}), r'student .*missing head\.projectors'),
    'wrong shape': (
        edit(**{'teacher.backbone.cls_token': torch.zeros(1, 1, 8)}),
        r'cls_token is \(1, 1, 8\), expected',
    ),
    'a block too many': (edit(**{'teacher.backbone.blocks.4.ls1.gamma': torch.zeros(64)}), r'unexpected backbone\.lay'),
    'no teacher': (lambda s: {k: v for k, v in s.items() if k.startswith('student')}, 'expected a teacher, found only'),
    'a stranger': (lambda s: {'layer1.0.conv1.weight': torch.zeros(1)}, r'layer1\.0\.conv1\.weight: not a weight'),
    'no tensors': (lambda s: {'iteration': 3}, 'expected a teacher, found only iteration'),
    'empty': (lambda s: {}, 'expected a teacher, found only nothing'),
}


@pytest.mark.parametrize('case', BROKEN)
def test_what_does_not_fit_writes_nothing(public, config, tmp_path, case):
    change, message = BROKEN[case]
    torch.save(change(dict(public)), tmp_path / 'public.pth')
    with pytest.raises(CheckpointError, match=message):
        import_public_checkpoint(config, tmp_path / 'public.pth', tmp_path / 'out' / 'poa.pth')
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('model', 'message'),
    [
        (dict(type='Nonsense'), 'cannot build the model'),
        (dict(type='VisionTransformer', arch='deit-tiny'), 'expected a config whose model is POA'),
    ],
)
def test_a_config_of_something_else(public, tmp_path, model, message):
    save_file(public, tmp_path / 'public.safetensors')
    with pytest.raises(CheckpointError, match=message):
        import_public_checkpoint(Config(dict(model=model)), tmp_path / 'public.safetensors', tmp_path / 'poa.pth')


def test_a_failed_write_keeps_the_old_file(public, config, tmp_path, monkeypatch):
    save_file(public, tmp_path / 'public.safetensors')
    (tmp_path / 'poa.pth').write_text('old')

    def fail(path, checkpoint):
        path.write_text('half of it')
        raise OSError('no space left')

    monkeypatch.setattr(public_checkpoint, 'save_to', fail)
    with pytest.raises(OSError, match='no space'):
        import_public_checkpoint(config, tmp_path / 'public.safetensors', tmp_path / 'poa.pth')
    assert {path.name for path in tmp_path.iterdir()} == {'public.safetensors', 'poa.pth'}
    assert (tmp_path / 'poa.pth').read_text() == 'old'


# --- which branch ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ('layout', 'branch', 'named'),
    [
        (lambda b: b['teacher'], None, False),
        (lambda b: b['teacher'], 'teacher', True),
        (lambda b: {'model': b['student']}, 'student', True),
        (lambda b: {'student': b['student']}, 'student', True),
        (lambda b: flat(b), 'student', True),
        (lambda b: flat(b), 'teacher', True),
    ],
)
def test_the_branch_that_becomes_the_teacher(branches, config, tmp_path, layout, branch, named, same_tensors):
    torch.save(layout(branches), tmp_path / 'public.pth')
    report = import_public_checkpoint(config, tmp_path / 'public.pth', tmp_path / 'poa.pth', branch)
    assert (report.branch, report.named) == (branch or 'teacher', named)
    content = read_checkpoint(tmp_path / 'poa.pth')
    assert content['meta']['branch'] == report.branch
    teacher = {k[len('teacher.') :]: v for k, v in content['state_dict'].items() if k.startswith('teacher.')}
    same_tensors(teacher, convert_public_state_dict(branches[report.branch]))


def test_a_branch_that_is_not_there(branches, config, tmp_path):
    torch.save({'teacher': branches['teacher']}, tmp_path / 'teacher.pth')
    torch.save({'student': branches['student']}, tmp_path / 'student.pth')
    for file, branch, message in (
        ('teacher', 'student', r'expected a student, found only a teacher \(--branch\)'),
        ('student', None, r'expected a teacher, found only a student \(--branch\)'),
        ('teacher', 'ema', "branch 'ema' is not one of teacher, student"),
    ):
        with pytest.raises(ValueError, match=message):
            import_public_checkpoint(config, tmp_path / f'{file}.pth', tmp_path / 'poa.pth', branch)
    assert not (tmp_path / 'poa.pth').exists()


@pytest.mark.parametrize('bad', [float('nan'), float('-inf')])
@pytest.mark.parametrize(
    ('branch', 'name'), [('teacher', 'backbone.cls_token'), ('student', 'dino_head.mlp0.0.linear.bias')]
)
def test_weights_that_are_no_numbers(branches, config, tmp_path, bad, branch, name):
    branches[branch][name] = torch.full_like(branches[branch][name], bad)
    torch.save(branches, tmp_path / 'public.pth')
    with pytest.raises(CheckpointError, match=rf'public\.pth: {branch}: there is NaN or infinity in '):
        import_public_checkpoint(config, tmp_path / 'public.pth', tmp_path / 'poa.pth')
    assert not (tmp_path / 'poa.pth').exists()
