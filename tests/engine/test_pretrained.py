import os

import pytest
import torch
from mmengine.model import BaseModule, PretrainedInit
from mmengine.registry import MODELS
from mmpretrain.models import ClsDataPreprocessor, VisionTransformer
from mmpretrain.models.utils import resize_pos_embed
from safetensors.torch import save_file
from torch.testing import assert_close

from poa_mm.checkpoint import CheckpointError, describe_supernet, read_checkpoint
from poa_mm.checkpoint.resizing import resize_biases
from poa_mm.deploy.downstream import resnet as resnet_config
from poa_mm.deploy.downstream import swin as swin_config
from poa_mm.deploy.downstream import vit as vit_config
from poa_mm.deploy.extract import extract_subnets
from poa_mm.engine import pretrained as pretrained_module
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


# --- what keys do not show --------------------------------------------------------------------
CONFIGS = dict(
    vit=lambda file, **changes: vit_config('32x3', file, **dict(head_dim=16, img_size=64) | changes),
    swin=lambda file, **changes: swin_config(
        '16x3', file, **dict(depths=(1, 1, 4, 1), head_dim=8, img_size=64, window_size=4) | changes
    ),
    resnet=lambda file, **changes: resnet_config(
        '12x3-2-1-3', file, **dict(stem_channels=8, base_channels=8, num_groups=4) | changes
    ),
)
SUBNETS = dict(vit='32x3', swin='16x3', resnet='12x3-2-1-3')


@pytest.fixture(scope='module')
def files(supernet_file, tmp_path_factory):
    """Extracted weights by family and format."""
    found = {}
    for family, subnet in SUBNETS.items():
        for format in ('safetensors', 'pth'):
            folder = tmp_path_factory.mktemp(family)
            extract_subnets(supernet_file(family), [subnet], folder, format, verify=False)
            found[family, format] = folder / f'poa_{subnet}.{format}'
    return found


@pytest.mark.parametrize('format', ['safetensors', 'pth'])
@pytest.mark.parametrize(
    ('family', 'changes', 'message'),
    [
        ('vit', dict(head_dim=32), r'layers\.\*\.attn\.num_heads is 1, in the file 2'),
        ('vit', dict(norm_cfg=dict(type='LN', eps=1e-3)), r'eps is 0\.001, in the file 1e-06'),
        ('vit', dict(img_size=128), r'a grid of 4 x 4 patches in the file, a grid of 8 x 8 patches here.*resize=True'),
        ('vit', dict(img_size=(32, 128)), r'a grid of 4 x 4 patches in the file, a grid of 2 x 8 patches here'),
        ('swin', dict(head_dim=16), r'num_heads is \(1, 2, 4, 8\), in the file \(2, 4, 8, 16\)'),
        ('swin', dict(depths=(1, 1, 5, 1)), r'shift_size is 0, in the file 2'),
        ('swin', dict(window_size=7), r'windows of 4 in the file, windows of 7 here'),
        ('resnet', dict(num_groups=2), r'gn1\.num_groups is 2, in the file 4'),
        ('resnet', dict(strides=(1, 2, 2, 1)), r'stride is 1, in the file 2'),
    ],
)
def test_another_network_of_the_same_names_and_shapes_is_refused(files, family, format, changes, message):
    load_pretrained(MODELS.build(CONFIGS[family](files[family, format])))
    network = MODELS.build(CONFIGS[family](files[family, format], **changes))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as error:
        load_pretrained(network)
    assert f'the file holds subnet {SUBNETS[family]}' in str(error.value)
    assert '\n' not in str(error.value)
    assert_close(dict(network.state_dict()), before)


def test_differences_may_be_allowed_by_name(files):
    network = MODELS.build(CONFIGS['resnet'](files['resnet', 'pth'], strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)))
    for differ in ((), ('stride',), ('dilation', 'dilations')):
        with pytest.raises(CheckpointError, match=r'(stride|dilation)s? is'):
            load_pretrained(network, differ=differ)
    load_pretrained(network, differ=('stride', 'strides', 'conv2_stride', 'dilation', 'dilations', 'padding'))


@pytest.mark.parametrize('format', ['safetensors', 'pth'])
@pytest.mark.parametrize('img_size', [128, (32, 128), (128, 32), 96])
def test_position_embeddings_are_resized_when_asked_and_said(files, format, img_size, caplog):
    network = MODELS.build(CONFIGS['vit'](files['vit', format], img_size=img_size))
    load_pretrained(network, resize=True)
    stored = read_checkpoint(files['vit', format])['state_dict']
    grid = network.patch_resolution
    expected = resize_pos_embed(stored['pos_embed'], (4, 4), grid, 'bicubic', 1)
    assert_close(network.pos_embed.data, expected)
    with torch.no_grad():
        network.pos_embed.zero_()
    network.init_weights()  # mmengine reads the file again
    assert_close(network.pos_embed.data, expected)
    load_pretrained(network)  # a hook may check what the command has checked


@pytest.mark.parametrize('window', [2, 7, 12])
def test_swin_windows_are_resized_when_asked(files, window):
    network = MODELS.build(CONFIGS['swin'](files['swin', 'safetensors'], window_size=window))
    load_pretrained(network, resize=True)
    key = 'stages.2.blocks.1.attn.w_msa.relative_position_bias_table'
    stored = read_checkpoint(files['swin', 'safetensors'])['state_dict']
    loaded = {name: value.clone() for name, value in network.state_dict().items()}
    assert_close(loaded[key], resize_biases(stored[key], window))
    network.eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        (features,) = network(images)
        for param in network.parameters():
            param.zero_()
        network.init_weights()
        assert_close(dict(network.state_dict()), loaded)
        assert_close(network(images)[0], features)


