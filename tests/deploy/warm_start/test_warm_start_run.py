"""What is resized, what lies beside the weights, and a run that starts from the checkpoint."""

import json
from functools import partial

import pytest
import torch
from mmengine.registry import MODELS
from mmpretrain.models import VisionTransformer
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from poa_mm.checkpoint import CheckpointError, load_teacher, read_checkpoint
from poa_mm.checkpoint.resizing import resize_embedding, resize_patches
from poa_mm.deploy.warm_start import references, warm_start
from poa_mm.deploy.warm_start.ordering import order_weights
from poa_mm.engine.resume import check_start

ARCH = dict(embed_dims=64, num_layers=3, num_heads=4, feedforward_channels=256)


@pytest.fixture
def vit(randomise):
    network = randomise(VisionTransformer(arch=ARCH, img_size=32, patch_size=8, layer_scale_init_value=0.5))
    network.eval()
    return network


def teacher_of(path):
    return {
        name.removeprefix('teacher.backbone.'): value
        for name, value in read_checkpoint(path)['state_dict'].items()
        if name.startswith('teacher.backbone.')
    }


def test_images_and_patches_of_another_size(vit, config_of, save, tmp_path):
    path = save(vit.state_dict())
    report = warm_start(config_of('vit', img_size=48, patch_size=12), path, tmp_path / 'patches.pth', heads=4)
    assert report.changes == ['patches of 8 x 8 pixels resampled to 12 x 12']
    state = teacher_of(tmp_path / 'patches.pth')
    assert torch.equal(state['pos_embed'], vit.pos_embed)
    projection = vit.patch_embed.projection.weight
    assert_close(state['patch_embed.projection.weight'], resize_patches(projection, (12, 12)))

    report = warm_start(config_of('vit', img_size=(48, 64)), path, tmp_path / 'images.pth', heads=4)
    assert report.changes == ['position embeddings of 4 x 4 patches resized to 6 x 8']
    state = teacher_of(tmp_path / 'images.pth')
    assert torch.equal(state['patch_embed.projection.weight'], projection)
    assert_close(state['pos_embed'], resize_embedding(vit.pos_embed, (4, 4), (6, 8)))
    # A supernet resizes its embeddings to whatever images come; mmpretrain's network does the same.
    images = torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        found = load_teacher(tmp_path / 'images.pth')[0](images)[0]
        assert_close(found, vit(images)[0], rtol=0, atol=1e-4)


def test_a_frozen_teacher_is_what_the_run_starts_from(vit, config_of, save, tmp_path):
    """The file does not hold it: it would be there twice."""
    config = config_of('vit')
    config.model.frozen_teacher = 'source'
    warm_start(config, save(vit.state_dict()), tmp_path / 'start.pth', heads=4)
    state = read_checkpoint(tmp_path / 'start.pth')['state_dict']
    assert not [name for name in state if name.startswith('frozen_teacher')]
    model = MODELS.build(config.model)
    model.load_state_dict(state)
    assert model.frozen_teacher.loaded
    assert_close(model.frozen_teacher.backbone.state_dict(), teacher_of(tmp_path / 'start.pth'), rtol=0, atol=0)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision(dtype, vit, config_of, save, tmp_path):
    vit.to(dtype)
    config = config_of('vit', img_size=36, patch_size=12, layer_scale_init_value=0)
    report = warm_start(config, save(vit.state_dict()), tmp_path / 'start.pth', heads=4)
    assert report.max_abs_diff <= 1e-4
    state = teacher_of(tmp_path / 'start.pth')
    assert {value.dtype for value in state.values()} == {torch.float32}
    assert torch.equal(state['cls_token'], vit.cls_token.float())


def test_larger_patches_see_the_same(vit, config_of, save, tmp_path):
    """Images twice as large give the features of the original ones, if patches are, too."""
    warm_start(config_of('vit', img_size=64, patch_size=16), save(vit.state_dict()), tmp_path / 'start.pth', heads=4)
    images = torch.randn(2, 3, 4, 4, 8, 8)  # of each patch its own, as resizing would mix neighbours
    larger = torch.nn.functional.interpolate(
        images.flatten(0, 3)[:, None], scale_factor=2, mode='bilinear', align_corners=False
    )
    larger = larger.view(2, 3, 4, 4, 16, 16)
    images, larger = (value.transpose(3, 4).flatten(4).flatten(2, 3) for value in (images, larger))
    with torch.no_grad():
        found = load_teacher(tmp_path / 'start.pth')[0](larger)[0]
        assert_close(found, vit(images)[0], rtol=0, atol=1e-3)


