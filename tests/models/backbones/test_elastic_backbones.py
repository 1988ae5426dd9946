"""What every family of elastic backbones has to do, whatever it is made of."""

import inspect
import re
from ast import literal_eval
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from mmpretrain.structures import DataSample
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close

from poa_mm.checkpoint import CheckpointError, describe_supernet, load_teacher
from poa_mm.deploy.extract import extract_subnets, list_subnets
from poa_mm.deploy.public_checkpoint import convert_public_state_dict
from poa_mm.elastic import Subnet


class Family(NamedTuple):
    """A small network for images of 64 pixels.

    Args:
        config: The elastic backbone; that of the golden numbers, if there are any.
        plain: Types that its subnets are extracted to.
        outside: A subnet that is not in the space.
        change: An option that makes another network of weights of the same shapes.
        select_scale: Of the authors' deck.
        golden: Name of the golden numbers, and how the network that gave them differs from ``config``.
            If it does not, its extracted subnets have to give them too.
    """

    config: dict[str, Any]
    plain: set[str]
    outside: str
    change: dict[str, Any]
    select_scale: float | tuple[float, float]
    golden: tuple[str, dict[str, Any]] | None = None


FAMILIES = {
    'vit': Family(
        dict(
            type='ElasticVisionTransformer',
            arch=dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256),
            widths=[32, 48, 64],
            depths=[2, 3, 4],
            img_size=64,
            layer_scale_init_value=0.5,
        ),
        plain={'VisionTransformer'},
        outside='32x5',
        change=dict(norm_cfg=dict(type='LN', eps=1e-3)),
        select_scale=3,
    ),
    'swin': Family(
        dict(
            type='ElasticSwinTransformer',
            arch=dict(embed_dims=32, depths=[1, 1, 4, 1], num_heads=[4, 8, 16, 32]),
            widths=[16, 24, 32],
            depths=[2, 3, 4],
            img_size=64,
            window_size=4,
        ),
        plain={'SwinTransformer'},
        outside='20x2',
        change=dict(img_size=128),
        select_scale=2,
        golden=('swin', dict(stem_norm='full')),  # which no plain network can do
    ),
    'resnet': Family(
        dict(
            type='ElasticResNet',
            stage_blocks=[1, 2, 4, 1],
            mid_channels=16,
            depths=[1, [1, 2], [2, 3, 4], 1],
            stem_channels=8,
            base_channels=8,
            num_groups=4,
            img_size=64,
        ),
        plain={'BottleneckResNet'},
        outside='8x1-2-1-1',
        change=dict(num_groups=2),
        select_scale=(1, 2),
        golden=('resnet', {}),
    ),
}
SIZES = [(64, 64), (32, 96), (72, 40)]


@pytest.fixture(scope='module', params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope='module')
def make(family, randomise):
    """Maker of networks of the family whose every parameter is off its initial value."""

    def build(**options):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = randomise(MODELS.build(family.config | options))
        network.eval()
        return network

    return build


@pytest.fixture(scope='module')
def network(make):
    return make()


def plain(network, subnet):
    """The plain network that ``subnet`` is extracted to, loaded strictly."""
    config, state = network.extract(subnet)
    found = MMPRETRAIN_MODELS.build(config)
    found.load_state_dict(state, strict=True)
    found.eval()
    return found


def random_mask(network, size, batch=2):
    rows, columns = network.mask_grid(size)
    return torch.rand(batch, rows * columns) < 0.4


# --- extraction ---


@torch.no_grad()
def test_every_extracted_subnet_gives_the_same(network, family):
    types = set()
    for subnet in network.space:
        types.add(network.extract(subnet)[0]['type'])
        extracted = plain(network, subnet)
        image = torch.randn(2, 3, 64, 64)
        expected = network.extract_features(image, subnet)
        assert_close(network.plain_features(extracted, image), expected, rtol=1e-5, atol=1e-5)
        assert expected.cls.shape == (2, network.channels_of(subnet))
        assert expected.cls.std() > 0.01
    assert types == family.plain


@pytest.mark.parametrize('size', SIZES, ids=str)
@torch.no_grad()
def test_other_image_sizes(network, size):
    subnet = network.space.smallest
    image = torch.randn(2, 3, *size)
    found = network.plain_features(plain(network, subnet), image)
    features = network.extract_features(image, subnet)
    rows, columns = network.mask_grid(size)
    assert features.patch.shape == found.patch.shape == (2, rows * columns, network.channels_of(subnet))
    assert_close(features, found, rtol=1e-5, atol=1e-5)
    masked = network.extract_features(image, subnet, random_mask(network, size))
    assert masked.patch.shape == features.patch.shape


