"""POA for OpenMMLab: pre-train one network, get every size of it.

Importing the package registers its models, datasets, metrics, hooks, optimizer wrappers and the reading of
safetensors, so that ``custom_imports = dict(imports=['poa_mm'])`` is all that a config needs.
"""

from .compat import check_versions, without_notices
from .version import __version__

check_versions()

with without_notices():
    from . import datasets, engine, evaluation, models
    from .deploy import safetensors_loader  # noqa: F401

__all__ = ['__version__', 'apis', 'datasets', 'engine', 'evaluation', 'models']


def __getattr__(name: str):
    """``poa_mm.apis``, imported when it is first asked for."""
    if name == 'apis':
        from importlib import import_module

        return import_module('.apis', __name__)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