def test_a_folder_of_transformers(config_of, randomise, tmp_path):
    """Heads, eps and normalisation are said beside the weights."""
    transformers = pytest.importorskip('transformers')
    sizes = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8)
    network = randomise(transformers.Dinov2Model(transformers.Dinov2Config(**sizes, layer_norm_eps=1e-5)))
    network.save_pretrained(tmp_path / 'hub')
    prepared = dict(image_mean=[1.5 / 255, 2.5 / 255, 3.5 / 255], image_std=[4 / 255, 5 / 255, 6 / 255])
    (tmp_path / 'hub' / 'preprocessor_config.json').write_text(json.dumps(prepared))
    config = config_of('vit', norm_cfg=dict(type='LN', eps=1e-5))
    with pytest.raises(
        ValueError, match=r'to_rgb True, in the config by mean \[1.5, 2.5, 3.5\].* to_rgb False; set model'
    ):
        warm_start(config, tmp_path / 'hub', tmp_path / 'start.pth')
    config.model.data_preprocessor = dict(config.model.data_preprocessor, to_rgb=True)
    report = warm_start(config, tmp_path / 'hub', tmp_path / 'start.pth')
    assert (report.assumed, report.normalisation, report.library.split()[0]) == ([], None, 'transformers')
    with pytest.raises(ValueError, match=r'config\.json: it has 4 heads, not 8 \(--heads\)'):
        warm_start(config, tmp_path / 'hub', tmp_path / 'start.pth', heads=8)
    other = config_of('vit')
    other.model.data_preprocessor = dict(config.model.data_preprocessor)
    with pytest.raises(CheckpointError, match='eps is 1e-05, in the config 1e-06'):
        warm_start(other, tmp_path / 'hub', tmp_path / 'start.pth')

    config.model.data_preprocessor.std = [4.0, 5.0, 7.0]
    with pytest.raises(
        ValueError, match=r'std \[4.0, 5.0, 6.0\], to_rgb True, in the config by .*std \[4.0, 5.0, 7.0\]'
    ):
        warm_start(config, tmp_path / 'hub', tmp_path / 'other.pth')
    settings = json.loads((tmp_path / 'hub' / 'config.json').read_text())
    (tmp_path / 'hub' / 'config.json').write_text(json.dumps({**settings, 'hidden_act': 'gelu_new'}))
    with pytest.raises(CheckpointError, match="hidden_act is 'gelu_new', elastic backbones have gelu"):
        warm_start(config, tmp_path / 'hub', tmp_path / 'other.pth')
    (tmp_path / 'hub' / 'config.json').write_text('{')
    with pytest.raises(CheckpointError, match=r'config\.json: expected the settings of a network as JSON'):
        warm_start(config, tmp_path / 'hub', tmp_path / 'other.pth')
    assert not (tmp_path / 'other.pth').exists()


def test_a_folder_of_timm(config_of, randomise, tmp_path, monkeypatch):
    """The comparison is with the architecture that the folder names."""
    timm = pytest.importorskip('timm')
    options = dict(img_size=32, patch_size=8, embed_dim=64, depth=3, num_heads=4)
    network = randomise(timm.create_model('vit_tiny_patch16_224', **options, num_classes=0))
    (tmp_path / 'hub').mkdir()
    save_file(network.state_dict(), tmp_path / 'hub' / 'model.safetensors')
    settings = dict(
        architecture='vit_tiny_patch16_224',
        model_args={key: value for key, value in options.items() if key != 'img_size'},
        pretrained_cfg=dict(mean=[0.5] * 3, std=[0.5] * 3),
    )
    (tmp_path / 'hub' / 'config.json').write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r'mean \[127.5, 127.5, 127.5\], .* in the config by mean \[1.5, 2.5, 3.5\]'):
        warm_start(config_of('vit'), tmp_path / 'hub', tmp_path / 'start.pth')
    config = config_of('vit')
    config.model.data_preprocessor = dict(mean=[127.5], std=[127.5], to_rgb=True)
    report = warm_start(config, tmp_path / 'hub', tmp_path / 'start.pth')
    assert report.normalisation is None
    assert not any('heads' in text for text in report.assumed)
    # The architecture decides: the same names with another eps, or another activation, which only the comparison sees.
    config.model.backbone.norm_cfg = dict(type='LN', eps=1e-5)
    with pytest.raises(CheckpointError, match=r'eps is 1e-06, in the config 1e-05'):
        warm_start(config, tmp_path / 'hub', tmp_path / 'other.pth')
    config.model.backbone.pop('norm_cfg')
    norm = partial(nn.LayerNorm, eps=1e-5)
    monkeypatch.setattr('timm.create_model', partial(timm.create_model, norm_layer=norm))
    with pytest.raises(CheckpointError, match=r'network of timm .* have eps \[1e-05\], those of the config \[1e-06\]'):
        warm_start(config, tmp_path / 'hub', tmp_path / 'other.pth')
    monkeypatch.undo()
    (tmp_path / 'hub' / 'config.json').write_text(
        json.dumps({**settings, 'model_args': {**settings['model_args'], 'act_layer': 'gelu_tanh'}})
    )
    with pytest.raises(CheckpointError, match=r'does not compute what the network of timm .* does: features differ by'):
        warm_start(config, tmp_path / 'hub', tmp_path / 'other.pth')
    assert not (tmp_path / 'other.pth').exists()


