import json
import os
import struct

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from mmpretrain.datasets import FashionMNIST
from PIL import Image
from sklearn.datasets import load_digits

from poa_mm.datasets import Digits
from poa_mm.datasets.scenes import Scenes, _occlude, _Sprite, compose_scene, load_items, semantic_classes, write_scenes

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations as LoadObjects
from mmdet.evaluation import CocoMetric
from mmseg.datasets import ADE20KDataset
from mmseg.datasets.transforms import LoadAnnotations as LoadClasses

SETTINGS = dict(source='digits', size=(96, 128), objects=(4, 10), seed=3)
COUNTS = dict(train=12, val=4)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('scenes') / 'data'
    write_scenes(folder, **SETTINGS, **COUNTS, names='library')
    return folder


@pytest.fixture(scope='module')
def scenes():
    """What the folder must show."""
    return {split: Scenes(split=split, length=COUNTS[split], **SETTINGS) for split in COUNTS}


def coco(data, split, **options):
    return CocoDataset(
        data_root=str(data / 'coco'),
        ann_file=f'annotations/instances_{split}2017.json',
        data_prefix=dict(img=f'{split}2017/'),
        pipeline=[LoadImageFromFile(), LoadObjects(with_bbox=True, with_mask=True)],
        test_mode=True,  # filters nothing
        **options,
    )


def ade(data, split):
    return ADE20KDataset(
        data_root=str(data / 'ade' / 'ADEChallengeData2016'),
        data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}'),
        pipeline=[LoadClasses(reduce_zero_label=True)],
    )


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


# --- one scene -------------------------------------------------------------------------------
def rng(seed):
    return np.random.default_rng(seed)


@pytest.mark.parametrize('size', [(96, 128), (64, 40), (32, 32)])
def test_masks_are_disjoint_and_every_pixel_has_a_class(size):
    items, labels = load_items('digits', 'train')
    for seed in range(20):
        scene = compose_scene(rng(seed), items, labels, size, objects=(2, 6))
        assert scene.image.shape == (*size, 3) and scene.image.dtype == np.uint8
        assert scene.masks.shape == (len(scene.labels), *size) and scene.masks.dtype == bool
        assert scene.masks.any(axis=(1, 2)).all()
        assert scene.masks.sum(axis=0).max() == 1
        assert scene.semantic.dtype == np.uint8
        assert np.array_equal(scene.semantic < 10, scene.masks.any(axis=0))
        for mask, label in zip(scene.masks, scene.labels):
            assert (scene.semantic[mask] == label).all()
        assert scene.semantic.max() < len(semantic_classes('digits'))
        assert 1 <= len(scene.labels) <= 6


def test_number_of_objects():
    items, labels = load_items('digits', 'train')
    assert {len(compose_scene(rng(i), items, labels, (64, 64), (1, 1)).labels) for i in range(20)} == {1}
    assert len({len(compose_scene(rng(i), items, labels, (200, 200), (2, 4)).labels) for i in range(30)}) >= 3


def test_what_is_painted_is_what_the_masks_say():
    """Flat items stay of one colour inside their visible masks, whatever overlaps them."""
    items = np.full((1, 100, 100), 255, np.uint8)
    overlaps = 0
    for seed in range(20):
        scene = compose_scene(rng(seed), items, np.array([7]), (128, 128), objects=(6, 6))
        for mask in scene.masks:
            inside = cv2.erode(np.pad(mask, 1).astype(np.uint8), np.ones((5, 5)))[1:-1, 1:-1].astype(bool)
            if inside.sum() > 20:
                assert scene.image[inside].astype(float).std(axis=0).max() < 6, 'one tint and the noise'
            *_, width, height = cv2.boundingRect(mask.astype(np.uint8))
            overlaps += mask.sum() < width * height
    assert overlaps > 10


def test_all_kinds_scales_and_flips_occur():
    items = np.zeros((1, 20, 20), np.uint8)
    items[0, :, :10] = 255
    items[0, :5] = 255  # an L upside down, so that a flip shows
    drawn = [compose_scene(rng(i), items, np.array([0]), (100, 200), objects=(1, 1)) for i in range(60)]
    assert set(np.unique([scene.semantic for scene in drawn])) == {0, 10, 11, 12, 13}
    rows = [np.flatnonzero(scene.masks[0].any(axis=1)) for scene in drawn]
    heights = [row[-1] - row[0] + 1 for row in rows]
    assert min(heights) < 20 and max(heights) > 42, 'of the shorter side'
    assert min(heights) >= 12 and max(heights) <= 50
    lefts = [
        scene.masks[0][row[-1] - 1].argmax() - scene.masks[0][row[0] + 1].argmax() for scene, row in zip(drawn, rows)
    ]
    flipped = sum(left > 3 for left in lefts)
    assert 10 < flipped < 50


