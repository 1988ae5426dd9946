"""One export from beginning to end: check, write aside, verify, move into place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from poa_mm.checkpoint import file_sha256
from poa_mm.compat import is_at_least
from poa_mm.deploy.manifest import add_manifest, read_manifest
from poa_mm.deploy.staged_files import StagedFiles
from poa_mm.deploy.stock import is_extracted, open_networks
from poa_mm.elastic import Subnet
from poa_mm.mistakes import check_out_dir
from poa_mm.version import __version__

from . import to_huggingface, to_onnx, to_timm, to_torch
from .network import ExportError, ExportNetwork
from .options import ExportOptions

FORMATS: Mapping[str, ModuleType] = dict(timm=to_timm, huggingface=to_huggingface, onnx=to_onnx, torch=to_torch)
INSTALL = "pip install 'poa_mm[export]'"


def export_subnets(
    checkpoint: str | os.PathLike,
    subnets: str | Subnet | Iterable[Subnet | str] | None,
    to: str | Iterable[str],
    out_dir: str | os.PathLike,
    options: ExportOptions | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Write subnets in other formats, each verified in a process that has neither poa_mm nor OpenMMLab.

    All files appear together, when everything has succeeded, or none does. Those of the same name are overwritten.

    Args:
        checkpoint: Checkpoint of a pre-training run or of ``import_public_checkpoint``, or the config ``poa_*.py`` of
            an extracted subnet.
        subnets: ``'384x12'``, aliases or :class:`Subnet`. Default: None, for the config of an extracted subnet only.
        to: Formats, of ``FORMATS``.
        out_dir: Folder to write to, made if it is missing.
        options: What else to choose. Default: that of :class:`ExportOptions`.
        progress: Called with what is being done. Default: says nothing.

    Returns:
        The manifest's entries, one for each file or folder of a format.

    Raises:
        CheckpointError: If the checkpoint cannot be read, or the folder holds subnets of another one.
        ExportError: If a format is unknown, a library is missing or too old, a format cannot hold a subnet, or an
            export does not compute what the subnet does. It is a ``ValueError``.
        OSError: If ``out_dir`` cannot be written to.
        ValueError: If a subnet is not in the checkpoint's space.
    """
    options = options or ExportOptions()
    formats = _checked_formats(to, options)
    check_out_dir(out_dir)
    if subnets is None and not is_extracted(checkpoint):
        raise ExportError(f"{checkpoint}: name the subnets to export, such as '384x12'")
    if subnets is not None and not (subnets := [subnets] if isinstance(subnets, (str, Subnet)) else list(subnets)):
        raise ExportError("no subnet to export; name some, such as '384x12'")
    networks = [ExportNetwork(stock) for stock in open_networks(checkpoint, subnets)]
    for network in networks:
        for format in formats:
            FORMATS[format].check(network, options)
    origin = dict(source=networks[0].stock.source, source_sha256=networks[0].stock.source_sha256, poa_mm=__version__)
    manifest = read_manifest(out_dir, origin)
    with tempfile.TemporaryDirectory(prefix='.export_', dir=_existing(Path(out_dir))) as aside:
        entries = _write(networks, formats, options, Path(aside), progress)
        entries = [entry | origin for entry in entries]
        with StagedFiles(out_dir) as files:
            for entry in entries:
                for name in entry['files']:
                    files.add(name, lambda path: shutil.move(Path(aside, 'files', name), path))  # noqa: B023
            add_manifest(files, manifest, entries)
    return entries


