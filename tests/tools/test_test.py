import os
import pickle
import runpy
import sys
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from poa_mm.datasets.scenes import write_scenes

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

TOOLS = Path(__file__).parents[2] / 'tools'
SHARED = """
custom_imports = dict(imports=['poa_mm'])
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05), constructor='LayerDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.9, norm_decay_mult=0.0))
custom_hooks = [dict(type='StrictPretrainedHook')]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=1)
test_cfg = dict()
log_processor = dict(by_epoch=False)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1))
log_level = 'ERROR'

def backbone(**options):
    return dict(
        type='mmpretrain.VisionTransformer', img_size=16, patch_size=8, **options,
        arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32))

def loader(pipeline, **dataset):
    return dict(batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=dict(**dataset, pipeline=pipeline))
"""
CONFIGS = dict(
    mmdet="""
default_scope = 'mmdet'
model = dict(
    type='RetinaNet',
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[127.0] * 3, std=[60.0] * 3, pad_size_divisor=32),
    backbone=backbone(out_type='featmap'),
    neck=dict(type='FPN', in_channels=[16], out_channels=16, num_outs=1),
    bbox_head=dict(
        type='RetinaHead', num_classes=80, in_channels=16, feat_channels=16, stacked_convs=1,
        anchor_generator=dict(type='AnchorGenerator', scales=[4], ratios=[1.0], strides=[8]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder')),
    train_cfg=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, ignore_iof_thr=-1),
                   sampler=dict(type='PseudoSampler'), allowed_border=-1, pos_weight=-1),
    test_cfg=dict(nms_pre=50, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=5))
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
data = dict(type='CocoDataset', data_root='data/coco')
train_dataloader = loader([*load, dict(type='PackDetInputs')], **data,
    ann_file='annotations/instances_train2017.json', data_prefix=dict(img='train2017'))
meta = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
test_dataloader = loader(
    [load[0], dict(type='Resize', scale=(128, 96)), load[1], dict(type='PackDetInputs', meta_keys=meta)], **data,
    ann_file='annotations/instances_val2017.json', data_prefix=dict(img='val2017'), test_mode=True)
test_evaluator = dict(type='CocoMetric', ann_file='data/coco/annotations/instances_val2017.json')
""",
    mmseg="""
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[127.0] * 3, std=[60.0] * 3, size=(96, 128)),
    backbone=backbone(out_type='featmap'),
    decode_head=dict(type='FCNHead', in_channels=16, channels=16, num_convs=0, concat_input=False, num_classes=150,
                     norm_cfg=dict(type='SyncBN')),
    test_cfg=dict(mode='whole'))
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True),
        dict(type='PackSegInputs')]
data = dict(type='ADE20KDataset', data_root='data/ade/ADEChallengeData2016')
train_dataloader = loader(
    load, **data, data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'))
test_dataloader = loader(
    load, **data, data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'))
test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
""",
    mmpretrain="""
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier', data_preprocessor=dict(mean=[0.0] * 3, std=[255.0] * 3), backbone=backbone(),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=16))
pipeline = [dict(type='Resize', scale=(16, 16)), dict(type='PackInputs')]
train_dataloader = loader(pipeline, type='Digits', indices=4)
test_dataloader = loader(pipeline, type='Digits', split='test', indices=4)
test_evaluator = dict(type='Accuracy')
""",
)
METRICS = dict(mmdet='coco/bbox_mAP', mmseg='mIoU', mmpretrain='accuracy/top1')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Configs of all three libraries and four scenes to test them on."""
    folder = tmp_path_factory.mktemp('test')
    write_scenes(folder / 'data', source='digits', train=2, val=4, size=(96, 128), names='library')
    for library, text in CONFIGS.items():
        (folder / f'{library}.py').write_text(SHARED + text)
    return folder


@pytest.fixture
def run(folder, monkeypatch, capfd):
    """Runs a tool as a command and gives its exit code, stdout and stderr."""
    monkeypatch.chdir(folder)
    # mmengine formats the config for its log several times a run, which takes longer than all the rest.
    for module in ('yapf.yapflib.yapf_api', 'mmengine.config.config'):  # imported late, or early
        monkeypatch.setattr(f'{module}.FormatCode', lambda text, **_: (text, False), raising=False)

    def run(tool, *arguments):
        monkeypatch.setattr(sys, 'argv', [str(TOOLS / tool), *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            runpy.run_path(str(TOOLS / tool), run_name='__main__')
        except SystemExit as stop:
            code = stop.code
        return code, *capfd.readouterr()

    yield run
    DefaultScope._instance_dict.clear()


@pytest.mark.parametrize('library', CONFIGS)
def test_scores_and_draws_what_a_run_wrote(run, folder, tmp_path, library):
    """The checkpoint is one of tools/train.py, with all that mmengine stores beside the weights."""
    assert run('train.py', f'{library}.py')[0] == 0
    checkpoint = folder / 'work_dirs' / library / 'iter_1.pth'
    text = f"_base_ = '{library}.py'\nload_from = 'none.pth'\n"  # the checkpoint is the one that is given
    (folder / f'{library}_from.py').write_text(text)
    code, *_ = run(
        'test.py',
        f'{library}_from.py',
        checkpoint,
        '--show-dir',
        tmp_path / 'shown',
        '--out',
        tmp_path / 'out.pkl',
        '--work-dir',
        tmp_path / 'work',
    )
    assert code == 0
    (scores,) = tmp_path.glob('work/*/*.json')
    assert METRICS[library] in scores.read_text()
    drawn = [cv2.imread(str(path)) for path in (tmp_path / 'shown').iterdir()]
    assert len(drawn) == 4 and all(image is not None for image in drawn)
    assert len(pickle.loads((tmp_path / 'out.pkl').read_bytes())) == 4


class Harmful:
    def __reduce__(self):
        return os.mkdir, ('made',)


@pytest.fixture
def checkpoint(run, folder):
    """What differs from the classifier's checkpoint is up to the test."""
    cfg = Config.fromfile(folder / 'mmpretrain.py')
    model = MODELS.build(dict(cfg.model, type='mmpretrain.ImageClassifier'))
    return {'state_dict': model.state_dict()}


