"""A classifier that can be given the weights of its backbone alone."""

from __future__ import annotations

from typing import Any

from mmengine.registry import MODELS
from mmpretrain.models.classifiers import ImageClassifier

from poa_mm.checkpoint import Resizing, check_state
from poa_mm.checkpoint.geometry import window_of


@MODELS.register_module()
class SubnetClassifier(ImageClassifier):
    """mmpretrain's ``ImageClassifier`` for extracted subnets.

    It differs in what it loads: a state dict with the names of a backbone (``layers.0.ln1.weight``), as extraction
    writes them, goes into the backbone. mmpretrain's own class knows ``backbone.layers.0.ln1.weight`` only, and
    ``mmpretrain.get_model(CONFIG, pretrained=FILE)`` would leave it with random weights. Checkpoints of the whole
    classifier are loaded as ever. The arguments are those of ``ImageClassifier``.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._register_load_state_dict_pre_hook(self._take_backbone)

    def _take_backbone(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Move the weights of a backbone to where they belong.

        Raises:
            CheckpointError: If they are not those of this backbone.
        """
        own = self.state_dict()
        given = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
        expected = dict(self.backbone.state_dict())
        if not expected.keys() & given.keys() or any(key in own for key in given):
            return
        # mmpretrain's own resizing of biases needs an old SciPy; that of position embeddings still runs.
        given = Resizing(window=window_of(self.backbone)).apply(given, None)
        resized = {key: expected[key] for key in given if key.endswith('pos_embed') and key in expected}
        check_state(expected, given | resized, 'the file, of a backbone alone,')
        for key, value in given.items():
            del state_dict[f'{prefix}{key}']
            state_dict[f'{prefix}backbone.{key}'] = value