def _write(
    networks: Sequence[ExportNetwork],
    formats: Sequence[str],
    options: ExportOptions,
    aside: Path,
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Write everything to ``aside / 'files'``, and verify it."""
    from .verify import Verification

    folder = aside / 'files'
    folder.mkdir()
    (aside / 'expected').mkdir()
    verification = Verification(aside / 'expected')
    entries: list[dict[str, Any]] = []
    for network in networks:
        for format in formats:
            progress(f'{network.subnet}: writing {format}')
            details = FORMATS[format].write(network, folder, options)
            entries.append(_entry(network, format, details))
            verification.add(network, format, folder / details['file'], options)
            if details.get('processor'):
                verification.add(network, 'processor', folder / details['file'], options)
        network.programs.clear()
    progress('comparing with the subnets, in a process without poa_mm')
    found = zip(verification.subjects, verification.run())
    differences: dict[tuple[str, str], float] = dict(found)
    for entry in entries:
        entry['max_abs_diff'] = differences[entry['subnet'], entry['format']]
        if entry.get('processor'):
            entry['max_abs_diff_from_image'] = differences[entry['subnet'], 'processor']
    if options.fp16 or options.int8:
        from .smaller import write_smaller

        for network in networks:
            entries += [
                _entry(network, f'onnx-{kind}', details)
                for kind, details in write_smaller(network, folder, options, progress)
            ]
    for entry in entries:
        entry['files'] = _hashes(folder, entry['file'])
    return entries


def _entry(network: ExportNetwork, format: str, details: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest says of a file."""
    libraries = ('torch', *FORMATS[format.partition('-')[0]].MODULES)
    return dict(
        subnet=str(network.subnet),
        format=format,
        params=sum(value.numel() for value in network.build().parameters()),
        image_size=list(network.image_size),
        libraries={library: _version(library) for library in libraries},
        **network.description(),
        **details,
    )


def _hashes(folder: Path, file: str) -> dict[str, dict[str, Any]]:
    """Bytes and SHA-256 of a file, what lies beside it under its name, or what is in a folder."""
    if (folder / file).is_dir():
        paths = sorted((folder / file).iterdir())
    else:
        paths = sorted(path for path in folder.iterdir() if path.name in (file, f'{file}.data'))
    return {
        path.relative_to(folder).as_posix(): dict(bytes=path.stat().st_size, sha256=file_sha256(path)) for path in paths
    }


def possible_formats(checkpoint: str | os.PathLike, subnet: Subnet | str) -> dict[str, str | None]:
    """For each format, why a subnet cannot be exported to it here, or None if it can.

    Args:
        checkpoint: As of :func:`export_subnets`.
        subnet: ``'384x12'``, an alias or a :class:`Subnet`.

    Raises:
        CheckpointError: If the checkpoint cannot be read.
        ValueError: If the subnet is not in the checkpoint's space.
    """
    (stock,) = open_networks(checkpoint, [subnet])
    network = ExportNetwork(stock)
    found: dict[str, str | None] = {}
    for format, exporter in FORMATS.items():
        try:
            check_libraries(format)
            exporter.check(network, ExportOptions())
            found[format] = None
        except ExportError as error:
            found[format] = str(error)
    return found


def _checked_formats(to: Iterable[str], options: ExportOptions) -> list[str]:
    formats = [to] if isinstance(to, str) else list(dict.fromkeys(to))
    for format in formats:
        if format not in FORMATS:
            raise ExportError(f'format {format!r} is not one of {", ".join(FORMATS)}')
    if not formats:
        raise ExportError(f'no format; choose of {", ".join(FORMATS)}')
    if not isinstance(options.allowed_loss, (int, float)) or not 0 <= options.allowed_loss < 1:  # NaN is neither
        raise ExportError(f'tolerance {options.tolerance} is not a share of accuracy in [0, 1), such as 0.01')
    if options.images is not None and not options.int8:
        raise ExportError(f'images {options.images} are what int8 is calibrated on, and int8 is not asked for')
    for name in ('tolerance', 'config'):
        if getattr(options, name) is not None and not (options.fp16 or options.int8):
            raise ExportError(f'{name} is for fp16 and int8, and neither is asked for')
    if (options.fp16 or options.int8) and 'onnx' not in formats:
        raise ExportError('fp16 and int8 are kinds of onnx, which is not among the formats')
    if options.dynamic_size and not {'onnx', 'torch'} & set(formats):
        raise ExportError('images of any size (dynamic_size) are a choice of onnx and torch, and neither is asked for')
    if (options.fp16 or options.int8) and not (options.config or {}).get('knn'):
        raise ExportError("fp16 and int8 are checked by their k-NN score: name a config with an entry 'knn'")
    for format in formats:
        check_libraries(format)
    return formats


def check_libraries(format: str) -> None:
    """Check that what a format needs is installed.

    Raises:
        ExportError: If it is missing or too old; says what to install.
    """
    exporter = FORMATS[format]
    if not is_at_least('torch', exporter.TORCH):
        raise ExportError(
            f'format {format} needs torch {exporter.TORCH} or later, and this is {_version("torch")}: '
            'export with the environment of requirements/onedl.txt (make env)'
        )
    missing = [module for module in exporter.MODULES if find_spec(module) is None]
    if missing:
        raise ExportError(f'format {format} needs {", ".join(missing)}, not installed here: {INSTALL}')


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
