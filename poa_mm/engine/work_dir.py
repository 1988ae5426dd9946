"""A folder has one run at a time that writes its checkpoints and logs there."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from mmengine.logging import print_log

from poa_mm.main_process import on_main
from poa_mm.mistakes import UserError

LOCK = 'run.lock'
SIGN_OF_LIFE = 20.0  # seconds between two touches of the file
DEAD = 300.0  # seconds without, after which a run on another machine counts as ended
# Of these, a lock that one machine holds may not be seen by another.
NETWORK = ('nfs', 'cifs', 'smb', 'lustre', 'gpfs', 'beegfs', 'ceph', 'glusterfs', 'afs', '9p', 'virtiofs', 'fuse')
UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

_held: set[Path] = set()  # by this process, whose own locks the system grants twice


class WorkDirError(UserError, ValueError):
    """A folder belongs to another run."""


class WorkDir:
    """Holds a folder for one run, from ``with`` to its end; rank 0 does so for all ranks.

    ``run.lock`` in the folder names host and process. The system drops the lock when the process ends, however it
    ends, so what a killed run has left is taken over. On a network file system, where another machine's lock may not
    be seen, its owner touches the file every 20 s, and one that has not for 5 minutes counts as ended.

    Args:
        folder: The work dir of a run; made if it is missing.

    Raises:
        WorkDirError: At ``with``, on all ranks, if the folder belongs to another run; names it.
    """

    def __init__(self, folder: str | os.PathLike):
        self.path = Path(folder).absolute() / LOCK
        self._file: int | None = None
        self._stop = threading.Event()

    def __enter__(self) -> WorkDir:
        on_main(self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        self._stop.set()
        with suppress(OSError):
            self.path.unlink()  # before it is let go: who opens it later finds another file
        os.close(self._file)
        self._file = None
        _held.discard(self.path)

    def _take(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        path = self.path.resolve()
        if path in _held:
            raise WorkDirError(f'{path.parent} belongs to another run of this process')
        file, locks = self._open()
        try:
            owner = _read(file)
            if owner and not _has_ended(owner, self.path, locks):
                raise WorkDirError(self._refusal(owner))
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(_me()).encode(), 0)
        except BaseException:
            os.close(file)
            raise
        if owner:
            _say(f'{self.path}: {_name(owner)} has ended without removing it; the folder is taken over')
        if kind := network_file_system(self.path.parent):
            _say(
                f'{self.path.parent} is on a network file system ({kind}): a run on another machine is recognised by '
                f'{LOCK}, which it touches every {SIGN_OF_LIFE:.0f} s; {DEAD:.0f} s without count as its end'
            )
        self.path, self._file = path, file
        _held.add(path)
        threading.Thread(target=self._live, daemon=True).start()

    def _open(self) -> tuple[int, bool]:
        """The file, locked, and whether its system has locks."""
        import fcntl

        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                owner = _read(file)
                if error.errno in UNSUPPORTED:
                    return file, False
                os.close(file)
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise WorkDirError(self._refusal(owner)) from error
                raise
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(self.path)):
                    return file, True
            os.close(file)  # its owner has removed it meanwhile

    def _refusal(self, owner: dict[str, Any]) -> str:
        return (
            f'{self.path.parent} belongs to another run: {_name(owner)}. Stop that one, or give this one a folder of '
            f'its own: --work-dir DIR. (If it is certain that it has ended, remove {self.path}.)'
        )

    def _live(self) -> None:
        while not self._stop.wait(SIGN_OF_LIFE):
            with suppress(OSError):
                os.utime(self.path)


def _me() -> dict[str, Any]:
    return dict(
        host=socket.gethostname(),
        process=os.getpid(),
        since=time.strftime('%Y-%m-%d %H:%M:%S'),
        boot=_boot(),
        birth=_birth(os.getpid()),
    )


def _boot() -> str | None:
    """What tells this machine, since it was started, from all others."""
    with suppress(OSError):
        return Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    return None


def _birth(process: int) -> str | None:
    """When a process was started: its number may be given again."""
    with suppress(OSError, IndexError):
        return Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[19]
    return None


def _read(file: int) -> dict[str, Any]:
    """What the file says of its owner; nothing if it is blank or says something else."""
    with suppress(ValueError):
        owner = json.loads(os.pread(file, 10_000, 0))
        if isinstance(owner, dict) and type(owner.get('process')) is int:
            return owner
    return {}


def _name(owner: dict[str, Any]) -> str:
    if not owner:
        return 'a process that has not yet said its name'
    return f'process {owner["process"]} on {owner.get("host")}, since {owner.get("since")}'


def _has_ended(owner: dict[str, Any], path: Path, locks: bool) -> bool:
    """Whether the run is over that the file names, which is not locked as far as this machine sees."""
    boot = _boot()
    same_machine = owner.get('boot') == boot if boot else owner.get('host') == socket.gethostname()
    if same_machine:
        return locks or not _is_alive(owner)
    if locks and network_file_system(path.parent) is None:
        return True  # nobody else can reach this disk: the folder, or its machine's name, is another than it was
    return _silent_for(path) > DEAD


def _is_alive(owner: dict[str, Any]) -> bool:
    try:
        os.kill(owner['process'], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return owner.get('birth') == _birth(owner['process'])


def _silent_for(path: Path) -> float:
    """Seconds since the file was touched, by the clock of its file system."""
    probe = path.with_name(f'.{path.name}.{socket.gethostname()}.{os.getpid()}')
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink()


def network_file_system(folder: Path) -> str | None:
    """The kind of file system of a folder if other machines may share it; ``'unknown'`` where that cannot be told."""
    try:
        lines = Path('/proc/self/mountinfo').read_text().splitlines()
    except OSError:
        return 'unknown'
    folder, mounts = folder.resolve(), {}
    for line in lines:  # ... MOUNT_POINT options - TYPE ..., the later ones over the earlier ones
        first, _, second = line.partition(' - ')
        mounts[Path(first.split()[4].encode().decode('unicode_escape'))] = second.split()[0]
    kind = mounts[max((mount for mount in mounts if folder.is_relative_to(mount)), key=lambda mount: len(mount.parts))]
    return kind if kind.startswith(NETWORK) and kind != 'fuseblk' else None  # the last one is a disk


def _say(text: str) -> None:
    print_log(text, logger='current', level=logging.WARNING)