def test_scale_is_that_of_the_longer_side():
    items = np.full((1, 20, 10), 255, np.uint8)
    for seed in range(10):
        scene = compose_scene(rng(seed), items, np.array([0]), (200, 100), objects=(1, 1), scale=(0.6, 0.8))
        *_, width, height = cv2.boundingRect(scene.masks[0].astype(np.uint8))
        assert 60 - 3 <= height <= 80 and width < height, 'the padding around the item takes a pixel or two'


def test_holes_belong_to_the_item():
    items = np.full((1, 30, 30), 255, np.uint8)
    items[0, 10:20, 10:20] = 0
    mask = compose_scene(rng(0), items, np.array([0]), (128, 128), objects=(1, 1)).masks[0]
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    assert mask[y + 2 : y + height - 2, x + 2 : x + width - 2].all()


@pytest.mark.parametrize(('hidden', 'kept'), [(7, True), (8, False)])
def test_items_that_others_hide_are_left_out(hidden, kept):
    def sprite(left, label, width=10):
        return _Sprite(
            np.zeros((10, width, 3)), np.ones((10, width), bool), (slice(0, 10), slice(left, left + width)), label
        )

    sprites, masks = _occlude([sprite(0, 0), sprite(10 - hidden, 1), sprite(10, 2, 4)], (10, 40))
    assert [sprite.label for sprite in sprites] == ([0, 1, 2] if kept else [0, 2])
    # Columns that each shows: what is not there hides nothing.
    assert [mask.sum() / 10 for mask in masks] == ([10, 3, 1] if kept else [10, 4])


# --- many scenes -----------------------------------------------------------------------------
def test_a_scene_depends_on_seed_split_and_index_only():
    few, many = Scenes('digits', 'train', 3, (64, 64)), Scenes('digits', 'train', 9, (64, 64))
    for _ in range(2):  # again in another order
        assert all(np.array_equal(few[i].image, many[i].image) for i in (2, 0, 1))
    assert len(list(few)) == 3
    val = Scenes('digits', 'val', 3, (64, 64))
    others = [many[1], val[0], Scenes('digits', 'train', 3, (64, 64), seed=1)[0]]
    assert not any(np.array_equal(few[0].image, other.image) for other in others)
    corners = [[scene.image[:2, :2].tolist() for scene in scenes] for scenes in (few, val)]
    assert not any(corner in corners[0] for corner in corners[1]), 'backgrounds differ, too'


def test_parts_of_digits_are_disjoint():
    images = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    for split, part in (('train', 'train'), ('val', 'test')):
        indices = [item['sample_idx'] for item in Digits(part).load_data_list()]
        items, labels = load_items('digits', split)
        assert np.array_equal(items, images[indices])
        assert np.array_equal(labels, load_digits().target[indices])


def write_idx(folder, name, array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f'>{array.ndim}I', *array.shape)
    (folder / name).write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def fashion(tmp_path):
    """Files like Fashion-MNIST's, with 6 train items of grey level 200 and 5 test items of 100."""
    folder = tmp_path / 'fashion'
    folder.mkdir()
    for name, level, number in (('train', 200, 6), ('t10k', 100, 5)):
        write_idx(folder, f'{name}-images-idx3-ubyte', np.full((number, 28, 28), level))
        write_idx(folder, f'{name}-labels-idx1-ubyte', np.arange(number) + 3)
    return folder


def test_parts_of_fashion_mnist(fashion):
    for split, level, number in (('train', 200, 6), ('val', 100, 5)):
        items, labels = load_items('fashion_mnist', split, fashion)
        assert items.shape == (number, 28, 28) and (items == level).all()
        assert np.array_equal(labels, np.arange(number) + 3)
        assert set(Scenes('fashion_mnist', split, 1, (64, 64), data_root=fashion)[0].labels) <= set(labels)


def test_broken_and_missing_files_are_named(fashion):
    for damage in (lambda content: content[:100], lambda content: b'', lambda content: b'<html>'):
        images = fashion / 't10k-images-idx3-ubyte'
        images.write_bytes(damage(images.read_bytes()))
        with pytest.raises(ValueError, match='fashion does not hold readable idx files'):
            load_items('fashion_mnist', 'val', fashion)
    images.unlink()
    with pytest.raises(FileNotFoundError, match='fashion/t10k-images-idx3-ubyte'):
        load_items('fashion_mnist', 'val', fashion)


