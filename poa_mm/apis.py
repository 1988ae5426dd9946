"""What a notebook needs: pre-train a supernet, and list, load, extract and export its subnets.

The commands in ``tools/`` are shells over these functions. Importing this module is cheap: each function
imports what it needs when it is called.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from poa_mm.deploy.extract import SubnetRow
    from poa_mm.deploy.warm_start import WarmStart
    from poa_mm.elastic import Subnet

__all__ = ['export', 'extract', 'list_subnets', 'load_subnet', 'pretrain', 'warm_start']


def list_subnets(checkpoint: str | os.PathLike) -> list[SubnetRow]:
    """All subnets in a checkpoint, from the smallest to the largest.

    Args:
        checkpoint: Checkpoint of a pre-training run or of ``import_public_checkpoint``; nothing in it is executed.

    Returns:
        One row for each subnet: ``subnet``, ``aliases`` (its names), ``params`` and ``flops`` (of one image of the
        pre-training size).

    Raises:
        CheckpointError: If the file is not a checkpoint of POA. It is a ``ValueError``.

    Example:
        >>> from poa_mm.apis import list_subnets
        >>> rows = list_subnets('work_dirs/demo/vitt_digits/train/iter_1000.pth')
        >>> len(rows), str(rows[0].subnet), rows[0].params
        (16, '48x3', 59904)
    """
    from poa_mm.deploy.extract import list_subnets

    return list_subnets(checkpoint)


def load_subnet(checkpoint: str | os.PathLike, subnet: Subnet | str | None = None) -> nn.Module:
    """One subnet as a stock mmpretrain network with weights, in evaluation mode.

    Args:
        checkpoint: Checkpoint of a pre-training run or of ``import_public_checkpoint``, or the config ``poa_*.py`` of
            an extracted subnet.
        subnet: ``'384x12'``, an alias such as ``'small'``, or a :class:`~poa_mm.elastic.Subnet`. Default: None, which
            only the config of an extracted subnet can do.

    Returns:
        A ``VisionTransformer``, ``SwinTransformer`` or ``ResNet`` of mmpretrain (or the plain ``BottleneckResNet`` of
        poa_mm, for sizes that mmpretrain's class does not have). It takes normalised images ``(B, C, H, W)``.

    Raises:
        CheckpointError: If the file is not a checkpoint of POA. It is a ``ValueError``.
        ValueError: If the subnet is not in the checkpoint's space, or is missing.

    Example:
        >>> import torch
        >>> from poa_mm.apis import load_subnet
        >>> network = load_subnet('work_dirs/demo/vitt_digits/train/iter_1000.pth', '48x3')
        >>> (class_token,) = network(torch.zeros(2, 3, 8, 8))
        >>> class_token.shape, network.training
        (torch.Size([2, 48]), False)
    """
    from poa_mm.deploy.stock import open_network

    return open_network(checkpoint, subnet).build()


def extract(
    checkpoint: str | os.PathLike,
    subnets: str | Subnet | Iterable[Subnet | str] | None = None,
    *,
    out_dir: str | os.PathLike,
    **options: Any,
) -> list[dict[str, Any]]:
    """Write subnets as weights and configs of stock mmpretrain networks.

    Args:
        checkpoint: Checkpoint of a pre-training run or of ``import_public_checkpoint``.
        subnets: One or more of ``'384x12'``, aliases or :class:`~poa_mm.elastic.Subnet`. Default: None, all of them.
        out_dir: Folder to write to, made if it is missing.
        **options: Of :func:`poa_mm.deploy.extract.extract_subnets`: ``format``, ``verify``, ``libraries``,
            ``progress``.

    Returns:
        The manifest's entries, one for each subnet. All files appear together, or none does.

    Raises:
        CheckpointError: If the file is not a checkpoint of POA, or the folder holds subnets of another one.
        ValueError: If a subnet is not in the checkpoint's space, or an option is not valid.

    Example:
        >>> from poa_mm.apis import extract
        >>> entries = extract('work_dirs/demo/vitt_digits/train/iter_1000.pth', ['48x3', '96x6'], out_dir='subnets')
        >>> [entry['file'] for entry in entries]
        ['poa_48x3.safetensors', 'poa_96x6.safetensors']
    """
    from poa_mm.deploy.extract import extract_subnets

    return extract_subnets(checkpoint, _several(subnets), out_dir, **options)


def export(
    checkpoint: str | os.PathLike,
    subnets: str | Subnet | Iterable[Subnet | str] | None = None,
    *,
    to: str | Iterable[str],
    out_dir: str | os.PathLike,
    config: str | os.PathLike | Mapping[str, Any] | None = None,
    progress: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Write subnets in the formats of other libraries, each verified in a process without poa_mm and OpenMMLab.

    Needs the extra ``poa_mm[export]``.

    Args:
        checkpoint: Checkpoint of a pre-training run or of ``import_public_checkpoint``, or the config ``poa_*.py`` of
            an extracted subnet.
        subnets: One or more of ``'384x12'``, aliases or :class:`~poa_mm.elastic.Subnet`. Default: None, for
            the config of an extracted subnet only.
        to: One or more of ``'timm'``, ``'huggingface'``, ``'onnx'`` and ``'torch'``.
        out_dir: Folder to write to, made if it is missing.
        config: Config with the entry ``knn``, which ``fp16`` and ``int8`` are scored by: a file or the config itself.
        progress: Called with what is being done. Default: says nothing.
        **options: Of :class:`poa_mm.deploy.export.ExportOptions`: ``dynamic_size``, ``fp16``, ``int8``, ``images``,
            ``tolerance``.

    Returns:
        The manifest's entries, one for each format of each subnet: ``file``, ``load`` (the call that loads it),
        ``max_abs_diff`` and more. All files appear together, or none does.

    Raises:
        CheckpointError: If the file is not a checkpoint of POA, or the folder holds subnets of another one.
        ExportError: If a format is unknown or cannot hold a subnet, a library is missing, or an export does not
            compute what the subnet does. It is a ``ValueError``, as is the former.

    Example:
        >>> from poa_mm.apis import export
        >>> checkpoint = 'work_dirs/demo/vitt_digits/train/iter_1000.pth'
        >>> (entry,) = export(checkpoint, '48x3', to='torch', out_dir='exported')
        >>> entry['file'], entry['max_abs_diff'] <= 1e-5
        ('poa_48x3.pt2', True)
    """
    from poa_mm.deploy.export import ExportOptions, export_subnets
    from poa_mm.engine.launch import read_file

    config = read_file(config) if isinstance(config, (str, os.PathLike)) else config
    return export_subnets(checkpoint, _several(subnets), to, out_dir, ExportOptions(config=config, **options), progress)


def pretrain(
    config: str | os.PathLike,
    data: str | os.PathLike,
    *,
    work_dir: str | os.PathLike | None = None,
    resume: str | None = None,
    image_size: int | None = None,
    patch_size: int | None = None,
    patch_sizes: Iterable[int] | None = None,
    widths: Iterable[int] | None = None,
    depths: Iterable[Any] | None = None,
    options: Mapping[str, Any] | None = None,
    **recipe: Any,
) -> Path:
    """Pre-train a supernet on images without labels, in this process.

    What ``tools/train.py CONFIG --data DATA`` does.

    Args:
        config: A pre-training config, or a family, ``'vit'``, ``'swin'`` or ``'resnet'``, for the recipe of
            ``configs/poa/vits_folder.py`` with a small network of it.
        data: A folder of images, tar shards, Parquet or Arrow.
        work_dir: Where logs and checkpoints go. Default: the config's, or ``work_dirs/NAME``.
        resume: Checkpoint to go on from, or ``'auto'`` for the latest in the work dir. Default: None, from the start.
        image_size: Height and width of the global crops in pixels; local ones follow. Default: that of the config.
        patch_size: Height and width of a ViT's patches in pixels. Default: that of the config.
        patch_sizes: Patch sizes of a ViT's subnets, ``patch_size`` among them. Default: those of the config.
        widths: Widths of the subnets; the largest is the network's. Default: those of the config.
        depths: Depths of the subnets; the largest is the network's. Default: those of the config.
        options: What else overrides the config, by dotted keys. Default: nothing.
        **recipe: Numbers of the config's recipe (:class:`poa_mm.recipes.Recipe`), such as ``epochs``, ``batch_size``,
            ``accumulate``, ``warmup_epochs`` and ``lr``.

    Returns:
        The checkpoint, which the other functions take.

    Raises:
        FileNotFoundError: If the config or the images are missing.
        ValueError: If a number is not valid, or config, data and checkpoint do not fit each other.
    """
    from mmengine.runner import find_latest_checkpoint

    from poa_mm.engine.launch import prepare
    from poa_mm.engine.own_images import own_config
    from poa_mm.engine.start import build_runner
    from poa_mm.engine.work_dir import WorkDir

    sizes = dict(image_size=image_size, patch_size=patch_size, patch_sizes=patch_sizes, widths=widths, depths=depths)
    cfg = own_config(config, data, work_dir, **sizes, options=options, **recipe)
    prepare(cfg, 'none')
    with WorkDir(cfg.work_dir):
        runner = build_runner(cfg, resume)
        runner.train()
    return Path(find_latest_checkpoint(runner.work_dir))


def warm_start(
    config: str | os.PathLike, weights: str | os.PathLike, out: str | os.PathLike, **options: Any
) -> WarmStart:
    """Write a checkpoint that POA starts from, with weights that exist: of other libraries, a subnet, or a supernet.

    Args:
        config: Pre-training config whose backbone is the network at full size.
        weights: ``.pth``, ``.bin`` or ``.safetensors``, or a folder as a library saves it; nothing in it is executed.
        out: Checkpoint to write, for ``load_from``. It appears complete or not at all.
        **options: Of :func:`poa_mm.deploy.warm_start.warm_start`: ``order``, ``images``, ``num_images``, ``scores``,
            ``subnets``, ``heads``, ``groups``, ``seed``, ``progress``.

    Returns:
        What was done: ``layout``, ``left_out``, ``assumed``, ``changes``, ``library`` and ``max_abs_diff`` of the
        comparison with the library's own network, ``scores``.

    Raises:
        CheckpointError: If the weights are not of the config's network, or not known. It is a ``ValueError``.
        ValueError: If an option is not valid, or images would be normalised otherwise.

    Example:
        >>> from poa_mm.apis import warm_start
        >>> checkpoint = 'work_dirs/demo/vitt_digits/train/iter_1000.pth'
        >>> done = warm_start('configs/poa/vitt_digits.py', checkpoint, 'start.pth', order='magnitude')
        >>> done.layout, done.max_abs_diff <= 1e-4
        ('a checkpoint of POA', True)
    """
    from poa_mm.deploy.warm_start import warm_start

    return warm_start(config, weights, out, **options)


def _several(subnets: str | Subnet | Iterable[Subnet | str] | None) -> list[Subnet | str] | None:
    """A list of subnets: one may come by itself."""
    from poa_mm.elastic import Subnet

    if subnets is None:
        return None
    return [subnets] if isinstance(subnets, (str, Subnet)) else list(subnets)