@torch.no_grad()
def test_the_largest_is_the_plain_network(network):
    """Weight for weight, but for the mask token."""
    state = dict(network.state_dict())
    del state['mask_token']
    config, extracted = network.extract(network.space.largest)
    assert set(state) == set(extracted) == set(MMPRETRAIN_MODELS.build(config).state_dict())
    assert_close(state, extracted, rtol=0, atol=0)
    assert network.channels_of(network.space.largest) == network.feature_channels


def test_extracted_weights_are_copies(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for subnet in (network.space.smallest, network.space.largest):
        for value in network.extract(subnet)[1].values():
            assert not value.requires_grad
            value.fill_(7)
    assert_close(dict(network.state_dict()), before, rtol=0, atol=0)


def test_cost_is_that_of_the_extracted_network(network):
    subnets = list(network.space)
    costs = [network.cost(subnet) for subnet in subnets]
    for index in (0, len(subnets) // 2, -1):
        assert costs[index].params == sum(param.numel() for param in plain(network, subnets[index]).parameters())
    assert costs[-1] == tuple(map(max, zip(*costs)))
    assert network.cost(network.space.smallest, 128).flops > 3 * network.cost(network.space.smallest, 64).flops


@pytest.fixture(scope='module')
def checkpoint(family, randomise, tmp_path_factory):
    config = dict(
        type='POA',
        backbone=family.config,
        head=dict(type='MultiPrototypeHead', num_prototypes=[8], hidden_channels=16, bottleneck_channels=8),
        data_preprocessor=dict(type='SelfSupDataPreprocessor', mean=[1.5, 2.5, 3.5], std=[4.0, 5.0, 6.0]),
    )
    path = tmp_path_factory.mktemp('checkpoint') / 'poa.pth'
    torch.save({'state_dict': randomise(MODELS.build(config)).state_dict(), 'poa': describe_supernet(config)}, path)
    return path


@pytest.mark.parametrize('format', ['safetensors', 'pth'])
def test_extracted_files_make_a_classifier(checkpoint, network, tmp_path, format):
    chosen = [network.space.smallest, network.space.largest]
    entries = extract_subnets(checkpoint, map(str, chosen), tmp_path, format)
    assert [entry['subnet'] for entry in entries] == list(map(str, chosen))
    assert max(entry['max_abs_diff'] for entry in entries) <= 1e-5
    for entry in entries:
        cfg = Config.fromfile(tmp_path / f'poa_{entry["subnet"]}.py')
        imports = cfg.get('custom_imports', {}).get('imports', [])
        stock = MMPRETRAIN_MODELS.get(cfg.model.backbone.type).__module__.startswith('mmpretrain.')
        assert ('poa_mm' in imports) == (format == 'safetensors' or not stock)
        model = MMPRETRAIN_MODELS.build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor))
        model.init_weights()
        assert sum(param.numel() for param in model.backbone.parameters()) == entry['params']
        model.eval()
        image = torch.randn(2, 3, 64, 64)
        features = load_teacher(checkpoint)[0].extract_features(image, Subnet.parse(entry['subnet']))
        (found,) = model.extract_feat(image)
        assert_close(found, features.cls, rtol=1e-5, atol=1e-5)
        assert model(image).shape == (2, 1000)


def test_checkpoint_is_read_with_its_config_only(checkpoint, family, network):
    backbone, _ = load_teacher(checkpoint, family.config)
    assert list(backbone.space) == list(network.space) == [row.subnet for row in list_subnets(checkpoint)]
    load_teacher(checkpoint, family.config | dict(with_cp=True))  # computes the same
    with pytest.raises(CheckpointError, match='the given config is not that of the checkpoint'):
        load_teacher(checkpoint, family.config | family.change)


# --- the forward pass ---


@torch.no_grad()
def test_default_is_the_whole_network(network):
    image = torch.randn(2, 3, 64, 64)
    assert_close(network(image), network(image, network.space.largest), rtol=0, atol=0)
    whole = network.extract_features(image)
    assert_close(whole, network.extract_features(image, network.space.largest), rtol=0, atol=0)
    assert (whole.patch - network.extract_features(torch.randn(2, 3, 64, 64)).patch).abs().max() > 1e-2


