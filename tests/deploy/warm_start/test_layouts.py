"""Every layout: a supernet at full size computes what the network of the library does, whose weights it was given."""

import re
from functools import partial

import pytest
import torch
from mmpretrain.models import ResNet as MMResNet
from mmpretrain.models import SwinTransformer as MMSwin
from mmpretrain.models import VisionTransformer as MMViT
from torch import nn
from torch.testing import assert_close
from torchvision.models.resnet import Bottleneck
from torchvision.models.resnet import ResNet as TorchResNet

from poa_mm.checkpoint import CheckpointError, load_teacher, read_checkpoint
from poa_mm.deploy.extract import extract_subnets
from poa_mm.deploy.warm_start import warm_start
from poa_mm.deploy.warm_start.layouts import recognise
from poa_mm.models.backbones.elastic_backbone import map_features

VIT = dict(img_size=32, patch_size=8, embed_dim=64, depth=3, num_heads=4)
MM_ARCH = dict(embed_dims=64, num_layers=3, num_heads=4, feedforward_channels=256)
HF = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8)
SWIN = dict(img_size=64, embed_dim=32, depths=(1, 2, 3, 2), num_heads=(2, 4, 8, 16), window_size=2)
MEAN_PATCH = dict(out_type='avg_featmap', final_norm=False)


def timm_vit(**options):
    timm = pytest.importorskip('timm.models.vision_transformer')
    return timm.VisionTransformer(**VIT | options)


def timm_beit(**options):
    timm = pytest.importorskip('timm.models.beit')
    return timm.Beit(**VIT, use_abs_pos_emb=True, use_rel_pos_bias=False, **options)


def timm_swin(**options):
    return pytest.importorskip('timm.models.swin_transformer').SwinTransformer(**SWIN | options)


def hf_dinov2(**options):
    transformers = pytest.importorskip('transformers')
    return transformers.Dinov2Model(transformers.Dinov2Config(**HF | options))


def hf_vit(**options):
    transformers = pytest.importorskip('transformers')
    return transformers.ViTModel(transformers.ViTConfig(**HF, intermediate_size=256, **options))


def torch_resnet(**options):
    norm = partial(nn.GroupNorm, 16)
    return TorchResNet(Bottleneck, [1, 1, 2, 1], width_per_group=32, norm_layer=norm, **options)


def timm_resnet(**options):
    resnet = pytest.importorskip('timm.models.resnet')
    norm = type(
        'GroupNorm',
        (nn.GroupNorm,),
        {'__init__': lambda self, channels, **_: nn.GroupNorm.__init__(self, 16, channels)},
    )
    return resnet.ResNet(resnet.Bottleneck, (1, 1, 2, 1), base_width=32, norm_layer=norm, act_layer=nn.ReLU, **options)


# --- features of each library: class and patches ---


def of_tokens(network, x):
    tokens = network.forward_features(x)
    return tokens[:, 0], tokens[:, 1:]


def of_mean_patch(network, x):
    patch = network.forward_features(x)[:, 1:]
    return network.fc_norm(patch.mean(dim=1)), patch


def of_no_class_token(network, x):
    patch = network.forward_features(x)
    return patch.mean(dim=1), patch


def of_transformers(network, x):
    tokens = network(pixel_values=x).last_hidden_state
    return tokens[:, 0], tokens[:, 1:]


def of_mm_vit(network, x):
    network.out_type = 'raw'
    (tokens,) = network(x)
    return tokens[:, 0], tokens[:, 1:]


def of_timm_map(network, x):
    return map_features(network.forward_features(x).permute(0, 3, 1, 2))


def of_mm_map(network, x):
    return map_features(network(x)[-1])


def of_torch_resnet(network, x):
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    return map_features(network.layer4(network.layer3(network.layer2(network.layer1(x)))))


def of_timm_resnet(network, x):
    return map_features(network.forward_features(x))


# --- files as they are found: what is saved beside the backbone, and under which names ---


def chunked(state):
    """DINOv2's blocks in chunks of two, with a mask token of two dimensions."""
    state = {
        re.sub(r'^blocks\.(\d+)', lambda m: f'blocks.{int(m[1]) // 2}.{m[1]}', name): v for name, v in state.items()
    }
    return {**{n: v for n, v in state.items() if not n.startswith('head.')}, 'mask_token': torch.randn(1, 64)}