def test_a_checkpoint_that_does_not_fit(run, folder, checkpoint, tmp_path):
    weights = checkpoint['state_dict']
    subnet = {key.removeprefix('backbone.'): value for key, value in weights.items() if key.startswith('backbone.')}
    torch.save({'state_dict': subnet, 'meta': {'subnet': '16x2'}}, tmp_path / 'extracted.pth')
    code, _, err = run('test.py', 'mmpretrain.py', tmp_path / 'extracted.pth')
    assert code == 2
    assert err.splitlines()[-1].startswith(
        f'test: error: {tmp_path}/extracted.pth does not fit ImageClassifier: missing '
    )
    assert err.splitlines()[-1].endswith('the file holds subnet 16x2')


def test_nothing_in_the_checkpoint_is_run(run, folder, checkpoint, tmp_path):
    torch.save(checkpoint | {'meta': Harmful()}, tmp_path / 'bad.pth')
    code, _, err = run('test.py', 'mmpretrain.py', tmp_path / 'bad.pth')
    assert code == 2 and 'mkdir' in err
    assert not (folder / 'made').exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['none.py', 'none.pth'], 'none.py'),
        (['mmpretrain.py', 'none.pth'], 'none.pth: expected a checkpoint file, found nothing'),
        (['mmdet.py', 'none.pth', '--cfg-options', 'test_dataloader.dataset.data_root=gone'], 'data_root = gone'),
        (['mmpretrain.py', 'none.pth', '--cfg-options', 'test_evaluator=None'], "has no 'test_evaluator'"),
        (['mmpretrain.py', 'none.pth', '--out', 'out.json'], 'should end in .pkl'),
        (
            ['mmpretrain.py', 'none.pth', '--show-dir', 'shown', '--cfg-options', 'default_scope=mmagic'],
            "default_scope to be one of mmdet, mmseg, mmpretrain; it is 'mmagic'",
        ),
    ],
)
def test_what_users_get_wrong_is_one_line(run, arguments, message):
    code, _, err = run('test.py', *arguments)
    assert code == 2
    assert message in err.splitlines()[-1] and err.splitlines()[-1].startswith('test: ')
    assert 'Traceback' not in err