@torch.no_grad()
def test_no_state_is_left_behind(network):
    image = torch.randn(2, 3, 64, 64)
    smallest, *_, largest = network.space
    before = network.extract_features(image, smallest)
    network.extract_features(image, largest, random_mask(network, (64, 64)))
    assert_close(network.extract_features(image, smallest), before, rtol=0, atol=0)


@torch.no_grad()
def test_forward_gives_feature_maps_of_the_plain_network(network):
    image = torch.randn(2, 3, 64, 64)
    for subnet in (network.space.smallest, network.space.largest):
        assert_close(network(image, subnet), plain(network, subnet)(image), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_mask_replaces_what_is_below_it(network):
    image, other = torch.randn(2, 2, 3, 64, 64)
    rows, columns = network.mask_grid((64, 64))
    nothing = torch.zeros(2, rows, columns, dtype=torch.bool)
    left, right = nothing.clone(), nothing.clone()
    left[:, :, : columns // 2] = right[:, :, columns // 2 :] = True
    for subnet in (network.space.smallest, network.space.largest):
        unmasked = network.extract_features(image, subnet)
        on_nothing, on_left, on_right, on_all = (
            network.extract_features(image, subnet, mask.flatten(1)) for mask in (nothing, left, right, left | right)
        )
        assert_close(on_nothing, unmasked, rtol=0, atol=0)
        for pair in ((unmasked, on_left), (unmasked, on_right), (on_left, on_right), (on_left, on_all)):
            assert (pair[0].cls - pair[1].cls).abs().max() > 1e-3
        assert (network.extract_features(other, subnet).cls - unmasked.cls).abs().max() > 1e-3
        blind = network.extract_features(other, subnet, (left | right).flatten(1))
        assert_close(blind, on_all, rtol=0, atol=0)


def test_gradient_stays_in_the_subnet_and_reaches_all_of_it(make):
    """As many weights have a gradient as in the extracted network, and its share of each in the same slice."""
    image = torch.randn(2, 3, 64, 64)
    for subnet in ('smallest', 'largest'):
        network = make()
        subnet = getattr(network.space, subnet)
        extracted = plain(network, subnet)
        for features in (network.extract_features(image, subnet), network.plain_features(extracted, image)):
            (features.cls.pow(3).sum() + features.patch.pow(3).sum()).backward()
        expected = [param.grad for param in extracted.parameters()]
        found = [param.grad for param in network.parameters() if param.grad is not None]
        assert all(grad is not None and grad.any() for grad in expected)
        assert len(found) == len(expected)
        assert sum(map(torch.count_nonzero, found)) == sum(map(torch.count_nonzero, expected))
        assert network.mask_token.grad is None
        masked = network.extract_features(image, subnet, random_mask(network, (64, 64)))
        masked.cls.pow(3).sum().backward()
        assert network.mask_token.grad.any()


@pytest.mark.parametrize('method', ['forward', 'extract_features', 'extract', 'cost', 'channels_of'])
def test_subnet_outside_the_space_is_refused(network, family, method):
    subnet = Subnet.parse(family.outside)
    args = (torch.randn(1, 3, 64, 64), subnet) if method in ('forward', 'extract_features') else (subnet,)
    with pytest.raises(ValueError, match=f'{subnet} is not in the space; valid here: widths'):
        getattr(network, method)(*args)


def test_mask_of_another_shape_is_refused(network):
    rows, columns = network.mask_grid((64, 64))
    for shape in [(1, rows * columns), (2, rows * columns - 1), (2, rows, columns)]:
        with pytest.raises(ValueError, match='does not fit'):
            network.extract_features(torch.randn(2, 3, 64, 64), None, torch.zeros(shape, dtype=torch.bool))


# --- activation checkpointing ---


@pytest.fixture(scope='module', params=[False, True], ids=['float32', 'bfloat16'])
def one_pass(request, family, make):
    """Loss and gradients of one pass in training, the bytes kept for the backward pass, and what each call computed."""

    def run(with_cp, subnet='smallest', grad=True):
        stochastic = {} if family.config['type'] == 'ElasticResNet' else dict(drop_path_rate=0.5)
        network = make(with_cp=with_cp, **stochastic)
        network.train()
        calls = []
        for module in network.modules():
            if isinstance(module, network.block):
                module.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0].shape))
        kept = {}  # by storage, as many tensors may share one
        torch.manual_seed(0)
        image, mask = torch.randn(4, 3, 64, 64), random_mask(network, (64, 64), batch=4)

        def pack(tensor):
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        autocast = torch.autocast('cpu', torch.bfloat16, enabled=request.param)
        with torch.set_grad_enabled(grad), autocast, saved_tensors_hooks(pack, lambda tensor: tensor):
            features = network.extract_features(image, getattr(network.space, subnet), mask)
        weights = {tensor.untyped_storage().data_ptr() for tensor in network.state_dict().values()}
        size = sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in weights)
        kept.clear()
        loss = features.cls.float().pow(3).sum() + features.patch.float().pow(3).sum()
        forward_calls = len(calls)
        grads = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True) if grad else []
        return SimpleNamespace(loss=loss, grads=grads, size=size, forward_calls=forward_calls, calls=calls)

    return run


