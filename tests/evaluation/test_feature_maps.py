import cv2
import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS

from poa_mm.checkpoint import CheckpointError
from poa_mm.deploy.extract import TOLERANCE, extract_subnets
from poa_mm.elastic import Subnet
from poa_mm.evaluation.feature_maps import (
    Network,
    class_attention,
    compute_maps,
    draw_feature_maps,
    pca_colours,
    read_images,
    read_network,
    save_feature_maps,
    subnet_networks,
)

PREPROCESSOR = dict(mean=[120.0, 110.0, 100.0], std=[60.0, 55.0, 50.0], to_rgb=True)
SIZE = (64, 96)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), dtype=np.uint8)


@pytest.fixture
def photo(tmp_path):
    """A blue, a green and a red third, from left to right."""
    path = tmp_path / 'photo.png'
    cv2.imwrite(str(path), np.eye(3, dtype=np.uint8).repeat(40, axis=0)[None].repeat(40, axis=0) * 255)
    return path


@pytest.fixture
def checkpoint(elastic_vit, tmp_path):
    backbone = elastic_vit()
    arch = dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256)
    config = dict(
        type='ElasticVisionTransformer',
        arch=arch,
        widths=(32, 48, 64),
        depths=(2, 3, 4),
        aliases={'small': '32x2'},
        img_size=64,
        layer_scale_init_value=0.5,
    )
    state = {f'teacher.backbone.{name}': value for name, value in backbone.state_dict().items()}
    path = tmp_path / 'poa.pth'
    poa = {'format': 1, 'backbone': config, 'data_preprocessor': PREPROCESSOR}
    torch.save({'state_dict': state, 'poa': poa}, path)
    return path


@pytest.fixture
def resnet():
    """A network without tokens."""
    config = dict(type='ResNet', depth=18, stem_channels=4, base_channels=4)
    return Network('resnet', config, MODELS.build(dict(config)).state_dict(), {})


def network_of(backbone, subnet=None, preprocessor=PREPROCESSOR):
    return Network(str(subnet), *backbone.extract(subnet or backbone.space.largest), preprocessor)


def inputs_of(images):
    rgb = torch.from_numpy(images[..., ::-1].copy()).float()
    return ((rgb - torch.tensor(PREPROCESSOR['mean'])) / torch.tensor(PREPROCESSOR['std'])).permute(0, 3, 1, 2)


def attention_by_hook(model, run, head_dim):
    """Attention of the last block by plain torch, ``(B, heads, 1 + N, 1 + N)``."""
    seen = []
    with model.layers[-1].attn.qkv.register_forward_hook(lambda module, args, out: seen.append(out)):
        run()
    (qkv,) = seen
    query, key, _ = qkv.chunk(3, dim=-1)  # (B, 1 + N, D)
    heads = [
        torch.softmax(torch.bmm(q, k.transpose(1, 2)) / head_dim**0.5, dim=-1)
        for q, k in zip(query.split(head_dim, dim=-1), key.split(head_dim, dim=-1))
    ]
    return torch.stack(heads, dim=1)