# --- files -----------------------------------------------------------------------------------
def check_coco(dataset, scenes):
    """mmdet gets the boxes, masks and labels that were composed."""
    assert len(dataset) == len(scenes)
    for item, scene in zip(dataset, scenes):
        assert np.array_equal(item['gt_bboxes_labels'], scene.labels)
        decoded = item['gt_masks'].to_ndarray().astype(bool)
        union = (decoded | scene.masks).sum(axis=(1, 2))
        assert ((decoded & scene.masks).sum(axis=(1, 2)) / union).min() > 0.98
        for box, mask in zip(item['gt_bboxes'].tensor.tolist(), scene.masks):
            rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
            assert box == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], 'tight'
        assert np.abs(item['img'][..., ::-1].astype(float) - scene.image).mean() < 12, 'the picture, but for JPEG'


@pytest.mark.parametrize('split', COUNTS)
def test_mmdet_reads_the_composed_objects(data, scenes, split):
    check_coco(coco(data, split), scenes[split])


def test_polygons_and_where_there_are_holes_run_lengths(tmp_path, fashion):
    settings = dict(size=(64, 80), objects=(8, 12), data_root=fashion)
    write_scenes(tmp_path / 'data', 'fashion_mnist', train=30, val=1, **settings)
    annotations = json.loads((tmp_path / 'data/coco/annotations/instances_train2017.json').read_text())['annotations']
    kinds = [type(annotation['segmentation']) for annotation in annotations]
    assert kinds.count(list) > kinds.count(dict) > 0
    names = dict(metainfo=dict(classes=FashionMNIST.METAINFO['classes']))
    check_coco(coco(tmp_path / 'data', 'train', **names), Scenes('fashion_mnist', 'train', 30, **settings))


def test_annotations(data):
    content = json.loads((data / 'coco/annotations/instances_train2017.json').read_text())
    annotations = content['annotations']
    assert [annotation['id'] for annotation in annotations] == list(range(1, len(annotations) + 1))
    assert {annotation['iscrowd'] for annotation in annotations} == {0}
    assert {(image['height'], image['width']) for image in content['images']} == {(96, 128)}


def test_areas_are_the_visible_pixels(data, scenes):
    annotations = json.loads((data / 'coco/annotations/instances_val2017.json').read_text())['annotations']
    assert [a['area'] for a in annotations] == [mask.sum() for scene in scenes['val'] for mask in scene.masks]


def test_ground_truth_scores_one_in_coco_metric(data, scenes):
    dataset = coco(data, 'val')
    metric = CocoMetric(ann_file=str(data / 'coco/annotations/instances_val2017.json'), metric=['bbox', 'segm'])
    metric.dataset_meta = dataset.metainfo
    for item in dataset:
        predicted = dict(
            bboxes=item['gt_bboxes'].tensor,
            labels=torch.from_numpy(item['gt_bboxes_labels']),
            scores=torch.ones(len(item['gt_bboxes'])),
            masks=torch.from_numpy(item['gt_masks'].to_ndarray()),
        )
        metric.process({}, [dict(img_id=item['img_id'], ori_shape=item['ori_shape'], pred_instances=predicted)])
    scores = metric.evaluate(size=len(dataset))
    assert scores['coco/bbox_mAP'] == pytest.approx(1, abs=0.02)
    assert scores['coco/segm_mAP'] == pytest.approx(1, abs=0.02)


def test_names(data, tmp_path):
    assert len(coco(data, 'train').cat_ids) == 80
    write_scenes(tmp_path / 'own', **SETTINGS, train=2, val=2, names='own')
    dataset = coco(tmp_path / 'own', 'train', metainfo=dict(classes=Digits.METAINFO['classes']))
    assert len(dataset.cat_ids) == 10
    assert [item['gt_bboxes_labels'].tolist() for item in dataset] == [
        item['gt_bboxes_labels'].tolist() for item in coco(data, 'train', indices=2)
    ]


@pytest.mark.parametrize(('split', 'folder'), [('train', 'training'), ('val', 'validation')])
def test_mmseg_reads_the_composed_classes(data, scenes, split, folder):
    dataset = ade(data, folder)
    assert len(dataset) == len(scenes[split])
    for item, scene in zip(dataset, scenes[split]):
        assert np.array_equal(item['gt_seg_map'], scene.semantic)
    photos = [item['img_path'] for item in coco(data, split)]
    for item, photo in zip(dataset, photos):
        assert os.path.samefile(item['img_path'], photo), 'written once'