def test_checkpointing_gives_the_same_to_the_last_bit(one_pass):
    """With stochastic depth, and by ``autograd.grad``, as POA asks for gradients."""
    plain, checkpointed = one_pass(with_cp=False), one_pass(with_cp=True)
    assert sum(grad is not None and bool(grad.any()) for grad in plain.grads) > 20
    assert_close(checkpointed.loss, plain.loss, rtol=0, atol=0)
    assert_close(checkpointed.grads, plain.grads, rtol=0, atol=0)


def test_checkpointing_keeps_less_and_computes_blocks_twice(one_pass):
    plain, checkpointed = one_pass(with_cp=False, subnet='largest'), one_pass(with_cp=True, subnet='largest')
    assert checkpointed.size < plain.size / 2
    assert plain.calls == checkpointed.calls[: plain.forward_calls]
    assert sorted(checkpointed.calls) == sorted(2 * plain.calls)


def test_checkpointing_computes_nothing_twice_without_gradient(one_pass):
    checkpointed = one_pass(with_cp=True, grad=False)
    assert checkpointed.size == 0
    assert len(checkpointed.calls) == len(one_pass(with_cp=False).calls)


def test_checkpointing_does_not_show_in_what_is_extracted(make):
    """So that it can be switched on or off when a run is resumed."""
    networks = make(), make(with_cp=True)
    configs, states = zip(*(network.extract(network.space.smallest) for network in networks))
    assert configs[0] == configs[1]
    assert_close(states[0], states[1], rtol=0, atol=0)


# --- training ---


def test_layer_depth_of_every_parameter(network):
    depths = {name: network.get_layer_depth(f'backbone.{name}', 'backbone.') for name, _ in network.named_parameters()}
    (total,) = {total for _, total in depths.values()}
    layers = {depth for depth, _ in depths.values()}
    assert set(range(total - 1)) <= layers <= set(range(total))
    stem = [name for name in depths if name.startswith(tuple(f'{module}.' for module in network.stem_modules))]
    assert stem and all(depths[name][0] == 0 for name in [*stem, 'mask_token'])
    assert network.get_layer_depth('head.weight', 'backbone.') == (total - 1, total)
    assert network.get_layer_depth('mask_token') == (0, total)


