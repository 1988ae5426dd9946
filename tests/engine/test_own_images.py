import pytest
import torch
from mmengine.registry import MODELS
from PIL import Image

from poa_mm.elastic import Subnet
from poa_mm.engine.own_images import FAMILIES, own_config


@pytest.fixture
def images(tmp_path):
    (tmp_path / 'images').mkdir()
    for index in range(3):
        Image.new('RGB', (40, 50), (index, 80, 200)).save(tmp_path / 'images' / f'{index}.png')
    return tmp_path / 'images'


def crops(cfg):
    views = cfg.train_dataloader.dataset.pipeline[1].transforms
    return [view[0].scale for view in views]


SIZES = [
    ('vit', dict(widths=[128, 64], depths=[2, 3]), Subnet(128, 3)),
    ('vit', dict(depths=[2]), Subnet(384, 2)),
    ('swin', dict(widths=[32, 48], depths=[2, 3]), Subnet(48, 3)),
    ('swin', {}, Subnet(96, 6)),
    ('resnet', dict(widths=[32, 64], depths=[1, [1, 2], 1, 1]), Subnet(64, (1, 2, 1, 1))),
    ('resnet', {}, Subnet(128, (3, 4, 6, 3))),
]


@pytest.mark.parametrize(('family', 'sizes', 'largest'), SIZES)
def test_families_and_sizes(family, sizes, largest, images):
    cfg = own_config(family, images, image_size=64, batch_size=2, accumulate=1, epochs=40, **sizes)
    with torch.device('meta'):
        backbone = MODELS.build(dict(cfg.model.backbone))
    assert backbone.space.largest == largest
    assert cfg.train_dataloader.dataset.type == 'ImageFolder'
    assert cfg.train_dataloader.dataset.data_prefix == str(images)
    assert crops(cfg) == [64, 64, 32]
    grid = cfg.train_dataloader.dataset.pipeline[2].grid
    assert backbone.mask_grid((64, 64)) == (grid, grid)
    assert cfg.train_dataloader.batch_size == cfg.recipe.batch_size == 2
    assert cfg.optim_wrapper.get('accumulative_counts', 1) == 1
    scales = [step.get('scale', step.get('crop_size')) for step in cfg.knn.bank.dataset.pipeline[1:3]]
    assert scales == [64, 64]


def test_patch_sizes(images):
    """Crops are whole patches of every size, masks those of the native one."""
    cfg = own_config('vit', images, patch_sizes=(8, 16, 32))
    assert cfg.model.backbone.patch_sizes == [8, 16, 32] and crops(cfg) == [224, 224, 96]
    assert cfg.train_dataloader.dataset.pipeline[2].grid == 14
    cfg = own_config('vit', images, image_size=64, patch_size=4, patch_sizes=(4, 16, 64))
    assert crops(cfg) == [64, 64, 64] and cfg.train_dataloader.dataset.pipeline[2].grid == 16
    with torch.device('meta'):
        backbone = MODELS.build(dict(cfg.model.backbone))
    assert backbone.space.patch_sizes == (4, 16, 64)
    again = own_config('vit', images, image_size=96, patch_size=12, options={'model.backbone.patch_sizes': [12, 16]})
    assert again.model.backbone.patch_sizes == [12, 16]


def test_without_sizes_the_config_stays(images):
    cfg = own_config('vit', images)
    assert crops(cfg) == [224, 224, 96]
    assert cfg.model.backbone.arch == 'deit-small'
    assert cfg.work_dir == 'work_dirs/vits_folder'
    cfg = own_config('vit', images, 'elsewhere', patch_size=8, options={'model.backbone.drop_path_rate': 0.2})
    assert (cfg.work_dir, cfg.model.backbone.drop_path_rate) == ('elsewhere', 0.2)
    assert cfg.train_dataloader.dataset.pipeline[2].grid == 28
    assert crops(cfg) == [224, 224, 96]
    scales = [step.get('scale', step.get('crop_size')) for step in cfg.knn.query.dataset.pipeline[1:3]]
    assert scales == [256, 224]


@pytest.mark.parametrize(
    ('config', 'options', 'message'),
    [
        ('vit', dict(image_size=100), 'image_size 100 is not a multiple of 16'),
        ('swin', dict(image_size=80), 'not a multiple of 32'),
        ('swin', dict(patch_size=8), 'a choice of ViTs'),
        ('resnet', dict(patch_sizes=[8]), 'patch_sizes is a choice of ViTs, the backbone is ElasticResNet'),
        ('vit', dict(patch_sizes=[12, 16]), 'image_size 224 is not a multiple of 12 pixels'),
        ('vit', dict(epoch=3), 'epoch'),
        ('convnext', {}, 'convnext'),
    ],
)
def test_mistakes(config, options, message, images):
    with pytest.raises((ValueError, OSError), match=message):
        own_config(config, images, **options)


def test_no_images(tmp_path):
    with pytest.raises(FileNotFoundError):
        own_config('vit', tmp_path / 'nothing')


def test_every_family_is_tried():
    assert {family for family, *_ in SIZES} == set(FAMILIES)