def dino(state):
    """A checkpoint of DINO: student and teacher with their heads, as they lie in DDP."""
    teacher = {f'backbone.{name}': value for name, value in state.items() if not name.startswith('head.')}
    teacher['head.mlp.0.weight'] = torch.randn(3, 64)
    student = {f'module.{name}': torch.zeros_like(value) for name, value in teacher.items()}
    return dict(student=student, teacher=teacher, epoch=3)


def dinov2_training(state):
    """One dict with all branches."""
    teacher = {f'teacher.backbone.{name}': value for name, value in chunked(state).items()}
    student = {name.replace('teacher.', 'student.', 1): torch.zeros_like(value) for name, value in teacher.items()}
    heads = {'teacher.dino_head.mlp.0.weight': torch.randn(3, 64), 'dino_loss.center': torch.zeros(1, 3)}
    return dict(model={**student, **teacher, **heads}, iteration=7)


def mae(state):
    """A checkpoint of MAE, whose mask token is the decoder's."""
    state = {name: value for name, value in state.items() if not name.startswith('head.')}
    more = {'mask_token': torch.randn(1, 1, 16), 'decoder_pos_embed': torch.randn(1, 17, 16)}
    more |= {'decoder_embed.weight': torch.randn(16, 64), 'decoder_blocks.0.norm1.weight': torch.randn(16)}
    return dict(model=state | more)


def deit3(state):
    return dict(model={re.sub(r'ls([12])\.gamma', r'gamma_\1', name): value for name, value in state.items()})


def classifier(state):
    """A checkpoint of mmpretrain's runner."""
    weights = {f'backbone.{name}': value for name, value in state.items()}
    return dict(meta=dict(epoch=1), state_dict={**weights, 'head.layers.head.weight': torch.randn(3, 64)})


def old_swin(state):
    """Swin's own repository: merging after a stage, and what follows from the sizes."""

    def rename(name):
        return re.sub(r'layers\.(\d)\.downsample', lambda m: f'layers.{int(m[1]) - 1}.downsample', name)

    state = {rename(name): value for name, value in state.items()}
    return dict(model={**state, 'layers.1.blocks.1.attn_mask': torch.zeros(16, 4, 4)}, max_accuracy=81.3)


def norm_first(state):
    return dict(sorted(state.items(), reverse=True))


def as_they_are(state):
    return state


