"""Small supernets, and checkpoints of them."""

import torch

VIT = dict(  # of the sizes of the golden `vit_step`
    type='ElasticVisionTransformer',
    arch=dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=256),
    widths=[32, 48, 64],
    depths=[2, 3, 4],
    img_size=64,
    layer_scale_init_value=0.5,
)


def build_supernet(config, randomise):
    """An elastic backbone with random weights, the same in every call."""
    from mmengine.registry import MODELS

    import poa_mm.models  # noqa: F401 (registers)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomise(MODELS.build(config))


def save_supernet(backbone, config, data_preprocessor, path):
    """Write a checkpoint whose teacher is an elastic backbone; returns its path."""
    from poa_mm.checkpoint import describe_supernet

    state = {f'teacher.backbone.{key}': value for key, value in backbone.state_dict().items()}
    description = describe_supernet(dict(backbone=config, data_preprocessor=data_preprocessor))
    torch.save({'state_dict': state, 'poa': description}, path)
    return path
