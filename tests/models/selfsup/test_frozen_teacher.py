import copy

import pytest
import torch
from mmengine.runner.checkpoint import load_state_dict
from mmpretrain.models import ConvNeXt, SwinTransformer, VisionTransformer
from mmpretrain.structures import DataSample
from torch.testing import assert_close

from poa_mm.checkpoint import CheckpointError
from poa_mm.elastic import Subnet
from poa_mm.models import POA
from poa_mm.models.losses import feature_loss
from poa_mm.models.selfsup.batch import MultiCropBatch
from poa_mm.models.selfsup.frozen_teacher import FrozenTeacher, features_of

BACKBONE = dict(
    type='ElasticVisionTransformer',
    arch=dict(embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=64),
    widths=(16, 24, 32),
    depths=(2, 3),
    img_size=32,
    patch_size=8,
    layer_scale_init_value=0.5,
)
HEAD = dict(type='MultiPrototypeHead', num_prototypes=(8, 16), hidden_channels=24, bottleneck_channels=8)
WIDE = dict(
    type='VisionTransformer',
    arch=dict(embed_dims=48, num_layers=2, num_heads=4, feedforward_channels=64),
    img_size=32,
    patch_size=8,
)


@pytest.fixture
def wide(tmp_path):
    """Config of a wider network whose weights are in a file, and that network."""
    network = VisionTransformer(**{key: value for key, value in WIDE.items() if key != 'type'})
    network.init_weights()
    network.eval()
    torch.save({'state_dict': network.state_dict()}, tmp_path / 'wide.pth')
    return {**WIDE, 'init_cfg': dict(type='Pretrained', checkpoint=str(tmp_path / 'wide.pth'))}, network


def make(**options):
    model = POA(backbone=BACKBONE, head=HEAD, **options)
    model.init_weights()
    return model.train()


def started(seed=1, **options):
    """A model that has been given the weights of another run, and these weights."""
    torch.manual_seed(seed)
    weights = make().state_dict()
    model = make(**options)
    load_state_dict(model, weights)
    return model, weights


