"""Lets ``init_cfg=dict(type='Pretrained', checkpoint='x.safetensors')`` and ``load_from`` read safetensors.

mmengine reads pickled checkpoints only. Importing poa_mm, for instance with a config's
``custom_imports``, registers a loader for local files called ``*.safetensors``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.runner import CheckpointLoader

from poa_mm.checkpoint import check_finite, read_checkpoint


# mmengine matches the pattern against the beginning of the path; 'http://' and its like go first.
@CheckpointLoader.register_scheme(r'(?s).*\.safetensors$', force=True)
def load_from_safetensors(filename: str, map_location: Any = None) -> dict[str, Any]:
    """``{'state_dict': tensors, 'meta': metadata}`` of a safetensors file.

    Args:
        filename: Path of the file.
        map_location: Ignored: the tensors are on the CPU, from where they are copied into a model.

    Raises:
        CheckpointError: If the file is missing or broken, or holds NaN or infinity.
    """
    content = read_checkpoint(Path(filename).expanduser())
    check_finite(content['state_dict'], filename)
    return content
