"""Extracted networks through the functions that users of mmpretrain, mmdet and mmseg know, as in docs/subnets.md."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmpretrain import FeatureExtractor, ImageClassificationInferencer, get_model
from torch.testing import assert_close

from poa_mm.checkpoint import CheckpointError, load_teacher, read_checkpoint
from poa_mm.checkpoint.resizing import resize_biases
from poa_mm.deploy.extract import LIBRARIES, extract_subnets

SUBNETS = dict(vit='48x4', swin='24x3', resnet='8x3-4-6-3', plain='12x3-2-1-3')
IMAGE = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def folders(supernet_file, tmp_path_factory):
    """Extracted subnets by family."""
    found = {}
    for family, subnet in SUBNETS.items():
        found[family] = tmp_path_factory.mktemp(family)
        source = supernet_file('resnet' if family == 'plain' else family)
        extract_subnets(source, [subnet], found[family], verify=False, libraries=LIBRARIES if family == 'vit' else ())
    return found


def files(folders, family):
    path = folders[family] / f'poa_{SUBNETS[family]}'
    return str(path.with_suffix('.py')), str(path.with_suffix('.safetensors'))


@pytest.fixture
def has_weights(folders):
    def check(model, family):
        expected = read_checkpoint(files(folders, family)[1])['state_dict']
        assert_close(dict(model.backbone.state_dict()), expected, rtol=0, atol=0)

    return check


@pytest.fixture(params=['mmpretrain', 'mmdet', 'mmseg', None])
def scope(request):
    """The library that was used before."""
    if request.param is None:
        yield
        return
    with DefaultScope.overwrite_default_scope(request.param):
        yield


@pytest.mark.parametrize('family', SUBNETS)
def test_get_model(folders, has_weights, family):
    config, weights = files(folders, family)
    for pretrained in (True, weights):
        model = get_model(config, pretrained=pretrained)
        has_weights(model, family)
        assert not model.training
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


@pytest.mark.parametrize('family', SUBNETS)
def test_feature_extractor_gives_the_features_of_the_supernet(folders, supernet_file, has_weights, family):
    config, _ = files(folders, family)
    extractor = FeatureExtractor(config, pretrained=True)
    has_weights(extractor.model, family)
    square = IMAGE[:64, :64]  # of the size of the pre-training: nothing is cut or resized
    (features,) = extractor(square)[0]
    supernet, _ = load_teacher(supernet_file('resnet' if family == 'plain' else family))
    normalised = (torch.from_numpy(square.copy()).permute(2, 0, 1) - torch.tensor([1.5, 2.5, 3.5])[:, None, None]) / (
        torch.tensor([4.0, 5.0, 6.0])[:, None, None]
    )
    with torch.no_grad():
        expected = supernet.extract_features(normalised[None], supernet.space.parse(SUBNETS[family])).cls[0]
    assert_close(features, expected, rtol=1e-4, atol=1e-4)


def test_inferencers_whatever_library_was_used_before(folders, has_weights, scope):
    config, weights = files(folders, 'vit')
    inferencer = ImageClassificationInferencer(config, pretrained=weights)
    has_weights(inferencer.model, 'vit')
    (result,) = inferencer(IMAGE)
    assert len(result['pred_scores']) == 1000
    assert 'pred_class' not in result  # the classifier knows none
    (features,) = FeatureExtractor(config)(IMAGE)
    assert features[0].shape == (48,)


def test_files_of_another_subnet_are_refused(folders, supernet_file, tmp_path):
    extract_subnets(supernet_file('vit'), ['32x4', '48x3'], tmp_path, verify=False)
    config, _ = files(folders, 'vit')
    for name, message in (
        ('32x4', r'cls_token is \(1, 1, 32\), expected \(1, 1, 48\)'),
        ('48x3', r'missing layers\.3\.'),
    ):
        with pytest.raises(CheckpointError, match=message):
            get_model(config, pretrained=str(tmp_path / f'poa_{name}.safetensors'))


def test_a_swin_takes_weights_of_another_window(folders):
    config, weights = files(folders, 'swin')
    model = get_model(config, pretrained=True, backbone=dict(window_size=7))
    key = 'stages.2.blocks.0.attn.w_msa.relative_position_bias_table'
    stored = read_checkpoint(weights)['state_dict'][key]
    assert_close(model.backbone.state_dict()[key], resize_biases(stored, 7))


def test_weights_that_are_no_numbers_are_refused(folders, tmp_path):
    from safetensors.torch import save_file

    config, weights = files(folders, 'vit')
    state = read_checkpoint(weights)['state_dict']
    save_file(state | {'ln1.bias': torch.full((48,), float('nan'))}, tmp_path / 'nan.safetensors')
    with pytest.raises(CheckpointError, match=r'NaN or infinity in ln1\.bias'):
        get_model(config, pretrained=str(tmp_path / 'nan.safetensors'))


@pytest.mark.parametrize(
    ('in_channels', 'img_size', 'shape'), [(1, 64, (1, 64, 64)), (3, (32, 64), (3, 32, 64)), (3, 112, (3, 112, 112))]
)
def test_images_are_brought_to_the_size_and_channels_of_the_pre_training(
    supernets, tmp_path, monkeypatch, in_channels, img_size, shape
):
    from poa_mm.checkpoint import describe_supernet

    backbone = supernets['vit'] | dict(in_channels=in_channels, img_size=img_size)
    state = {f'teacher.backbone.{key}': value for key, value in MODELS.build(backbone).state_dict().items()}
    preprocessor = (
        dict(mean=[10.0], std=[20.0]) if in_channels == 1 else dict(mean=[1.0, 2.0, 3.0], std=[4.0] * 3, to_rgb=True)
    )
    description = describe_supernet(dict(backbone=backbone, data_preprocessor=preprocessor))
    torch.save({'state_dict': state, 'poa': description}, tmp_path / 'poa.pth')
    extract_subnets(tmp_path / 'poa.pth', ['32x2'], tmp_path / 'out', verify=False)
    extractor = FeatureExtractor(str(tmp_path / 'out' / 'poa_32x2.py'))
    seen = []
    monkeypatch.setattr(extractor.model.backbone, 'forward', lambda x: seen.append(x) or (x.mean(dim=(2, 3)),))
    grey = np.full((200, 300, 3), 30, dtype=np.uint8)
    extractor(grey)
    assert seen[0].shape[1:] == shape
    expected = torch.tensor([1.0]) if in_channels == 1 else (30 - torch.tensor([1.0, 2.0, 3.0])) / 4
    assert_close(seen[0].mean(dim=(0, 2, 3)), expected, rtol=0, atol=0.06)


def test_the_pth_format_by_mmpretrain_alone(supernet_file, tmp_path, has_weights):
    """What docs say of it: its config needs no poa_mm, so that the weights come from ``init_cfg``."""
    extract_subnets(supernet_file('vit'), ['48x4'], tmp_path, 'pth', verify=False)
    model = get_model(str(tmp_path / 'poa_48x4.py'))
    assert type(model).__module__ == 'mmpretrain.models.classifiers.image'
    model.init_weights()
    has_weights(model, 'vit')
    (features,) = FeatureExtractor(model)(IMAGE)
    assert features[0].shape == (48,)


# --- fine-tuned networks -----------------------------------------------------------------------
@pytest.fixture
def fine_tuned(folders, tmp_path, randomise):
    """Maker of the config of a fine-tuning, for small images, with a checkpoint as training leaves it."""

    def make(library):
        cfg = Config.fromfile(folders['vit'] / f'poa_48x4_{library}.py')
        for step in cfg.test_dataloader.dataset.pipeline:
            if 'scale' in step:
                step.scale = (64, 64) if library != 'mmpretrain' else 64
        if library == 'mmdet':
            for head in cfg.model.roi_head.bbox_head:
                head.fc_out_channels = 8
        model = dict(cfg.model)
        model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
        with DefaultScope.overwrite_default_scope(library):
            state = randomise(MODELS.build(model)).state_dict()
        meta = {'dataset_meta': {'classes': ('cat', 'dog'), 'palette': [(0, 0, 0), (255, 0, 0)]}}
        torch.save({'meta': meta, 'state_dict': state}, tmp_path / 'iter_9.pth')
        return cfg, str(tmp_path / 'iter_9.pth'), dict(state)

    return make


@pytest.fixture
def default_scope():
    """The default scope, which the libraries change, put back."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        yield


