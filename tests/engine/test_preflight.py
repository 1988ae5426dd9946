from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope

from poa_mm.engine.preflight import check_data

CONFIGS = Path(__file__).parents[2] / 'configs'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A COCO folder with pictures for training and validation, which the working directory is."""
    for name in ('data/coco/annotations', 'data/coco/train2017', 'data/coco/val2017'):
        (tmp_path / name).mkdir(parents=True)
    for part in ('train', 'val'):
        (tmp_path / f'data/coco/annotations/instances_{part}2017.json').write_text('{}')
    monkeypatch.chdir(tmp_path)
    return tmp_path / 'data' / 'coco'


@pytest.fixture
def cfg():
    def dataset(part):
        return dict(
            type='CocoDataset',
            data_root='data/coco/',
            ann_file=f'annotations/instances_{part}2017.json',
            data_prefix=dict(img=f'{part}2017/'),
        )

    ann_file = 'data/coco/annotations/instances_{}2017.json'
    return Config(
        dict(
            default_scope='mmdet',
            train_dataloader=dict(dataset=dict(type='RepeatDataset', times=2, dataset=dataset('train'))),
            val_dataloader=dict(dataset=dataset('val')),
            test_dataloader=dict(dataset=dict(type='ConcatDataset', datasets=[dataset('val'), dataset('test')])),
            val_evaluator=dict(type='CocoMetric', ann_file=ann_file.format('val')),
            test_evaluator=[dict(type='DumpDetResults'), dict(type='CocoMetric', ann_file=ann_file.format('test'))],
        )
    )


def missing(cfg, *parts):
    """The keys that the error lists."""
    with pytest.raises(FileNotFoundError) as error:
        check_data(cfg, parts or ('train', 'val', 'test'))
    listed = str(error.value).removeprefix('the config names data that is not there: ').split('. Put or link')[0]
    return dict(item.split(' = ') for item in listed.split('; '))


def test_nothing_is_missing(cfg, folder):
    check_data(cfg, ('train', 'val'))


def test_only_what_the_run_uses_counts(cfg, folder):
    assert set(missing(cfg)) == set(missing(cfg, 'test'))


def test_all_that_is_missing_is_named_at_once(cfg, folder):
    assert missing(cfg) == {
        'test_dataloader.dataset.datasets.1.ann_file': (
            f'data/coco/annotations/instances_test2017.json ({folder}/annotations/instances_test2017.json)'
        ),
        'test_dataloader.dataset.datasets.1.data_prefix.img': f'data/coco/test2017/ ({folder}/test2017)',
        'test_evaluator.1.ann_file': (
            f'data/coco/annotations/instances_test2017.json ({folder}/annotations/instances_test2017.json)'
        ),
    }


def test_a_missing_root_stands_for_what_is_below(cfg, folder):
    cfg.train_dataloader.dataset.dataset.data_root = 'wrong'
    with pytest.raises(FileNotFoundError, match=r'--cfg-options train_dataloader.dataset.dataset.data_root=PATH$'):
        check_data(cfg, ['train'])
    assert list(missing(cfg, 'train')) == ['train_dataloader.dataset.dataset.data_root']


def test_the_named_options_help(cfg, folder):
    """What the error tells to set is what the check reads."""
    keys = missing(cfg, 'test')
    cfg.merge_from_dict({key: str(folder) for key in keys})
    check_data(cfg)


def test_absolute_paths_need_no_root(cfg, folder):
    dataset = cfg.val_dataloader.dataset
    dataset.update(data_root='wrong', ann_file=str(folder / dataset.ann_file), data_prefix=str(folder / 'val2017'))
    check_data(cfg, ['val'])
    dataset.data_prefix = str(folder / 'gone')
    assert list(missing(cfg, 'val')) == ['val_dataloader.dataset.data_prefix']


def test_root_alone(cfg, folder):
    cfg.val_dataloader.dataset = dict(type='BaseDetDataset', data_root='data/coco', data_prefix=dict(img=''))
    check_data(cfg, ['val'])
    cfg.val_dataloader.dataset.data_root = 'data/none'
    assert list(missing(cfg, 'val')) == ['val_dataloader.dataset.data_root']


@pytest.mark.parametrize('root', ['s3://bucket/coco', 'https://host/coco'])
def test_urls_are_skipped(cfg, folder, root):
    cfg.val_dataloader.dataset.data_root = root
    check_data(cfg, ['val'])


def test_other_storage_is_skipped(cfg, folder):
    cfg.val_dataloader.dataset.update(data_root='bucket', backend_args=dict(backend='petrel'))
    check_data(cfg, ['val'])
    cfg.val_dataloader.dataset.backend_args = dict(backend='local')
    assert missing(cfg, 'val')


@pytest.mark.parametrize('kind', ['FashionMNIST', 'CIFAR10'])
def test_downloading_datasets(kind):
    cfg = Config(dict(default_scope='mmpretrain', train_dataloader=dict(dataset=dict(type=kind, data_root='gone'))))
    check_data(cfg)
    cfg.train_dataloader.dataset.download = False
    assert list(missing(cfg)) == ['train_dataloader.dataset.data_root']


def test_datasets_without_files():
    check_data(Config.fromfile(CONFIGS / 'poa' / 'vitt_digits.py'))
    check_data(Config(dict()))
    check_data(Config(dict(train_dataloader=None, val_evaluator=None)))


def test_imagenet_of_a_pretraining_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = Config.fromfile(CONFIGS / 'poa' / 'vitl_in1k.py')
    assert list(missing(cfg)) == ['train_dataloader.dataset.data_prefix']
    (tmp_path / 'data' / 'imagenet' / 'train').mkdir(parents=True)
    check_data(cfg)


def test_scope_is_left_as_it_was(cfg, folder):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        check_data(cfg, ['train'])
        assert DefaultScope.get_current_instance().scope_name == 'mmpretrain'


def test_unknown_part(cfg):
    with pytest.raises(ValueError, match="'trial' is not one of train, val, test"):
        check_data(cfg, ['trial'])