def test_without_the_library_mmpretrain_is_compared_with(config_of, randomise, save, tmp_path, monkeypatch):
    timm = pytest.importorskip('timm.models.vision_transformer')
    network = randomise(timm.VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=3, num_heads=4))
    monkeypatch.setattr(references, 'find_spec', lambda name: None)
    report = warm_start(config_of('vit'), save(network.state_dict()), tmp_path / 'start.pth', heads=4)
    assert report.library.split()[0] == 'mmpretrain'


def test_a_difference_is_an_error_and_nothing_is_written(vit, config_of, save, tmp_path, monkeypatch):
    original = references.compute_reference

    def wrong(source):
        found = original(source)
        return found._replace(features=found.features._replace(cls=found.features.cls + 2e-4))

    monkeypatch.setattr('poa_mm.deploy.warm_start.run.compute_reference', wrong)
    with pytest.raises(CheckpointError, match=r'features differ by 0\.0002, more than 0\.0001'):
        warm_start(config_of('vit'), save(vit.state_dict()), tmp_path / 'new' / 'start.pth', heads=4)
    assert not (tmp_path / 'new').exists()


def test_files_that_are_no_weights(config_of, save, tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, ('raise SystemExit("executed")',))

    for content, message in (
        ({'model': Evil()}, 'was not run'),
        ({'epoch': 3}, 'expected tensors by name, found only epoch'),
        ({'optimizer': {'state': {}}}, 'expected tensors by name'),
        ([torch.zeros(1)], 'found list'),
    ):
        with pytest.raises(CheckpointError, match=message):
            warm_start(config_of('vit'), save(content), tmp_path / 'start.pth', heads=4)
    for path in ('missing.pth', '.'):
        with pytest.raises(CheckpointError):
            warm_start(config_of('vit'), tmp_path / path, tmp_path / 'start.pth', heads=4)
    path = save(nn.Linear(2, 2).state_dict())
    for options, message in (
        (dict(images='x'), 'images are for the order taylor'),
        (dict(images='x', order='magnitude'), 'not for the order magnitude'),
        (dict(subnets=['32x2']), 'subnets are named for scores'),
        (dict(order='size'), "order 'size' is not one of"),
    ):
        with pytest.raises(ValueError, match=message):
            warm_start(config_of('vit'), path, tmp_path / 'start.pth', **options)
    with pytest.raises(IsADirectoryError):
        warm_start(config_of('vit'), path, tmp_path)
    with pytest.raises(ValueError, match='is the file of the weights, which would be lost'):
        warm_start(config_of('vit'), path, path)
    assert read_checkpoint(path)
    assert not (tmp_path / 'start.pth').exists()


@pytest.mark.parametrize('order', ['magnitude', 'none'])
@torch.no_grad()
def test_load_from_takes_it(order, vit, config_of, save, tmp_path):
    config = config_of('vit')
    warm_start(config, save(vit.state_dict()), tmp_path / 'start.pth', heads=4, order=order)
    content = read_checkpoint(tmp_path / 'start.pth')
    model = MODELS.build(dict(config.model))
    check_start(content, model, 'start.pth')
    model.load_state_dict(content['state_dict'])  # strict
    assert content['meta']['order'] == order
    assert (content['meta']['epoch'], content['meta']['iter']) == (0, 0)
    features = content['meta']['feature_order']
    images = torch.randn(2, 3, 32, 32)
    model.eval()
    found, expected = model.extract_feat(images)[0], vit(images)[0]
    if order == 'none':
        assert features is None
    else:
        expected = expected[:, features]
    assert_close(found, expected, rtol=0, atol=1e-4)
    assert torch.equal(order_weights(model.backbone, 'none').weights['pos_embed'], model.backbone.pos_embed)
