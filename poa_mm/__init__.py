"""POA for OpenMMLab: pre-train one network, get every size of it.

Importing the package registers its models, datasets, hooks and optimizer wrappers, so that
``custom_imports = dict(imports=['poa_mm'])`` is all that a config needs.
"""

from .compat import check_versions
from .version import __version__

check_versions()

from . import datasets, engine, models  # noqa: E402

__all__ = ['__version__', 'datasets', 'engine', 'models']