def test_a_step_of_poa(family, network):
    model = MODELS.build(
        dict(
            type='POA',
            backbone=family.config,
            head=dict(type='MultiPrototypeHead', num_prototypes=[16], hidden_channels=32, bottleneck_channels=16),
        )
    )
    model.init_weights()
    model.train()
    optim_wrapper = build_optim_wrapper(
        model,
        dict(
            type='POAOptimWrapper',
            optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.04),
            constructor='POAOptimWrapperConstructor',
            paramwise_cfg=dict(layer_decay_rate=0.9, patch_embed_lr_mult=0.2, flat_decay_mult=0.0),
        ),
    )
    names = {param: name for name, param in model.named_parameters()}
    groups = {names[param]: group for group in optim_wrapper.optimizer.param_groups for param in group['params']}
    depths = network.get_layer_depth('stem')[1]
    stem = tuple(f'backbone.{module}.' for module in network.stem_modules)
    scaled = {name for name, group in groups.items() if group['lr'] == pytest.approx(0.002 * 0.9 ** (depths - 1))}
    assert scaled == {name for name in groups if name.startswith(stem)}

    masks = torch.rand(4, 2, *network.mask_grid((64, 64))) < 0.4
    inputs = [torch.randn(4, 3, size, size) for size in (64, 64, 32, 32)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = model.loss(inputs, [DataSample(mask=mask) for mask in masks])
    assert losses['L_ES1_patch'].isfinite()
    optim_wrapper.update_params(losses['loss'])
    after = model.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    changed = {name for name in groups if not torch.equal(after[name], before[name])}
    assert 'backbone.mask_token' in changed and any(name.startswith(stem) for name in changed)
    assert all(torch.equal(after[name], before[name]) for name in after if name.startswith('teacher.'))


# --- the numbers of the authors' code ---


@pytest.fixture(scope='module')
def golden_network(family, golden):
    """The network of the golden numbers, the numbers, and its subnets by their name there."""
    if family.golden is None:
        pytest.skip('covered by the golden step of POA')
    name, options = family.golden
    tensors, info = golden(name)
    network = MODELS.build(family.config | options)
    public = {f'backbone.{key[6:]}': value for key, value in tensors.items() if key.startswith('model.')}
    state = {key[len('backbone.') :]: value for key, value in convert_public_state_dict(public).items()}
    network.load_state_dict(state, strict=True)
    network.eval()
    subnets = {key: to_subnet(entry['width'], entry['depth']) for key, entry in info['networks'].items()}
    assert set(subnets.values()) == set(network.space)
    return network, tensors, subnets


def to_subnet(width, depth):
    """A subnet as the authors' code names it."""
    return Subnet(width, depth) if isinstance(width, int) else Subnet(width[0], tuple(depth))


@torch.no_grad()
def test_golden_features(golden_network, family):
    network, tensors, subnets = golden_network
    for key, subnet in subnets.items():
        features = network.extract_features(tensors['image'], subnet)
        assert_close(features.cls, tensors[f'{key}.pooled'], rtol=0, atol=1e-5)
        assert_close(features.patch, tensors[f'{key}.region'], rtol=0, atol=1e-5)
        masked = network.extract_features(tensors['image'], subnet, tensors['mask'])
        assert_close(masked.cls, tensors[f'{key}.masked.pooled'], rtol=0, atol=1e-5)
        if not family.golden[1]:
            found = network.plain_features(plain(network, subnet), tensors['image'])
            assert_close(found.cls, tensors[f'{key}.pooled'], rtol=0, atol=1e-5)


def test_golden_multiplicities(golden, family):
    if family.golden is None:
        pytest.skip('covered by the tests of the deck')
    space = MODELS.build(family.config).space
    _, info = golden(family.golden[0])
    for name, copies in info['multiplicity'].items():
        subnet = to_subnet(*literal_eval(name))
        assert space.multiplicity(subnet, family.select_scale) == copies, name
    assert len(info['multiplicity']) == len(space)


# --- the table of options in docs/pretraining.md ---

CLASSES = dict(ViT='ElasticVisionTransformer', Swin='ElasticSwinTransformer', ResNet='ElasticResNet')


def option_table():
    """By option and family: whether docs say that it is taken."""
    text = (Path(__file__).parents[3] / 'docs' / 'pretraining.md').read_text()
    rows = text.split('## Options of the backbones')[1].split('\n##')[0].splitlines()
    cells = [[cell.strip() for cell in row.strip('|').split('|')] for row in rows if row.startswith('|')]
    head, _, *rows = cells
    for names, *answers, _ in rows:
        for name in re.findall(r'`(\w+)`', names):
            yield from ((name, family, answer != 'no') for family, answer in zip(head[1:4], answers))


@pytest.mark.parametrize(('option', 'family', 'taken'), list(option_table()))
def test_docs_say_which_options_are_taken(option, family, taken):
    kind = MODELS.get(CLASSES[family])
    assert (option in inspect.signature(kind.__init__).parameters) is taken


@pytest.mark.parametrize('family', CLASSES)
def test_docs_name_every_option_of_the_stock_class(family):
    kind = MODELS.get(CLASSES[family])
    stock = next(parent for parent in kind.__mro__ if parent.__module__.startswith('mmpretrain'))
    named = {name for name, *_ in option_table()}
    own = {'arch', 'base_channels', 'num_stages'}  # sizes, which docs explain elsewhere
    assert set(inspect.signature(stock.__init__).parameters) - {'self'} - own <= named
