"""Shards of every kind, made on the spot."""

import io
import tarfile


def write_shard(path, files, format=tarfile.GNU_FORMAT):
    """A tar file of ``(name, bytes)`` pairs."""
    with tarfile.open(path, 'w', format=format) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path