# Network, features, family, options of the supernet, options of the import, file.
CASES = {
    'timm': (timm_vit, of_tokens, 'vit', {}, as_they_are),
    'timm with LayerScale': (partial(timm_vit, init_values=1.0), of_tokens, 'vit', {}, norm_first),
    'timm without position of the class token': (
        partial(timm_vit, no_embed_class=True),
        of_tokens,
        'vit',
        {},
        as_they_are,
    ),
    'timm without bias of queries': (partial(timm_vit, qkv_bias=False), of_tokens, 'vit', {}, as_they_are),
    'timm without class token': (
        partial(timm_vit, class_token=False, global_pool='avg', fc_norm=False),
        of_no_class_token,
        'vit',
        dict(with_cls_token=False, out_type='featmap'),
        as_they_are,
    ),
    'timm with the mean patch': (partial(timm_vit, global_pool='avg'), of_mean_patch, 'vit', MEAN_PATCH, as_they_are),
    'LayerScale is multiplied in': (
        partial(timm_vit, init_values=1.0),
        of_tokens,
        'vit',
        dict(layer_scale_init_value=0.0),
        as_they_are,
    ),
    'bias of queries and values alone': (
        partial(timm_beit, init_values=1.0),
        of_mean_patch,
        'vit',
        MEAN_PATCH,
        as_they_are,
    ),
    'DINO': (timm_vit, of_tokens, 'vit', {}, dino),
    'DINOv2': (partial(timm_vit, init_values=1.0), of_tokens, 'vit', {}, chunked),
    'DINOv2 in training': (partial(timm_vit, init_values=1.0), of_tokens, 'vit', {}, dinov2_training),
    'MAE': (timm_vit, of_tokens, 'vit', {}, mae),
    'DeiT III': (partial(timm_vit, init_values=1.0, no_embed_class=True), of_tokens, 'vit', {}, deit3),
    'Dinov2Model': (hf_dinov2, of_transformers, 'vit', {}, as_they_are),
    'Dinov2ForImageClassification': (
        hf_dinov2,
        of_transformers,
        'vit',
        {},
        lambda state: {f'dinov2.{n}': v for n, v in state.items()} | {'classifier.weight': torch.randn(3, 128)},
    ),
    'ViTModel': (hf_vit, of_transformers, 'vit', dict(norm_cfg=dict(type='LN', eps=1e-12)), as_they_are),
    "mmpretrain's ViT": (
        partial(MMViT, arch=MM_ARCH, img_size=32, patch_size=8, layer_scale_init_value=0.5),
        of_mm_vit,
        'vit',
        {},
        classifier,
    ),
    'pre-norm': (
        partial(MMViT, arch=MM_ARCH, img_size=32, patch_size=8, pre_norm=True),
        of_mm_vit,
        'vit',
        dict(pre_norm=True),
        classifier,
    ),
    'timm Swin': (timm_swin, of_timm_map, 'swin', {}, as_they_are),
    "Swin's own": (timm_swin, of_timm_map, 'swin', {}, old_swin),
    "mmpretrain's Swin": (
        partial(
            MMSwin, arch=dict(embed_dims=32, depths=[1, 2, 3, 2], num_heads=[2, 4, 8, 16]), img_size=64, window_size=2
        ),
        of_mm_map,
        'swin',
        {},
        classifier,
    ),
    'Swin with positions': (
        partial(
            MMSwin,
            arch=dict(embed_dims=32, depths=[1, 2, 3, 2], num_heads=[2, 4, 8, 16]),
            img_size=64,
            window_size=2,
            use_abs_pos_embed=True,
        ),
        of_mm_map,
        'swin',
        dict(use_abs_pos_embed=True),
        as_they_are,
    ),
    'torchvision ResNet': (torch_resnet, of_torch_resnet, 'resnet', {}, as_they_are),
    'timm ResNet': (timm_resnet, of_timm_resnet, 'resnet', {}, as_they_are),
    "mmpretrain's ResNet": (
        partial(MMResNet, 50, base_channels=16, norm_cfg=dict(type='GN', num_groups=16)),
        of_mm_map,
        'resnet',
        dict(stage_blocks=(3, 4, 6, 3), mid_channels=16, base_channels=16, widths=[16], depths=[3, [3, 4], 6, 3]),
        classifier,
    ),
}
OPTIONS = dict(vit=dict(heads=4), swin={}, resnet=dict(groups=16))
LIBRARIES = dict(of_tokens='timm', of_transformers='transformers', of_torch_resnet='torchvision')


@pytest.mark.parametrize('case', CASES)
@torch.no_grad()
def test_the_supernet_computes_what_the_library_does(case, config_of, randomise, save, tmp_path):
    make, features, family, options, wrap = CASES[case]
    network = randomise(make())
    network.eval()
    report = warm_start(
        config_of(family, **options), save(wrap(network.state_dict())), tmp_path / 'start.pth', **OPTIONS[family]
    )
    assert report.max_abs_diff <= 1e-4
    assert report.library.split()[0] == LIBRARIES.get(features.__name__, report.library.split()[0])

    supernet, description = load_teacher(tmp_path / 'start.pth')
    assert description['backbone']['type'] == config_of(family).model.backbone.type
    images = torch.randn(2, 3, *supernet.img_size)
    for found, expected in zip(supernet.extract_features(images), features(network, images)):
        assert_close(found, expected, rtol=0, atol=1e-4)
    assert found.std(dim=0).mean() > 0.05  # nothing that would be equal by accident


def test_teacher_and_student_are_the_same_and_heads_are_new(config_of, randomise, save, tmp_path):
    path = save(randomise(timm_vit()).state_dict())
    for name, seed in (('a', 0), ('b', 0), ('c', 1)):
        warm_start(config_of('vit'), path, tmp_path / name, heads=4, seed=seed)
    a, b, c = (read_checkpoint(tmp_path / name)['state_dict'] for name in 'abc')
    for name, value in a.items():
        if name.startswith(('backbone.', 'head.')):
            assert torch.equal(value, a[f'teacher.{name}'])
        assert torch.equal(value, b[name])
    heads = [name for name in a if 'projectors' in name and name.endswith('weight')]
    assert heads
    assert not any(torch.equal(a[name], c[name]) for name in heads)
    assert torch.equal(a['backbone.cls_token'], c['backbone.cls_token'])