def test_windows_of_a_file_that_does_not_say_them_are_resized(files, tmp_path):
    """As the library did, where its function still ran."""
    stored = read_checkpoint(files['swin', 'pth'])['state_dict']
    torch.save({'state_dict': stored}, tmp_path / 'plain.pth')
    network = MODELS.build(CONFIGS['swin'](tmp_path / 'plain.pth', window_size=12))
    load_pretrained(network)
    network.init_weights()
    key = 'stages.0.blocks.0.attn.w_msa.relative_position_bias_table'
    assert_close(network.state_dict()[key], resize_biases(stored[key], 12))


@pytest.fixture
def said(monkeypatch):
    """What is logged."""
    lines = []
    monkeypatch.setattr(pretrained_module, 'print_log', lambda message, **options: lines.append(message))
    return lines


def test_one_line_says_what_could_not_be_compared(files, path, said):
    load_pretrained(Model(pretrained(path)))
    (line,) = said
    assert 'vit.pth does not say what network its weights are from' in line
    assert all(word in line for word in ('heads', 'windows', 'strides', 'norms', 'normalisation'))
    load_pretrained(MODELS.build(CONFIGS['vit'](files['vit', 'pth'])))
    assert len(said) == 1
    load_pretrained(MODELS.build(CONFIGS['vit'](files['vit', 'pth'], img_size=128)), resize=True)
    assert said[1].endswith('resized position embeddings to 8 x 8 patches')


class WithPreprocessor(BaseModule):
    def __init__(self, file, **preprocessor):
        super().__init__()
        self.data_preprocessor = ClsDataPreprocessor(**preprocessor)
        self.backbone = MODELS.build(CONFIGS['vit'](file))


RIGHT = dict(mean=[1.5, 2.5, 3.5], std=[4.0, 5.0, 6.0])


@pytest.mark.parametrize(
    ('preprocessor', 'message'),
    [
        (
            RIGHT | dict(mean=[0.0] * 3),
            r'data_preprocessor\.mean is \[0\.0, 0\.0, 0\.0\], in the file \[1\.5, 2\.5, 3\.5\]',
        ),
        (RIGHT | dict(std=[1.0] * 3), r'data_preprocessor\.std is \[1\.0, 1\.0, 1\.0\], in the file'),
        (RIGHT | dict(to_rgb=True), r'data_preprocessor: channels turned from BGR to RGB is True, in the file False'),
    ],
)
def test_other_normalisation_is_refused(files, preprocessor, message, said):
    load_pretrained(WithPreprocessor(files['vit', 'safetensors'], **RIGHT))
    assert not said
    with pytest.raises(CheckpointError, match=f'images are not normalised as in the pre-training: {message}'):
        load_pretrained(WithPreprocessor(files['vit', 'safetensors'], **preprocessor))
    load_pretrained(WithPreprocessor(files['vit', 'safetensors']))
    assert 'the pipeline has to' in said[0]


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_no_numbers_are_refused(weights, tmp_path, bad, dtype):
    weights = {key: value.to(dtype) for key, value in weights.items()}
    weights['layers.1.ln1.bias'] = torch.full((16,), bad).to(dtype)
    torch.save(weights, tmp_path / 'bad.pth')
    with pytest.raises(CheckpointError, match=r'bad\.pth: there is NaN or infinity in layers\.1\.ln1\.bias$'):
        load_pretrained(Model(pretrained(tmp_path / 'bad.pth')))


@pytest.mark.parametrize(
    ('raised', 'quoted'),
    [
        (NotImplementedError('the first line\nand the second'), 'NotImplementedError: the first line and the second'),
        (RuntimeError('out of memory'), 'RuntimeError: out of memory'),
        (AttributeError("module 'scipy' has no attribute 'x'"), "AttributeError: module 'scipy' has no attribute 'x'"),
        (AssertionError(), 'AssertionError: no reason given'),
        (KeyError('index'), "KeyError: 'index'"),
    ],
)
def test_any_other_error_of_a_module_is_quoted(weights, tmp_path, raised, quoted):
    class Picky(VisionTransformer):
        def _prepare_pos_embed(self, *args):
            raise raised

    arch = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
    torch.save(weights, tmp_path / 'vit.pth')
    with pytest.raises(CheckpointError, match=rf'vit\.pth: Picky cannot take the weights: {quoted}$') as error:
        load_weights(Picky(arch=arch, img_size=16, patch_size=4), tmp_path / 'vit.pth')
    assert error.value.__cause__ is raised


def test_a_supernet_of_other_heads_is_refused(tmp_path, elastic_vit):
    """Weights of a whole branch, which a checkpoint of the pre-training describes."""
    backbone = dict(
        type='ElasticVisionTransformer', img_size=64, layer_scale_init_value=0.5,
        arch=dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256), widths=[32, 64], depths=[4],
    )  # fmt: skip
    state = {f'teacher.backbone.{key}': value for key, value in elastic_vit().state_dict().items()}
    torch.save({'state_dict': state, 'poa': describe_supernet(dict(backbone=backbone))}, tmp_path / 'poa.pth')
    init_cfg = pretrained(tmp_path / 'poa.pth', prefix='teacher.backbone')
    load_pretrained(MODELS.build(dict(backbone, init_cfg=init_cfg, widths=[48, 64])))
    arch = dict(backbone['arch'], num_heads=2)
    with pytest.raises(
        CheckpointError, match=r"the given config is not that of the checkpoint: arch is .*'num_heads': 2"
    ):
        load_pretrained(MODELS.build(dict(backbone, arch=arch, init_cfg=init_cfg)))
