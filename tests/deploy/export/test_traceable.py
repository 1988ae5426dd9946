import pytest
import torch

from poa_mm.deploy.export.traceable import traceable, window_indices

CASES = [
    ('vit', '48x3', {}),
    ('vit', '32x2', dict(layer_scale_init_value=0, interpolate_mode='bilinear')),
    ('swin', '24x4', {}),
    ('swin', '16x2', {}),
    ('swin', '24x3', dict(window_size=4)),  # neighbours that are both shifted, maps smaller than a window
    ('swin', '32x4', dict(window_size=7, img_size=224, out_indices=(1, 3))),
    ('resnet', '96x1-2-1-1', {}),
]


@pytest.mark.parametrize(('family', 'subnet', 'options'), CASES)
def test_outputs_are_those_of_the_stock_network_to_the_last_bit(family, subnet, options, export_network):
    network = export_network(family, subnet, 'bgr', **options)
    for dynamic_size, size in ((False, network.image_size), (True, network.image_size), (True, (96, 160))):
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            found = traceable(network, dynamic_size)(images)
        for mine, stock in zip(found, network.outputs(images)):
            torch.testing.assert_close(mine, stock, rtol=0, atol=1e-6)


@pytest.mark.parametrize('shift', [0, 2])
@pytest.mark.parametrize('grid', [(8, 8), (6, 9), (3, 2)])
def test_window_indices(grid, shift):
    source, target, region = window_indices(grid, 4, shift)
    cells = grid[0] * grid[1]
    assert len(source) % 16 == 0
    assert sorted(source[source < cells].tolist()) == list(range(cells))
    assert (source[target] == torch.arange(cells)).all()
    assert (region is None) == (shift == 0)
    rows = torch.nn.functional.pad(torch.arange(cells).view(grid), (0, -grid[1] % 4, 0, -grid[0] % 4), value=cells)
    rolled = rows.roll((-shift, -shift), (0, 1))
    windows = rolled.unfold(0, 4, 4).unfold(1, 4, 4).reshape(-1)
    assert (source == windows).all()