def test_masks_have_a_palette(data):
    path = data / 'ade/ADEChallengeData2016/annotations/training/ADE_train_00000001.png'
    mask = Image.open(path)
    assert mask.mode == 'P'
    assert np.array(mask).min() >= 1, '0 is unlabelled'
    assert len(np.unique(np.array(mask.convert('RGB')).reshape(-1, 3), axis=0)) == len(np.unique(np.array(mask)))


def test_preview(data):
    assert Image.open(data / 'preview.png').size == (6 * (2 * 128 + 4), 3 * 2 * 96)


def test_same_arguments_same_bytes(tmp_path):
    options = SETTINGS | dict(val=2)
    for name, train, seed in (('a', 3, 3), ('again', 3, 3), ('longer', 5, 3), ('other', 3, 4)):
        write_scenes(tmp_path / name, **options | dict(train=train, seed=seed))
    a, again, longer, other = (contents(tmp_path / name) for name in ('a', 'again', 'longer', 'other'))
    assert a == again
    pictures = [path for path in a if path.suffix in ('.jpg', '.png') and path.name != 'preview.png']
    assert len(pictures) == (3 + 2) * 3
    assert all(longer[path] == a[path] for path in pictures), 'the first of more are the same'
    assert all(other[path] != a[path] for path in pictures)
    short, long = (json.loads(files[next(p for p in files if 'train2017.json' in p.name)]) for files in (a, longer))
    assert long['annotations'][: len(short['annotations'])] == short['annotations']


def test_without_hard_links_files_are_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError('not supported')

    write_scenes(tmp_path / 'linked', **SETTINGS, train=1, val=1)
    monkeypatch.setattr(os, 'link', refuse)
    write_scenes(tmp_path / 'copied', **SETTINGS, train=1, val=1)
    assert contents(tmp_path / 'linked') == contents(tmp_path / 'copied')


def test_progress_counts_scenes_and_parents_are_made(tmp_path):
    done = []
    write_scenes(tmp_path / 'new' / 'data', **SETTINGS | dict(size=64), train=2, val=1, progress=done.append)
    assert sum(done) == 3
    assert Image.open(tmp_path / 'new/data/coco/val2017/000000000001.jpg').size == (64, 64)


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (dict(source='mnist'), "source 'mnist' is not one of fashion_mnist, digits"),
        (dict(source='fashion_mnist', data_root='gone'), 'gone/train-images-idx3-ubyte'),
        (dict(names='coco'), "names 'coco' is not one of own, library"),
        (dict(size=31), r'\(31, 31\)'),
        (dict(size=(64, 64, 3)), r'\(64, 64, 3\)'),
        (dict(objects=(5, 4)), r'\(5, 4\)'),
        (dict(objects=(0, 4)), r'\(0, 4\)'),
        (dict(scale=(0.5, 0.2)), r'\(0.5, 0.2\)'),
        (dict(scale=(0.5, 1.0)), r'\(0.5, 1.0\)'),
        (dict(train=0), 'number of train scenes must be at least 1, not 0'),
        (dict(val=-1), 'number of val scenes must be at least 1, not -1'),
        (dict(seed=-1), 'seed -1'),
    ],
)
def test_errors_come_before_anything_is_written(tmp_path, wrong, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        write_scenes(tmp_path / 'new' / 'data', **SETTINGS | dict(train=1, val=1) | wrong)
    assert not list(tmp_path.iterdir())


def test_only_empty_folders_are_filled(tmp_path):
    out = tmp_path / 'data'
    out.mkdir()
    write_scenes(out, **SETTINGS, train=1, val=1)
    before = contents(out)
    with pytest.raises(FileExistsError, match='data exists and is not an empty folder'):
        write_scenes(out, **SETTINGS, train=2, val=1)
    (tmp_path / 'file').touch()
    with pytest.raises(FileExistsError, match='file exists and is not an empty folder'):
        write_scenes(tmp_path / 'file', **SETTINGS, train=1, val=1)
    assert contents(out) == before
    assert {path.name for path in tmp_path.iterdir()} == {'data', 'file'}


@pytest.mark.parametrize('error', [OSError('disk full'), KeyboardInterrupt()])
def test_failure_leaves_nothing(tmp_path, error):
    def fail(done):
        raise error

    with pytest.raises(type(error)):
        write_scenes(tmp_path / 'data', **SETTINGS, train=2, val=2, progress=fail)
    assert not list(tmp_path.iterdir())
