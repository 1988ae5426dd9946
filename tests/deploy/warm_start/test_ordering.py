"""Orders, the images that they are measured on, and their scores before any training."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from PIL import Image

from poa_mm.deploy.warm_start.ordering import ORDERS, images_of, order_weights, score_orders

PIPELINE = [
    dict(type='SafeLoadImageFromFile'),
    dict(type='mmpretrain.Resize', scale=32),
    dict(type='mmpretrain.PackInputs'),
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Twelve images of two classes in folders: one is bright above, one below."""
    folder = tmp_path_factory.mktemp('images')
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 120, (40, 40, 3), dtype=np.uint8)
        pixels[:20] += 120 * (number % 2)
        path = folder / 'ab'[number % 2] / f'{number:02}.png'
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def with_knn(config, folder):
    dataset = dict(type='ImageFolder', data_prefix=str(folder), pipeline=PIPELINE)
    loader = dict(batch_size=4, num_workers=0, dataset=dataset)
    return Config({**config.to_dict(), 'knn': dict(bank=loader, query=loader, ks=(1, 3))})


@pytest.fixture
def config(config_of, folder):
    return with_knn(config_of('vit'), folder)


def network_with_a_useless_half(config):
    """Its first half of channels, heads and hidden units of everything gives nothing."""
    torch.manual_seed(0)
    network = MODELS.build(dict(config.model.backbone))
    network.init_weights()
    network.eval()
    with torch.no_grad():
        for name, param in network.named_parameters():
            if 'gamma' in name:
                param.fill_(1.0)
            elif name.endswith('ffn.layers.1.weight'):
                param[:, :128] = 0
            elif name.endswith('attn.proj.weight'):
                param[:, :32] = 0
            param.mul_(3 if name.endswith('weight') and param.dim() > 1 else 1)
        network.ln1.weight[:32] = 0  # the first channels of the features are always 0
    return network


@pytest.mark.parametrize('order', ['taylor', 'magnitude'])
def test_what_gives_nothing_comes_last(order, config, folder):
    network = network_with_a_useless_half(config)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = order_weights(network, order, images_of(config, folder, 4))
    assert found.max_abs_diff <= 1e-9
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name  # it stays as it is
        assert value.dtype == torch.float32
    for layer in range(3):
        nothing = (found.weights[f'layers.{layer}.ffn.layers.1.weight'] == 0).all(dim=0)
        assert nothing.sum() == 128
        assert nothing[128:].sum() >= (128 if order == 'taylor' else 120)  # weights before a unit count, too
        assert (found.weights[f'layers.{layer}.attn.proj.weight'][:, 32:] == 0).all()
    if order == 'taylor':  # of a channel, weights do not show that the last norm drops it
        assert (found.weights['ln1.weight'][32:] == 0).sum() > (found.weights['ln1.weight'][:32] == 0).sum()
    assert sorted(found.features) == list(range(64))


def test_none_is_none(config):
    network = network_with_a_useless_half(config)
    found = order_weights(network, 'none')
    assert (found.features, found.max_abs_diff) == (None, 0.0)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in found.weights.items())
    with pytest.raises(ValueError, match="order 'size' is not one of taylor, magnitude, none"):
        order_weights(network, 'size')


def test_images(config, folder, tmp_path):
    from_folder, from_bank = (list(images_of(config, path, 5)) for path in (folder, None))
    assert [image.shape for image in from_folder] == [(1, 3, 32, 32)] * 5
    assert len({image.sum().item() for image in from_folder}) == 5
    for mine, other in zip(from_folder, from_bank):
        assert torch.equal(mine, other)
    assert abs(from_folder[0].mean()) < 100  # normalised: (pixels - 2.5) / 5
    assert len(list(images_of(config, folder, 100))) == 12
    with pytest.raises(ValueError, match='there are 12 images, of which 0'):
        images_of(config, folder, 0)
    with pytest.raises(FileNotFoundError, match='missing'):
        images_of(config, tmp_path / 'missing', 5)
    with pytest.raises(ValueError, match="no entry 'knn'"):
        images_of(Config(dict(model=config.model)), folder, 5)


def test_pixels_of_a_data_set_and_files_of_a_folder(config, folder):
    """The pipeline of a data set that holds pixels loads nothing; of a folder, files have to be loaded."""
    for part in ('bank', 'query'):
        config.knn[part].dataset.pipeline = PIPELINE[1:]
    assert len(list(images_of(config, folder, 3))) == 3


def test_scores(config, folder):
    network = network_with_a_useless_half(config)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    scores = score_orders(config, network, None, lambda: images_of(config, folder, 4), progress=False)
    assert list(scores) == list(reversed(ORDERS))
    for found in scores.values():
        assert list(found) == ['32x2', '48x3', '64x3']
        assert all(0 <= score['accuracy'] <= 1 for score in found.values())
    # The whole network is the same in any order.
    assert len({found['64x3']['accuracy'] for found in scores.values()}) == 1
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    scores = score_orders(config, network, ['48x2'], lambda: [], False)
    assert all(len(found) == 1 for found in scores.values())
    with pytest.raises(ValueError, match='1x1 is not in the space'):
        score_orders(config, network, ['1x1'], lambda: [], False)