def make_data(images=3, size=32):
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(images, 3, size, size, generator=generator) for _ in range(2)]
    inputs += [torch.randn(images, 3, size // 2, size // 2, generator=generator) for _ in range(2)]
    masks = torch.rand(images, 2, size // 8, size // 8, generator=generator) < 0.4
    masks[0, 0] = False
    return dict(inputs=inputs, data_samples=[DataSample(mask=mask) for mask in masks])


def collated(data):
    return MultiCropBatch.collate(data['inputs'], data['data_samples'], (4, 4), masked=True)


def deal(model, subnet):
    model.deck.deal = lambda: Subnet.parse(subnet)
    return model


# --- the source -------------------------------------------------------------------------------


def test_the_source_is_the_teacher_of_the_file():
    model, weights = started(frozen_teacher='source')
    teacher = {key: value for key, value in weights.items() if key.startswith('teacher.backbone.')}
    found = {f'teacher.backbone.{key}': value for key, value in model.frozen_teacher.backbone.state_dict().items()}
    assert_close(found, teacher, rtol=0, atol=0)
    assert not any(param.requires_grad for param in model.frozen_teacher.parameters())


def test_the_source_teaches_as_the_teacher_did_before_the_first_step():
    model, weights = started(frozen_teacher='source')
    ordinary = make()
    ordinary.load_state_dict(weights)
    for one in (model, ordinary):
        deal(one, '16x2')
    found, expected = model.loss(**make_data()), ordinary.loss(**make_data())
    assert_close(found, expected, rtol=0, atol=0)


def test_only_its_heads_follow_the_student():
    """What teaches is the backbone of the source under the heads of the average."""
    model, _ = started(frozen_teacher='source')
    batch = collated(make_data())
    before = model.teacher_targets(batch)
    with torch.no_grad():
        for param in model.teacher['backbone'].parameters():
            param += 1
    assert_close(model.teacher_targets(batch).cls, before.cls, rtol=0, atol=0)
    with torch.no_grad():
        for param in model.teacher['head'].parameters():
            param += 0.1 * torch.randn_like(param)
    assert not torch.equal(model.teacher_targets(batch).cls[0], before.cls[0])


def test_no_source():
    with pytest.raises(ValueError, match='no weights: load_from has to name'):
        make(frozen_teacher='source').loss(**make_data())
    with pytest.raises(CheckpointError, match=r'hold no teacher\.backbone\.\*'):
        load_state_dict(make(frozen_teacher='source'), {'backbone.cls_token': torch.zeros(1, 1, 32)})


def test_a_source_of_another_network():
    _, weights = started()
    key = 'teacher.backbone.layers.1.attn.qkv.weight'
    shorter = {name: value for name, value in weights.items() if name != key}
    with pytest.raises(CheckpointError, match=r'missing layers\.1.attn\.qkv\.weight'):
        load_state_dict(make(frozen_teacher='source'), shorter)
    weights[key] = weights[key][:, :16]
    with pytest.raises(CheckpointError, match=r'qkv\.weight is \(96, 16\), expected \(96, 32\)'):
        load_state_dict(make(frozen_teacher='source'), weights)


def test_positions_of_another_size_are_resized_as_those_of_the_teacher():
    _, weights = started()
    other = make(frozen_teacher='source')
    larger = POA(backbone={**BACKBONE, 'img_size': 48}, head=HEAD, frozen_teacher='source')
    load_state_dict(larger, weights)
    frozen, teacher = larger.frozen_teacher.backbone, larger.teacher['backbone']
    assert frozen.pos_embed.shape == (1, 37, 32) != other.frozen_teacher.backbone.pos_embed.shape
    assert_close(frozen.pos_embed, teacher.pos_embed, rtol=0, atol=0)


def test_a_file_made_before_the_source_had_weights():
    """A tool that writes whole checkpoints writes an empty frozen teacher, too."""
    empty = make(frozen_teacher='source').state_dict()
    model = make(frozen_teacher='source')
    load_state_dict(model, empty)
    assert_close(model.frozen_teacher.backbone.state_dict(), model.teacher['backbone'].state_dict(), rtol=0, atol=0)
    model.loss(**make_data())


def test_a_checkpoint_holds_it_once_and_gives_it_back():
    model, weights = started(frozen_teacher='source')
    with torch.no_grad():
        for param in model.teacher.parameters():
            param += 1  # the average has moved on
    stored = model.state_dict()
    names = {key.removeprefix('frozen_teacher.') for key in stored if key.startswith('frozen_teacher.')}
    assert names == {f'backbone.{name}' for name in model.backbone.state_dict()} | {'loaded'}
    again = make(frozen_teacher='source')
    load_state_dict(again, stored)
    assert_close(again.state_dict(), stored, rtol=0, atol=0)
    assert_close(again.frozen_teacher.backbone.cls_token, weights['teacher.backbone.cls_token'], rtol=0, atol=0)


def test_always_in_evaluation_mode():
    model, _ = started(frozen_teacher='source')
    model.train()
    assert not any(module.training for module in model.frozen_teacher.modules())
    assert model.backbone.training


# --- another network --------------------------------------------------------------------------


def test_another_network_keeps_its_weights_whatever_is_loaded(wide):
    config, network = wide
    model, _ = started(frozen_teacher=dict(backbone=config))
    assert_close(model.frozen_teacher.backbone.state_dict(), network.state_dict(), rtol=0, atol=0)
    assert model.frozen_teacher.loaded


def test_another_network_is_matched_token_by_token(wide):
    """The loss by hand: all tokens of the unmasked views, through one linear map of the width in use."""
    config, network = wide
    model = deal(make(frozen_teacher=dict(backbone=config, feature_weight=0.5)), '16x2')
    data = make_data()
    found = model.loss(**data)
    batch = collated(data)
    network.out_type = 'raw'
    with torch.no_grad():
        (wanted,) = network(batch.global_views)  # (2B, 1 + N, D)
        for name, subnet in dict(L_IS=Subnet(32, 3), L_ES1=Subnet(16, 2)).items():
            features = model.backbone.extract_features(batch.global_views, subnet, batch.masks)
            weight = model.feature_map.weight[:, : subnet.width] * (32 / subnet.width)
            cls, patch = (tokens @ weight.T + model.feature_map.bias for tokens in features)
            distance = [
                (1 - torch.cosine_similarity(*tokens, dim=-1)).mean()
                for tokens in ((cls, wanted[:, 0]), (patch, wanted[:, 1:]))
            ]
            assert_close(found[f'{name}_feature'], sum(distance) / 2)
            parts = sum(found[f'{name}_{part}'] for part in ('global', 'local', 'patch'))
            assert_close(found[name], parts + 0.5 * found[f'{name}_feature'])
    total = 0.8 * found['L_IS'] + 0.2 * found['L_ES1'] + 0.2 * found['L_ES2'] + 0.1 * found['koleo']
    assert_close(found['loss'], total)


@pytest.mark.parametrize('patch', [4, 16])
def test_a_student_of_another_patch_size_is_matched_on_the_grid_of_the_teacher(wide, patch):
    """Four small patches by their mean; a large one counts in each native patch that it covers."""
    config, network = wide
    backbone = {**BACKBONE, 'patch_sizes': (4, 8, 16)}
    model = POA(backbone=backbone, head=HEAD, frozen_teacher=dict(backbone=config))
    model.init_weights()
    model.train()
    model.deck.deal = lambda: Subnet(32, 3, patch)
    data = make_data()
    found = model.loss(**data)
    batch = collated(data)
    wanted = features_of(network, batch.global_views, (4, 4))
    crops = model.on_grid_of(batch, Subnet(32, 3, patch))
    with torch.no_grad():
        cls, patches = map(
            model.feature_map, model.backbone.extract_features(batch.global_views, Subnet(32, 3, patch), crops.masks)
        )
        if patch == 4:
            cells = patches.unflatten(1, (4, 2, 4, 2)).mean(dim=(2, 4))
        else:
            cells = patches.unflatten(1, (2, 2)).repeat_interleave(2, 1).repeat_interleave(2, 2)
        distance = [
            (1 - torch.cosine_similarity(*tokens, dim=-1)).mean()
            for tokens in ((cls, wanted.cls), (cells.flatten(1, 2), wanted.patch))
        ]
    assert_close(found['L_ES1_feature'], sum(distance) / 2)


def test_heads_see_the_space_of_another_network(wide):
    config, network = wide
    model = make(frozen_teacher=dict(backbone=config))
    assert model.head.in_channels == 48
    batch = collated(make_data())
    targets = model.teacher_targets(batch)
    features = features_of(network, batch.global_views, (4, 4))
    logits = model.teacher['head'](features.cls)
    assert_close(targets.cls[0], model.class_centering[0](logits[0], model.teacher_temp))
    output = model.student_output(batch, Subnet(16, 2), 'local')
    mapped = model.feature_map(model.backbone.extract_features(batch.local_views, Subnet(16, 2)).cls)
    assert_close(output.embeddings, model.head.embed(mapped))


def test_gradients_with_another_network(wide):
    """Of everything that is trained, by two passes with early backward, as by one graph."""
    config, _ = wide
    model = deal(make(frozen_teacher=dict(backbone=config), weight_es2=0), '24x2')  # whose targets have no gradient
    data = make_data()
    model.loss(**data)['loss'].backward()
    params = dict(model.named_parameters())
    assert all((param.grad is not None) == param.requires_grad for param in params.values())
    assert model.feature_map.weight.grad.abs().sum() > 0
    # By differences: the loss as a function of one weight of the map and one of the backbone.
    for name in ('feature_map.weight', 'backbone.layers.0.ffn.layers.0.0.weight'):
        param, losses = params[name], []
        index = param.grad.abs().argmax()
        for step in (1e-3, -1e-3):
            other = copy.deepcopy(model)
            with torch.no_grad():
                dict(other.named_parameters())[name].flatten()[index] += step
            losses.append(other.double().loss(**doubled(data))['loss'].item())
        assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(param.grad.flatten()[index].item(), rel=0.02), name


def doubled(data):
    return {**data, 'inputs': [view.double() for view in data['inputs']]}


def test_without_feature_loss_only_the_heads_teach(wide):
    config, _ = wide
    found = make(frozen_teacher=dict(backbone=config, feature_weight=0)).loss(**make_data())
    assert 'L_IS_feature' not in found and 'L_IS_patch' in found


@pytest.mark.parametrize('off', ['weight_is', 'weight_es1'])
def test_a_student_that_does_not_learn_from_the_teacher_matches_nothing(wide, off):
    model = make(frozen_teacher=dict(backbone=wide[0]), **{off: 0})
    found = model.loss(**make_data())
    assert ('L_IS_feature' in found, 'L_ES1_feature' in found) == (off != 'weight_is', off != 'weight_es1')
    found['loss'].backward()
    assert model.feature_map.weight.grad is not None


def test_feature_loss_is_a_mean_of_cosines():
    found, wanted = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[5.0, 0.0], [0.0, -1.0]])
    assert feature_loss(found, wanted).item() == pytest.approx(1.0)  # 0 and 2
    assert feature_loss(found.half(), wanted).dtype == torch.float32


# --- networks that do not fit -----------------------------------------------------------------


def test_feature_maps_are_repeated_to_the_grid():
    images = torch.randn(2, 3, 32, 32)
    arch = dict(embed_dims=8, depths=[1, 1], num_heads=[2, 2])
    network = SwinTransformer(arch=arch, img_size=32, window_size=4, out_indices=(1,))
    network.eval()  # which returns nothing
    features = features_of(network, images, (8, 8))
    feature_map = network(images)[-1]  # (2, 16, 4, 4)
    assert_close(features.cls, feature_map.mean(dim=(2, 3)))
    assert_close(features.patch.unflatten(1, (8, 8))[:, ::2, 1::2], feature_map.permute(0, 2, 3, 1))
    with pytest.raises(ValueError, match='4 x 4 cells, which do not divide the 6 x 6 patches'):
        features_of(network, images, (6, 6))


def test_features_that_are_no_tokens():
    network = ConvNeXt(arch=dict(depths=[1, 1], channels=[8, 16]), out_indices=(1,))
    network.eval()
    with pytest.raises(ValueError, match=r'ConvNeXt\) has to give tokens or a feature map .* got \(2, 16\)'):
        features_of(network, torch.randn(2, 3, 32, 32), (4, 4))


def test_another_patch_size_is_refused_or_images_are_resized():
    options = dict(backbone={**WIDE, 'patch_size': 4, 'init_cfg': dict(type='Pretrained', checkpoint='x.pth')})
    with pytest.raises(ValueError, match=r'sees 64 patches .* 32 x 32 pixels, the supernet 4 x 4; with .*patch_size'):
        POA(backbone=BACKBONE, head=HEAD, frozen_teacher=options)
    teacher = POA(backbone=BACKBONE, head=HEAD, frozen_teacher=dict(**options, patch_size=4)).frozen_teacher
    seen = []
    teacher.backbone.patch_embed.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.full((1, 3, 32, 32), 0.7)
    assert teacher.extract_features(images, (4, 4)).patch.shape == (1, 16, 48)
    assert_close(seen[0], torch.full((1, 3, 16, 16), 0.7))


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ('ema', "is 'source', the network .* got 'ema'"),
        (dict(feature_weight=1.0), 'a dict of another one with backbone'),
        (dict(backbone=WIDE, weight=1.0), "got .*'weight': 1.0"),
        (dict(backbone=WIDE), r"needs init_cfg=dict\(type='Pretrained', checkpoint=FILE\).* got None"),
        (dict(backbone={**WIDE, 'init_cfg': dict(type='TruncNormal')}), 'needs init_cfg'),
        (dict(backbone=WIDE, feature_weight=-1), 'feature_weight -1 is not'),
        (dict(backbone=WIDE, feature_weight=float('nan')), 'feature_weight nan is not'),
        (dict(backbone=WIDE, patch_size=0), 'patch_size 0 is not'),
    ],
)
def test_wrong_configs(config, message):
    with pytest.raises(ValueError, match=message):
        POA(backbone=BACKBONE, head=HEAD, frozen_teacher=config)


