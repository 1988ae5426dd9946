import os

import pytest
import torch
from mmengine.model import BaseModule, PretrainedInit
from mmpretrain.models import VisionTransformer
from safetensors.torch import save_file
from torch.testing import assert_close

from poa_mm.checkpoint import CheckpointError
from poa_mm.engine import resume
from poa_mm.engine.pretrained import load_pretrained, load_weights


def vit(width=16, depth=2, img_size=16, **options):
    arch = dict(embed_dims=width, num_layers=depth, num_heads=2, feedforward_channels=32)
    return VisionTransformer(arch=arch, img_size=img_size, patch_size=4, **options)


class Model(BaseModule):
    """A backbone with weights to load and a head without."""

    def __init__(self, init_cfg, **options):
        super().__init__()
        self.backbone = vit(init_cfg=init_cfg, **options)
        self.head = torch.nn.Linear(16, 3)


@pytest.fixture
def weights(randomise):
    return randomise(vit()).state_dict()


@pytest.fixture
def path(weights, tmp_path):
    torch.save({'state_dict': weights, 'meta': {'subnet': '16x2'}}, tmp_path / 'vit.pth')
    return tmp_path / 'vit.pth'


def pretrained(path, **options):
    return dict(type='Pretrained', checkpoint=str(path), **options)


def test_loads_the_named_module_and_no_other(weights, path):
    model = Model(pretrained(path))
    head = model.head.weight.clone()
    load_pretrained(model)
    assert_close(dict(model.backbone.state_dict()), dict(weights))
    assert_close(model.head.weight, head)


def test_weights_are_those_that_mmengine_loads(path):
    ours, theirs = Model(pretrained(path)), Model(pretrained(path))
    load_pretrained(ours)
    theirs.init_weights()
    assert_close(dict(ours.backbone.state_dict()), dict(theirs.backbone.state_dict()))


@pytest.mark.parametrize('kind', ['Pretrained', PretrainedInit])
def test_one_of_several_initialisations(weights, path, kind):
    cfgs = [dict(type='TruncNormal', layer='Linear', std=0.02), dict(pretrained(path), type=kind)]
    model = Model(cfgs)
    load_pretrained(model)
    assert_close(dict(model.backbone.state_dict()), dict(weights))


@pytest.mark.parametrize('prefix', ['student.backbone', 'student.backbone.'])
def test_prefix(weights, tmp_path, prefix):
    other = {'head.bias': torch.zeros(1), 'student.backbone_of_another': torch.zeros(1)}
    torch.save({f'student.backbone.{key}': value for key, value in weights.items()} | other, tmp_path / 'run.pth')
    model = Model(pretrained(tmp_path / 'run.pth', prefix=prefix))
    load_pretrained(model)
    assert_close(dict(model.backbone.state_dict()), dict(weights))
    with pytest.raises(CheckpointError, match=r'expected weights teacher\.\*, found only head.bias, student'):
        load_pretrained(Model(pretrained(tmp_path / 'run.pth', prefix='teacher')))


def test_distributed_prefix_is_dropped(weights, tmp_path):
    torch.save({f'module.{key}': value for key, value in weights.items()}, tmp_path / 'run.pth')
    model = vit()
    load_weights(model, tmp_path / 'run.pth')
    assert_close(dict(model.state_dict()), dict(weights))


def test_position_embedding_is_resized(path):
    model = Model(pretrained(path), img_size=32)
    load_pretrained(model)
    assert model.backbone.pos_embed.shape == (1, 1 + 8 * 8, 16)


def test_missing_and_unexpected_keys_are_named(weights, path):
    weights['fc.bias'] = weights.pop('ln1.bias')
    torch.save(dict(weights), path)
    with pytest.raises(
        CheckpointError,
        match=r'vit.pth does not fit backbone \(VisionTransformer\): missing ln1.bias; unexpected fc.bias$',
    ):
        load_pretrained(Model(pretrained(path)))


def test_another_depth_is_named(path):
    with pytest.raises(CheckpointError, match=r'missing layers.2.\S+, .* and \d+ more; the file holds subnet 16x2$'):
        load_pretrained(Model(pretrained(path), depth=3))


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_another_width_is_named(weights, path, suffix):
    file = path.with_suffix(suffix)
    if suffix == '.safetensors':
        save_file(weights, file, metadata={'format': 'pt', 'subnet': '16x2'})
    with pytest.raises(
        CheckpointError, match=r'cls_token: .*\[1, 1, 16\].*\[1, 1, 32\].*the file holds subnet 16x2$'
    ) as error:
        load_weights(vit(width=32), file)
    assert len(str(error.value)) < 1000


def test_missing_file_is_named_with_the_way_to_make_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r'init_cfg of backbone: .*subnets/none.pth.*extract_subnet') as error:
        load_pretrained(Model(pretrained('subnets/none.pth')))
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize('init_cfg', [None, pretrained('torchvision://resnet50'), pretrained('https://no.where/a.pth')])
def test_nothing_to_check(init_cfg):
    load_pretrained(Model(init_cfg))


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_in_the_file_is_run(weights, tmp_path):
    torch.save({'state_dict': weights, 'meta': Harmful(tmp_path / 'made')}, tmp_path / 'bad.pth')
    with pytest.raises(CheckpointError, match='mkdir'):
        load_pretrained(Model(pretrained(tmp_path / 'bad.pth')))
    assert not (tmp_path / 'made').exists()


@pytest.mark.parametrize('content', [{'state_dict': 3}, {'state_dict': {'cls_token': 'text'}}])
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / 'odd.pth')
    with pytest.raises(CheckpointError, match=r'odd\.pth'):
        load_weights(vit(), tmp_path / 'odd.pth')


@pytest.mark.parametrize('missing', [(), ('weight', 'bias')])
def test_submodules_that_the_task_adds_may_be_absent(weights, path, missing):
    start = vit().ln1.weight
    torch.save({key: value for key, value in weights.items() if key not in {f'ln1.{name}' for name in missing}}, path)
    model = Model(pretrained(path))
    load_pretrained(model, new=('ln1', 'ln2'))  # there is no ln2
    assert_close(model.backbone.ln1.weight.data, start.data if missing else weights['ln1.weight'])
    assert_close(model.backbone.cls_token.data, weights['cls_token'])


@pytest.mark.parametrize('gone', ['ln1.bias', 'cls_token', 'layers.1.ln1.bias'])
def test_nothing_else_may_be_absent(weights, path, gone):
    """Neither a part of such a submodule nor one of that name deeper down."""
    del weights[gone]
    torch.save(dict(weights), path)
    with pytest.raises(CheckpointError, match=rf': missing {gone}$'):
        load_pretrained(Model(pretrained(path)), new=('ln1',))


def test_mmengine_reads_through_the_same_reader(path, monkeypatch):
    """A file can be made to look harmless to one reader and run something in another."""
    model = Model(pretrained(path))
    load_pretrained(model)
    content = dict(state_dict=vit().state_dict())
    monkeypatch.setattr(resume, 'read_checkpoint', lambda path, weights: content)
    monkeypatch.setattr(torch, 'load', lambda *args, **options: pytest.fail('mmengine has unpickled the file'))
    model.init_weights()
    assert_close(dict(model.backbone.state_dict()), dict(content['state_dict']))
    load_pretrained(model)  # a hook may check what the command has checked