@pytest.mark.parametrize('family', ['vit', 'swin', 'resnet'])
@torch.no_grad()
def test_an_extracted_subnet_and_a_supernet(family, supernets, supernet_file, config_of, tmp_path):
    """A subnet becomes the largest of a new supernet; a supernet is taken as it is."""
    old, _ = load_teacher(supernet_file(family))
    whole = old.space.largest
    arch = dict(supernets[family], **dict(vit=dict(depths=[3, 4], widths=[32, 64]), swin={}, resnet={})[family])
    config = config_of(family)
    config.model.backbone = arch
    extract_subnets(supernet_file(family), [whole], tmp_path)
    images = torch.randn(2, 3, 64, 64)
    for path, layout in (
        (tmp_path / f'poa_{whole}.safetensors', 'an extracted subnet'),
        (supernet_file(family), 'a checkpoint of POA'),
    ):
        report = warm_start(config, path, tmp_path / 'start.pth')
        assert (report.layout, report.normalisation) == (layout, None)
        supernet, _ = load_teacher(tmp_path / 'start.pth')
        for found, expected in zip(supernet.extract_features(images), old.extract_features(images)):
            assert_close(found, expected, rtol=0, atol=1e-5)


# --- what is refused, with its name ---


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


REFUSED = {
    'register tokens': (partial(timm_vit, reg_tokens=2), as_they_are, 'vit', 'reg_token is of register tokens'),
    'queries are normed': (
        partial(timm_vit, qk_norm=True),
        as_they_are,
        'vit',
        r'attn.q_norm.weight is of norms within',
    ),
    'CLIP': (partial(timm_vit, pre_norm=True), as_they_are, 'vit', r'norm_pre.weight is of .*activation'),
    'distillation token': (
        timm_vit,
        lambda s: {**s, 'dist_token': torch.zeros(1, 1, 64)},
        'vit',
        'dist_token is of a distillation token',
    ),
    'SwiGLU': (
        partial(hf_dinov2, use_swiglu_ffn=True),
        as_they_are,
        'vit',
        r'mlp.weights_in.weight is of a SwiGLU MLP',
    ),
    'packed SwiGLU': (
        timm_vit,
        lambda s: {n: torch.cat([v, v]) if '.fc1.' in n else v for n, v in s.items()},
        'vit',
        'SwiGLU MLP',
    ),
    'an unknown key': (
        timm_vit,
        lambda s: {**s, 'blocks.1.gate': torch.ones(1)},
        'vit',
        'unknown weight blocks.1.gate',
    ),
    'an unknown key beside': (
        timm_vit,
        lambda s: {**{f'backbone.{n}': v for n, v in s.items()}, 'other.weight': torch.ones(1)},
        'vit',
        'unknown weight other.weight',
    ),
    'a missing key': (timm_vit, lambda s: without(s, 'blocks.1.norm2.bias'), 'vit', 'missing layers.1.ln2.bias'),
    'a missing stem': (
        timm_vit,
        lambda s: without(s, 'patch_embed.proj.bias'),
        'vit',
        'missing patch_embed.projection.bias',
    ),
    'a missing key of keys': (
        hf_dinov2,
        lambda s: without(s, 'encoder.layer.1.attention.attention.key.weight'),
        'vit',
        'missing layers.1.attn.key.weight',
    ),
    'fewer blocks': (partial(timm_vit, depth=2), as_they_are, 'vit', 'num_layers is 2, in the config 3'),
    'another width': (
        partial(timm_vit, embed_dim=32),
        as_they_are,
        'vit',
        'embed_dims is 32, in the config 64.*channels is 128, .* 256',
    ),
    'another shape': (
        timm_vit,
        lambda s: {n: v[:3] if n == 'blocks.2.norm1.bias' else v for n, v in s.items()},
        'vit',
        r'layers.2.ln1.bias is \(3,\), expected \(64,\)',
    ),
    'grey images': (partial(timm_vit, in_chans=1), as_they_are, 'vit', 'in_channels is 1, in the config 3'),
    'mean patch': (
        partial(timm_vit, global_pool='avg'),
        as_they_are,
        'vit',
        'final_norm is False, in the config True; mean patch',
    ),
    'no positions': (timm_vit, lambda s: without(s, 'pos_embed'), 'vit', 'missing pos_embed'),
    'eps': (hf_vit, as_they_are, 'vit', 'ln1.eps is 1e-12, in the config 1e-06'),
    'NaN': (
        timm_vit,
        lambda s: {**s, 'norm.bias': torch.full((64,), torch.nan)},
        'vit',
        'NaN or infinity in norm.bias',
    ),
    'another family': (timm_swin, as_they_are, 'vit', 'timm Swin is a Swin, the backbone .* ElasticVisionTransformer'),
    'no network': (nn.Linear, as_they_are, 'vit', r'weights \(bias, weight\) are of none of: timm ViT'),
    'two networks': (
        timm_vit,
        lambda s: {f'{p}.{n}': v for p in 'ab' for n, v in s.items()},
        'vit',
        'several networks, .*a. .*b. ',
    ),
    'Swin of other heads': (
        partial(timm_swin, num_heads=(4, 8, 16, 32)),
        as_they_are,
        'swin',
        r'num_heads is \[4, 8, 16, 32\], in the config',
    ),
    'Swin V2': (
        timm_swin,
        lambda s: {**s, 'layers.0.blocks.0.attn.logit_scale': torch.ones(1)},
        'swin',
        'attention of Swin V2',
    ),
    'windows of several sizes': (partial(timm_swin, window_size=4), as_they_are, 'swin', 'windows of 4, 4, 4, 2'),
    'BatchNorm': (
        partial(TorchResNet, Bottleneck, [1, 1, 2, 1]),
        as_they_are,
        'resnet',
        r'bn1.running_mean is of BatchNorm. The supernet has GroupNorm',
    ),
    'ResNet of other mid channels': (
        partial(TorchResNet, Bottleneck, [1, 1, 2, 1], norm_layer=partial(nn.GroupNorm, 16)),
        as_they_are,
        'resnet',
        'mid_channels is 64, in the config 32',
    ),
    'ResNeXt': (
        partial(
            TorchResNet, Bottleneck, [1, 1, 2, 1], groups=4, width_per_group=8, norm_layer=partial(nn.GroupNorm, 16)
        ),
        as_they_are,
        'resnet',
        'grouped convolution',
    ),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_does_not_fit_is_named(case, config_of, save, tmp_path):
    make, wrap, family, message = REFUSED[case]
    network = make(2, 2) if make is nn.Linear else make()
    path = save(wrap(network.state_dict()))
    with pytest.raises((CheckpointError, ValueError), match=message) as error:
        warm_start(config_of(family), path, tmp_path / 'new' / 'start.pth', **OPTIONS[family])
    assert str(path) in str(error.value)
    assert not (tmp_path / 'new').exists()


def test_heads_and_groups_that_the_file_does_not_say(config_of, save, tmp_path):
    path = save(timm_vit().state_dict())
    with pytest.raises(CheckpointError, match=r'num_heads is 1, in the config 4; .*1 heads of 64 channels \(--heads'):
        warm_start(config_of('vit'), path, tmp_path / 'start.pth')
    with pytest.raises(ValueError, match='5 heads do not divide 64 channels'):
        warm_start(config_of('vit'), path, tmp_path / 'start.pth', heads=5)
    path = save(timm_vit(embed_dim=48).state_dict())
    with pytest.raises(ValueError, match=r'how many heads 48 channels have \(--heads\)'):
        warm_start(config_of('vit'), path, tmp_path / 'start.pth')
    path = save(torch_resnet().state_dict())
    with pytest.raises(
        CheckpointError, match=r'num_groups is 32, in the config 16; .*GroupNorms of 32 groups \(--groups'
    ):
        warm_start(config_of('resnet'), path, tmp_path / 'start.pth')
    with pytest.raises(ValueError, match='5 groups do not divide'):
        warm_start(config_of('resnet'), path, tmp_path / 'start.pth', groups=5)
    with pytest.raises(ValueError, match=r'heads 4 \(--heads\) cannot be set of ElasticResNet'):
        warm_start(config_of('resnet'), path, tmp_path / 'start.pth', heads=4)
    path = save(timm_swin().state_dict())
    with pytest.raises(CheckpointError, match=r'set model.backbone.unshifted_stages=\[3\], in the config \[\]'):
        warm_start(config_of('swin', unshifted_stages=[]), path, tmp_path / 'start.pth')
    assert not (tmp_path / 'start.pth').exists()


def test_what_is_left_out_is_named():
    weights = {f'backbone.{name}': value for name, value in timm_vit().state_dict().items()}
    found = recognise({**weights, 'dino_head.mlp.0.weight': torch.zeros(1)}, 'x')
    assert found.left_out == ['backbone.head.*', 'dino_head.*']
    assert not any('head' in name for name in found.raw)