def test_other_channels(wide):
    config, _ = wide
    with pytest.raises(ValueError, match='cannot take images of 3 channels and 32 x 32 pixels'):
        POA(backbone=BACKBONE, head=HEAD, frozen_teacher=dict(backbone={**config, 'in_channels': 1}))
    with pytest.raises(ValueError, match=r'head\.in_channels 32 are not the 48 channels of the frozen teacher'):
        POA(backbone=BACKBONE, head={**HEAD, 'in_channels': 32}, frozen_teacher=dict(backbone=config))


def test_channels_are_found_without_a_trace():
    """The network itself computes nothing, and keeps no tensor of the device ``meta``."""
    network = VisionTransformer(**{key: value for key, value in WIDE.items() if key != 'type'})
    student = POA(backbone=BACKBONE, head=HEAD).backbone
    before = copy.deepcopy(network.state_dict())
    assert FrozenTeacher(network, is_source=False).channels(student) == 48
    assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert network(torch.randn(1, 3, 32, 32))[-1].isfinite().all()


@pytest.mark.parametrize('family', ['swin', 'resnet'])
def test_every_family(supernets, wide, family):
    config, _ = wide
    config = {**config, 'img_size': 64, 'patch_size': 32}  # a feature map of 2 x 2 is 4 x 4 patches
    for frozen_teacher in ('source', dict(backbone=config, patch_size=32)):
        model = POA(backbone=supernets[family], head=HEAD, frozen_teacher=frozen_teacher)
        model.train()
        model.frozen_teacher.loaded.fill_(1)
        model.loss(**make_data(size=64 if family != 'vit' else 32) | samples(model))['loss'].backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def samples(model):
    grid = model.backbone.mask_grid((64, 64))
    return dict(data_samples=[DataSample(mask=torch.rand(2, *grid) < 0.4) for _ in range(3)])


@pytest.mark.parametrize('kind', ['source', 'another'])
def test_in_pieces_a_batch_gives_the_same(wide, kind):
    """Loss, terms and gradients of three micro-batches are those of the batch."""
    results = []
    for micro_batches in (1, 3):
        torch.manual_seed(3)
        options = dict(frozen_teacher='source' if kind == 'source' else dict(backbone=wide[0]))
        model = deal(make(micro_batches=micro_batches, **options), '16x2')
        model.double()
        model.frozen_teacher.loaded.fill_(1)
        found = model.loss(**doubled(make_data()))
        found['loss'].backward()
        grads = {name: param.grad for name, param in model.named_parameters() if param.grad is not None}
        results.append(({name: value.detach() for name, value in found.items()}, grads))
    (expected, grads), (found, found_grads) = results
    assert found.keys() == expected.keys()
    assert ('L_ES1_feature' in found) == (kind == 'another')
    assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert_close(found_grads, grads, rtol=1e-4, atol=1e-6)
