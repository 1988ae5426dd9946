import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from small_configs import shrink

from poa_mm.checkpoint import read_checkpoint
from poa_mm.datasets.inspection import inspect
from poa_mm.datasets.inspection.suggest import suggestions
from poa_mm.datasets.multispectral import write_multispectral
from poa_mm.datasets.sources import guess_source
from poa_mm.deploy.extract import extract_subnets
from poa_mm.engine.data_config import check_channels, use_data
from poa_mm.engine.launch import prepare
from poa_mm.evaluation import evaluate_knn, load_backbone

CONFIG = Path(__file__).parents[2] / 'configs' / 'poa' / 'vits_multispectral_folder.py'
BANDS = 13


@pytest.fixture(scope='module')
def cfg(tmp_path_factory):
    """The shipped config on toy images, with a network and crops that are small."""
    root = tmp_path_factory.mktemp('bands')
    write_multispectral(root / 'train', images=6, size=40)
    write_multispectral(root / 'val', images=3, size=36, seed=1)
    cfg = Config.fromfile(CONFIG)
    found = suggestions(inspect(guess_source(str(root / 'train')), processes=1))
    assert (found['in_channels'], found['value_range']) == (BANDS, (0, 4095))
    cfg.model.data_preprocessor.update(mean=found['mean'], std=found['std'])
    use_data(cfg, str(root / 'train'))
    shrink(cfg, root / 'work_dirs' / 'run')
    for name, part in (('bank', 'train'), ('query', 'val')):
        loader = cfg.knn[name]
        loader.update(batch_size=12, num_workers=0)
        loader.dataset.data_prefix = str(root / part)
        loader.dataset.pipeline[1].scale, loader.dataset.pipeline[2].crop_size = 36, 32
    cfg.knn.ks = [3]
    return cfg


@pytest.fixture(scope='module')
def checkpoint(cfg):
    """Of eight iterations.

    LayerScale begins so small that an untrained network has one feature for all images, but for rounding. So it is
    after two iterations, and the score is that of chance; after eight it is 0.97 to 1, whatever the seed.
    """
    init_default_scope('mmpretrain')
    cfg = copy.deepcopy(cfg)
    prepare(cfg, 'none')
    assert cfg.recipe.images == 24
    cfg.train_cfg.max_iters = 8
    cfg.optim_wrapper.accumulative_counts = 1
    cfg.param_scheduler = None
    Runner.from_cfg(cfg).train()
    return Path(cfg.work_dir) / 'iter_8.pth'


def test_pre_trained_extracted_and_scored(cfg, checkpoint, tmp_path):
    assert read_checkpoint(checkpoint)['poa']['data_preprocessor']['value_range'] == (0, 4095)
    (entry,) = extract_subnets(checkpoint, ['32x2'], tmp_path)
    assert entry['max_abs_diff'] < 1e-4
    extracted = Config.fromfile(tmp_path / 'poa_32x2.py')
    assert extracted.model.backbone.in_channels == BANDS
    assert extracted.test_dataloader.dataset.pipeline[0] == dict(
        type='LoadBands', in_channels=BANDS, value_range=(0, 4095)
    )
    whole = evaluate_knn(cfg, load_backbone(cfg.model.backbone, checkpoint), progress=False)
    assert set(whole) == {'32x2', '64x2'}
    backbone = load_backbone(extracted.model.backbone)
    cut = evaluate_knn(cfg, backbone, progress=False)
    assert cut['32x2'] == whole['32x2']
    assert min(score['accuracy'] for score in whole.values()) > 0.9  # spectra tell the four classes apart


def test_the_extracted_config_takes_an_image(cfg, checkpoint, tmp_path):
    from mmcv.transforms import Compose
    from mmengine.registry import TRANSFORMS

    extract_subnets(checkpoint, ['64x2'], tmp_path)
    extracted = Config.fromfile(tmp_path / 'poa_64x2.py')
    init_default_scope('mmpretrain')
    model = MODELS.build(extracted.model | dict(data_preprocessor=extracted.data_preprocessor))
    model.init_weights()
    model.eval()
    pipeline = Compose([TRANSFORMS.build(step) for step in extracted.test_dataloader.dataset.pipeline])
    packed = pipeline(dict(img_path=cfg.train_dataloader.dataset.data_prefix + '/water/0000.tif'))
    data = model.data_preprocessor(dict(inputs=packed['inputs'][None], data_samples=None))
    assert data['inputs'].shape == (1, BANDS, 32, 32)
    assert data['inputs'].abs().max() < 10
    assert model.extract_feat(data['inputs'])[0].shape == (1, 64)