# --- maps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('subnet', [Subnet(32, 2), Subnet(48, 3), Subnet(64, 4)])
@torch.no_grad()
def test_maps_are_those_of_the_supernet_and_of_the_extracted_network(elastic_vit, images, subnet):
    backbone = elastic_vit()
    for block in backbone.layers:
        block.attn.qkv.weight *= 3  # attention that is far from even
    network = network_of(backbone, subnet)
    maps = compute_maps(network, images)
    grid = (4, 6)
    assert maps.features.shape == (3, subnet.width, *grid)
    assert maps.attention.shape == (3, subnet.width // 16, *grid)
    assert maps.attention.std() > 0.01

    inputs = inputs_of(images)
    features = backbone.extract_features(inputs, subnet).patch.transpose(1, 2).unflatten(-1, grid)
    torch.testing.assert_close(maps.features, features, rtol=0, atol=TOLERANCE)

    stock = MODELS.build(dict(network.config))
    stock.load_state_dict(network.state)
    stock.eval()
    for model, run in ((backbone, lambda: backbone(inputs, subnet)), (stock, lambda: stock(inputs))):
        attention = attention_by_hook(model, run, head_dim=16)
        torch.testing.assert_close(attention.sum(-1), torch.ones(3, subnet.width // 16, 25))
        expected = attention[:, :, 0, 1:].unflatten(-1, grid)
        torch.testing.assert_close(maps.attention, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_class_attention_is_what_the_block_uses(elastic_vit):
    """It sums to one over all tokens, and applied to the values it gives the output of the attention."""
    config, state = elastic_vit().extract(Subnet(48, 3))
    stock = MODELS.build(dict(config))
    stock.load_state_dict(state)
    stock.eval()
    block = stock.layers[1]
    x = torch.randn(2, 17, 48)
    attention = class_attention(block, x)
    assert attention.shape == (2, 3, 17)
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 3))

    attn = block.attn
    value = attn.qkv(block.ln1(x)).chunk(3, dim=-1)[2].unflatten(-1, (3, 16))
    output = attn.gamma1(attn.proj(torch.einsum('bhn,bnhd->bhd', attention, value).flatten(1)))
    torch.testing.assert_close(output, attn(block.ln1(x))[:, 0])


def test_a_network_without_class_token_has_no_attention(resnet, elastic_vit, images):
    maps = compute_maps(resnet, images)
    assert maps.features.shape == (3, 32, 2, 3)
    assert maps.attention is None
    torch.testing.assert_close(compute_maps(resnet, images[:1]).features, maps.features[:1], msg='whatever the batch')

    config, state = elastic_vit().extract(Subnet(32, 2))
    state = {name: value for name, value in state.items() if name != 'cls_token'}
    state['pos_embed'] = state['pos_embed'][:, 1:]
    maps = compute_maps(Network('tokens', config | dict(with_cls_token=False), state, PREPROCESSOR), images)
    assert maps.features.shape == (3, 32, 4, 6)
    assert maps.attention is None


@torch.no_grad()
def test_a_grey_network_gets_grey_images(elastic_vit, images):
    backbone = elastic_vit(in_channels=1)
    maps = compute_maps(network_of(backbone, preprocessor=dict(mean=[70.0], std=[90.0])), images)
    grey = np.stack([cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in images])
    features = backbone.extract_features((torch.from_numpy(grey)[:, None].float() - 70) / 90).patch
    torch.testing.assert_close(maps.features.flatten(2).transpose(1, 2), features, rtol=1e-4, atol=1e-5)


def test_what_is_wrong_with_a_network_is_named(elastic_vit, images):
    network = network_of(elastic_vit())
    with pytest.raises(ValueError, match='image size 64x90 is not a multiple of the patches of None, 16x16'):
        compute_maps(network, images[:, :, :90])
    with pytest.raises(ValueError, match='5 channels; only 1 and 3 can be shown'):
        compute_maps(network_of(elastic_vit(in_channels=5)), images)
    with pytest.raises(ValueError, match=r'cannot build the backbone of None.*NoSuchNetwork'):
        compute_maps(network._replace(config=dict(type='NoSuchNetwork')), images)
    with pytest.raises(CheckpointError, match=r'missing layers.3.attn.proj.bias'):
        state = {name: value for name, value in network.state.items() if name != 'layers.3.attn.proj.bias'}
        compute_maps(network._replace(state=state), images)
    with pytest.raises(ValueError, match='features of None are not finite'):
        state = network.state | {'ln1.weight': torch.full((64,), torch.nan)}
        compute_maps(network._replace(state=state), images)


# --- networks ------------------------------------------------------------------------------------


def test_subnets_of_a_checkpoint(checkpoint, elastic_vit, images):
    networks = subnet_networks(checkpoint, ['small', '64x4', '32x2', Subnet(48, 3)])
    assert [network.name for network in networks] == ['32x2', '64x4', '48x3'], 'each once'
    assert subnet_networks(checkpoint, ['small'])[0].name == 'small (32x2)'
    assert [network.name for network in subnet_networks(checkpoint)] == ['32x2', '64x4']
    expected = compute_maps(network_of(elastic_vit(), Subnet(48, 3)), images)
    torch.testing.assert_close(compute_maps(networks[2], images), expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match='40x2 is not in the space'):
        subnet_networks(checkpoint, ['40x2'])


@pytest.mark.parametrize('format', ['safetensors', 'pth'])
def test_an_extracted_network_has_the_maps_of_its_subnet(checkpoint, tmp_path, images, format):
    extract_subnets(checkpoint, ['48x3'], tmp_path / 'subnets', format=format, verify=False)
    network = read_network(tmp_path / 'subnets' / 'poa_48x3.py')
    assert network.name == 'poa_48x3'
    expected = compute_maps(subnet_networks(checkpoint, ['48x3'])[0], images)
    torch.testing.assert_close(compute_maps(network, images), expected, rtol=0, atol=0)


def test_a_config_without_weights_is_named(tmp_path):
    path = tmp_path / 'plain.py'
    path.write_text("model = dict(backbone=dict(type='VisionTransformer'))\n")
    with pytest.raises(ValueError, match=r"plain.py has no 'model.backbone.init_cfg.checkpoint'"):
        read_network(path)
    path.write_text("model = dict(backbone=dict(type='ResNet', init_cfg=dict(type='Pretrained', checkpoint='gone')))\n")
    with pytest.raises(CheckpointError, match='gone'):
        read_network(path)


# --- images --------------------------------------------------------------------------------------


def test_images_are_resized_to_cover_and_cropped_to_the_centre(photo):
    (image,) = read_images([photo], (40, 40))
    np.testing.assert_array_equal(image, np.broadcast_to([0, 255, 0], (40, 40, 3)), 'the middle third, blue first')
    (image,) = read_images([photo], (20, 60))
    assert image.shape == (20, 60, 3)
    np.testing.assert_array_equal(image[:, [0, 30, 59]].argmax(-1), np.broadcast_to([0, 1, 2], (20, 3)))
    assert read_images([photo, photo], (33, 1)).shape == (2, 33, 1, 3)


def test_what_is_no_image_is_named(tmp_path, photo):
    (tmp_path / 'text.png').write_text('no image')
    (tmp_path / 'empty.png').touch()
    for name in ('text.png', 'empty.png'):
        with pytest.raises(ValueError, match=f'{name} is not an image'):
            read_images([photo, tmp_path / name], (8, 8))
    with pytest.raises(FileNotFoundError, match=r'gone\.png'):
        read_images([tmp_path / 'gone.png'], (8, 8))


# --- colours -------------------------------------------------------------------------------------


def planted(strengths, channels, grid=(6, 8), seed=0):
    """Features of two images that vary in three patterns of the given strengths, in random directions."""
    rows, columns = grid
    y = torch.linspace(-1, 1, rows).view(1, rows, 1).expand(2, rows, columns)
    x = torch.linspace(-1, 1, columns).view(1, 1, columns).expand(2, rows, columns)
    patterns = torch.stack([x, y, torch.tensor([-1.0, 1.0]).view(2, 1, 1).expand(2, rows, columns)])
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(channels, 3, generator=generator)).Q
    features = torch.einsum('dk,k,kbyx->bdyx', directions, torch.tensor(strengths), patterns)
    return features + 10 * torch.randn(channels, 1, 1, generator=generator)  # off the centre


def test_colours_agree_between_networks():
    """Whatever the order and the sign of their components, and on another grid."""
    features = [
        planted([9.0, 3.0, 1.0], 16),
        planted([1.0, -3.0, 9.0], 32, seed=1),
        planted([-3.0, 9.0, 1.0], 8, grid=(3, 4), seed=2),
    ]
    first, second, coarse = pca_colours(features)
    assert first.shape == second.shape == (2, 6, 8, 3)
    assert coarse.shape == (2, 3, 4, 3)
    np.testing.assert_allclose(first, second, atol=1e-4)
    halved = first.reshape(2, 3, 2, 4, 2, 3).mean(axis=(2, 4))
    for channel in range(3):
        assert np.corrcoef(halved[..., channel].ravel(), coarse[..., channel].ravel())[0, 1] > 0.99
    for image in range(2):
        assert np.ptp(first[image], axis=(0, 1)).max() > 0.9, 'colours differ within an image'
    np.testing.assert_array_equal(pca_colours(features)[1], second)


def test_one_patch_out_of_range_does_not_darken_the_rest():
    features = planted([9.0, 3.0, 1.0], 16, grid=(12, 12))
    (expected,) = pca_colours([features])
    features[0, :, 0, 0] += 10 * (features[0, :, 0, 0] - features[0, :, 0, -1])  # far out along the first component
    (colours,) = pca_colours([features])
    assert colours.min() == 0 and colours.max() == 1
    np.testing.assert_allclose(np.ptp(colours[1], axis=(0, 1)), np.ptp(expected[1], axis=(0, 1)), atol=0.1)


def test_colours_of_next_to_nothing():
    (colours,) = pca_colours([torch.ones(1, 8, 4, 4)])
    assert np.isfinite(colours).all()
    with pytest.raises(ValueError, match='at least 4 patches, got 2'):
        pca_colours([torch.rand(2, 8, 1, 1)])


def test_networks_of_several_patch_sizes_in_one_picture(elastic_vit, images):
    supernet = elastic_vit(patch_sizes=(8, 16))
    networks = [network_of(supernet, Subnet(32, 2, patch)) for patch in (8, None)]
    maps = [compute_maps(network, images) for network in networks]
    height, width = images.shape[1:3]
    assert [tuple(m.features.shape[2:]) for m in maps] == [(height // p, width // p) for p in (8, 16)]
    assert all(m.attention.shape[2:] == m.features.shape[2:] for m in maps)
    figure = draw_feature_maps(['a', 'b', 'c'], images, [network.name for network in networks], maps)
    titles = [axes.get_title(loc='left') for axes in np.reshape(figure.axes, (3, 5))[0]]
    assert titles == ['\nimage', '32x2p8\nPCA', '\nattention', '32x2\nPCA', '\nattention']


# --- the picture ---------------------------------------------------------------------------------


def test_a_row_for_each_image_and_columns_for_each_network(elastic_vit, resnet, images):
    networks = [network_of(elastic_vit(), Subnet(32, 2)), resnet, network_of(elastic_vit())]
    maps = [compute_maps(network, images) for network in networks]
    figure = draw_feature_maps(['a.png', 'b.png', 'c' * 40], images, [network.name for network in networks], maps)
    cells = np.reshape(figure.axes, (3, 6))
    titles = [axes.get_title(loc='left') for axes in cells[0]]
    assert titles == ['\nimage', '32x2\nPCA', '\nattention', 'resnet\nPCA', 'None\nPCA', '\nattention']
    labels = [axes.get_ylabel() for axes in cells[:, 0]]
    assert labels[:2] == ['a.png', 'b.png'] and len(labels[2]) == 26
    np.testing.assert_array_equal(cells[1, 0].images[0].get_array(), images[1, ..., ::-1])

    colours = pca_colours(network.features for network in maps)
    np.testing.assert_array_equal(cells[2, 1].images[0].get_array(), colours[0][2])
    # Half image, half colour of the mean attention: dark red where it is largest, dark blue where it is least.
    attention = maps[0].attention[1].mean(0).flatten()
    colour = 2 * cells[1, 2].images[0].get_array().astype(int) - images[1, ..., ::-1]
    patches = colour.reshape(4, 16, 6, 16, 3).swapaxes(1, 2).reshape(24, -1, 3)
    assert abs(patches[attention.argmax()] - [128, 0, 0]).max() <= 16
    assert abs(patches[attention.argmin()] - [0, 0, 128]).max() <= 16


def test_the_picture_is_written_as_a_whole(checkpoint, photo, tmp_path, monkeypatch):
    networks = subnet_networks(checkpoint, ['small'])
    out = save_feature_maps(networks, [photo, str(photo)], tmp_path / 'new' / 'features.png', image_size=(32, 64))
    picture = cv2.imread(str(out))
    height, width = picture.shape[:2]
    assert 2 < width / height < 3, 'two rows of three pictures, each twice as wide as high'
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20, 'not blank'

    def fail(self, path, **options):
        path.write_bytes(b'the first half')
        raise OSError('disk full')

    before = out.read_bytes()
    monkeypatch.setattr('matplotlib.figure.Figure.savefig', fail)
    with pytest.raises(OSError, match='disk full'):
        save_feature_maps(networks, [photo], out)
    assert out.read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == ['features.png']


def test_what_cannot_be_shown_is_said_before_anything_is_written(checkpoint, photo, tmp_path):
    networks = subnet_networks(checkpoint)
    out = tmp_path / 'new' / 'features.png'
    for arguments, message in [
        ((networks, [photo], out.with_suffix('.jpg')), 'features.jpg is not a .png file'),
        (([], [photo], out), 'needs a network and an image'),
        ((networks, [], out), 'needs a network and an image'),
        ((networks, [photo], out, 0), 'image size 0x0 is not positive'),
        ((networks, [photo], out, 40), 'image size 40x40 is not a multiple of the patches of 32x2'),
        ((networks, [photo], out, 16), 'at least 4 patches, got 1'),
    ]:
        with pytest.raises(ValueError, match=message):
            save_feature_maps(*arguments)
    assert not out.parent.exists()
