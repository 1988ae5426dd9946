"""Start POA from weights that exist: networks of other libraries, extracted subnets, checkpoints of POA.

- ``files``, ``layouts``, ``source``: what a file holds, whose names those are, and the network of mmpretrain that
  computes the same.
- ``fit``: the weights as those of the config's backbone. ``references``: whether it computes what it should.
- ``run``: all of it, and the checkpoint that is written.
"""

from .run import WarmStart, warm_start

__all__ = ['WarmStart', 'warm_start']