def test_fine_tuning(cfg, checkpoint, tmp_path, monkeypatch):
    """The config that extraction writes, on the toy images: two iterations, and a validation."""
    extract_subnets(checkpoint, ['32x2'], tmp_path, libraries=['mmpretrain'])
    tuned = Config.fromfile(tmp_path / 'poa_32x2_mmpretrain.py')
    assert tuned.model.backbone.in_channels == BANDS
    root = Path(cfg.train_dataloader.dataset.data_prefix).parent
    for loader, part in ((tuned.train_dataloader, 'train'), (tuned.val_dataloader, 'val')):
        loader.update(batch_size=4, num_workers=0, persistent_workers=False)
        loader.dataset.data_prefix = str(root / part)
    tuned.val_dataloader.dataset.class_root = str(root / 'train')
    tuned.test_dataloader = tuned.test_evaluator = tuned.test_cfg = None
    tuned.data_preprocessor.num_classes = tuned.model.head.num_classes = 4
    tuned.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
    tuned.param_scheduler, tuned.work_dir, tuned.log_level = None, str(tmp_path / 'work'), 'ERROR'
    tuned.default_hooks.checkpoint = tuned.default_hooks.logger = None
    tuned.experiment_name = 'fine-tuning of bands'
    runner = Runner.from_cfg(tuned)
    runner.train()
    assert torch.isfinite(torch.cat([param.flatten() for param in runner.model.parameters()])).all()


@pytest.mark.parametrize('library', ['mmdet', 'mmseg'])
def test_libraries_of_colour_images_refuse(checkpoint, tmp_path, library):
    with pytest.raises(ValueError, match=rf'{library} read colour images of 3 channels.* for 13'):
        extract_subnets(checkpoint, ['32x2'], tmp_path / 'out', libraries=[library])
    assert not (tmp_path / 'out').exists()


# --- what must fit ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    'change, words',
    [
        (lambda cfg: cfg.model.backbone.update(in_channels=3), r'13 channels \(LoadBands\), .*in_channels is 3'),
        (lambda cfg: cfg.model.data_preprocessor.update(mean=[0] * 12), 'mean has 12 values, images have 13'),
        (
            lambda cfg: cfg.train_dataloader.dataset.pipeline[1]
            .transforms[2]
            .append(dict(type='FastRandomGrayscale', prob=0.2)),
            'FastRandomGrayscale changes the colours of three channels, images have 13',
        ),
        (
            lambda cfg: cfg.train_dataloader.dataset.pipeline[1].transforms[0][2].transforms[0].update(hue=0.1),
            'FastColorJitter',
        ),
    ],
)
def test_channels_that_do_not_fit_stop_the_run(change, words):
    cfg = Config.fromfile(CONFIG)
    check_channels(cfg)
    change(cfg)
    with pytest.raises(ValueError, match=words):
        check_channels(cfg)


def test_a_network_of_bands_on_colour_images():
    cfg = Config.fromfile(CONFIG.with_name('vits_folder.py'))
    check_channels(cfg)
    cfg.model.backbone.in_channels = 13
    with pytest.raises(ValueError, match=r'3 channels \(SafeLoadImageFromFile\), model\.backbone\.in_channels is 13'):
        check_channels(cfg)


def test_the_preprocessor_compares():
    build = dict(type='MultiBandDataPreprocessor', mean=[1.0] * 4, std=[2.0] * 4)
    preprocessor = MODELS.build(build)
    views = [torch.full((2, 4, 8, 8), 5, dtype=torch.uint8), torch.full((2, 4, 4, 4), 3.0)]
    found = preprocessor(dict(inputs=views, data_samples=[1]))
    assert [view.unique().tolist() for view in found['inputs']] == [[2.0], [1.0]]
    with pytest.raises(ValueError, match='images have 3 channels, mean of the data preprocessor 4'):
        preprocessor(dict(inputs=torch.zeros(2, 3, 8, 8), data_samples=None))
    for wrong, words in ((dict(std=[1.0]), 'std 1'), (dict(std=[0.0] * 4), 'above 0'), (dict(to_rgb=True), 'not 4')):
        with pytest.raises(ValueError, match=words):
            MODELS.build({**build, **wrong})