def same(model, state):
    assert_close(dict(model.state_dict()), state, rtol=0, atol=0)
    mean = model.data_preprocessor.mean.flatten()
    assert mean.tolist() == [1.5, 2.5, 3.5]


def test_mmpretrain_takes_a_fine_tuned_classifier(fine_tuned, folders, has_weights, default_scope):
    cfg, checkpoint, state = fine_tuned('mmpretrain')
    same(get_model(cfg, pretrained=checkpoint), state)
    inferencer = ImageClassificationInferencer(cfg, pretrained=checkpoint)
    same(inferencer.model, state)
    config = str(folders['vit'] / 'poa_48x4_mmpretrain.py')
    has_weights(get_model(config, pretrained=files(folders, 'vit')[1]), 'vit')  # what the fine-tuning starts from


@pytest.mark.slow
def test_mmdet_takes_a_fine_tuned_detector(fine_tuned, default_scope):
    from mmdet.apis import DetInferencer, inference_detector, init_detector

    cfg, checkpoint, state = fine_tuned('mmdet')
    model = init_detector(cfg, checkpoint, device='cpu')
    same(model, state)
    assert 'bboxes' in inference_detector(model, IMAGE).pred_instances
    cfg, checkpoint, state = fine_tuned('mmdet')  # mmdet has changed the config to read arrays
    inferencer = DetInferencer(cfg, checkpoint, device='cpu', show_progress=False)
    same(inferencer.model, state)
    assert set(inferencer(IMAGE, no_save_vis=True)['predictions'][0]) >= {'bboxes', 'labels', 'scores'}


@pytest.mark.slow
def test_mmseg_takes_a_fine_tuned_segmentor(fine_tuned, default_scope):
    from mmseg.apis import MMSegInferencer, inference_model, init_model

    cfg, checkpoint, state = fine_tuned('mmseg')
    model = init_model(cfg, checkpoint, device='cpu')
    same(model, state)
    assert inference_model(model, IMAGE).pred_sem_seg.shape == (70, 90)
    inferencer = MMSegInferencer(cfg, checkpoint, device='cpu')
    same(inferencer.model, state)
    assert inferencer(IMAGE)['predictions'].shape == (70, 90)
