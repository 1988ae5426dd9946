from types import SimpleNamespace

import pytest
import torch
from mmpretrain.models import VisionTransformer
from torch import nn
from torch.testing import assert_close

from poa_mm.deploy.downstream import vit
from poa_mm.engine.hooks import ActivationCheckpointHook


class Model(nn.Module):
    def __init__(self, frozen_stages):
        super().__init__()
        arch = dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32)
        self.backbone = VisionTransformer(arch=arch, img_size=16, patch_size=4, frozen_stages=frozen_stages)


@pytest.fixture
def models():
    """The same network with and without checkpointing, and how often the blocks of the former have run."""

    def make(frozen_stages):
        plain, saving = Model(frozen_stages), Model(frozen_stages)
        saving.load_state_dict(plain.state_dict())
        runs = []
        for block in saving.backbone.layers:
            block.register_forward_hook(lambda *args: runs.append(1))
        ln1 = saving.backbone.layers[2].ln1
        ln1.register_forward_hook(lambda *args: runs.append('again'))
        ActivationCheckpointHook().before_train(SimpleNamespace(model=saving))
        return plain, saving, runs

    return make


@pytest.mark.parametrize('frozen_stages', [-1, 1, 2])
def test_gradients_are_the_same_behind_frozen_blocks_too(models, frozen_stages):
    plain, saving, runs = models(frozen_stages)
    images = torch.randn(2, 3, 16, 16)
    for model in (plain, saving):
        model.train()
        model.backbone(images)[0].square().sum().backward()
    assert runs.count('again') == 2  # once more in the backward pass
    theirs = dict(saving.named_parameters())
    for name, param in plain.named_parameters():
        assert (param.grad is None) == (theirs[name].grad is None), name
        if param.grad is not None:
            assert_close(theirs[name].grad, param.grad)
    assert any(param.grad is not None for param in saving.backbone.layers[2].parameters())
    assert plain.state_dict().keys() == saving.state_dict().keys()


def test_evaluation_computes_once(models):
    _, saving, runs = models(-1)
    with torch.no_grad():
        saving.backbone(torch.randn(1, 3, 16, 16))
    assert runs.count('again') == 1


def test_a_name_that_the_model_lacks():
    with pytest.raises(ValueError, match=r"no 'backbone.stages'; its lists of blocks are backbone.layers"):
        ActivationCheckpointHook('backbone.stages').before_train(SimpleNamespace(model=Model(-1)))


def test_the_config_function_says_how():
    with pytest.raises(ValueError, match=r'no with_cp; .*ActivationCheckpointHook'):
        vit('384x12', with_cp=True)
