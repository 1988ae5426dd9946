"""Classes of two data sets go by name: what their labels mean, and whether they mean the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.registry import DATASETS
from mmpretrain.datasets import CustomDataset
from torch.utils.data import Dataset

SHOWN = 5  # names in a message


def parts_of(dataset: Any) -> Iterator[Any]:
    """The data sets at the bottom of wrappers and concatenations."""
    if inner := getattr(dataset, 'datasets', None):
        for part in inner:
            yield from parts_of(part)
    elif (inner := getattr(dataset, 'dataset', None)) is not None:
        yield from parts_of(inner)
    else:
        yield dataset


def class_names(dataset: Any) -> tuple[str, ...] | None:
    """Names of a data set's classes in the order of their labels; None where nothing says them.

    Where folders are the classes these are their names, whatever ``metainfo`` calls them.

    Args:
        dataset: Any, wrapped or not.

    Raises:
        ValueError: If a hidden folder, such as ``.ipynb_checkpoints``, counts as a class, or parts of the data set
            have other classes than others.
    """
    found = None
    for part in parts_of(dataset):
        names = _names(part)
        if found is not None and names is not None and found != names:
            raise ValueError(f'the parts of a data set have other classes: {difference(found, names)}')
        found = names if found is None else found
    return found


def _names(dataset: Any) -> tuple[str, ...] | None:
    folders = getattr(dataset, 'folder_to_idx', None)
    if folders is None:
        names = (getattr(dataset, 'metainfo', None) or {}).get('classes')
        return tuple(map(str, names)) if isinstance(names, (list, tuple)) else None
    hidden = [name for name in folders if name.startswith('.')]
    if hidden and isinstance(dataset, CustomDataset):
        raise ValueError(
            f'{dataset.img_prefix} has the hidden folder {hidden[0]}, which {type(dataset).__name__} takes for a '
            f"class: remove it, or use type='ImageFolder'"
        )
    return tuple(sorted(folders, key=folders.get))


def difference(first: Sequence[str], second: Sequence[str]) -> str:
    """What is different in the second list of names, for a message."""
    lacking = [name for name in first if name not in set(second)]
    more = [name for name in second if name not in set(first)]
    parts = [f'{few(lacking)} lacking'] if lacking else []
    parts += [f'{few(more)} more'] if more else []
    if not parts:
        place = next(place for place, (one, other) in enumerate(zip(first, second)) if one != other)
        parts = [f'class {place} is {first[place]} there and {second[place]} here']
    return ', '.join(parts)


def few(names: Sequence[str]) -> str:
    """Names for a message, the first of many."""
    return ', '.join(names[:SHOWN]) + (f' and {len(names) - SHOWN} others' if len(names) > SHOWN else '')


def same_labels(first: Sequence[str] | None, second: Sequence[str] | None) -> bool:
    """Whether labels of the second data set mean what those of the first do; its last classes may be missing there.

    Also where one of them does not say its classes.
    """
    return first is None or second is None or tuple(second) == tuple(first)[: len(second)]


@DATASETS.register_module()
class RelabelledDataset(Dataset):
    """Another data set with other numbers for its classes.

    Args:
        dataset: The other data set, or its config; its samples have a data sample with ``gt_label``.
        labels: The number of each of its classes.
    """

    def __init__(self, dataset: Dataset | dict, labels: Sequence[int]):
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.labels = list(labels)

    def full_init(self) -> None:
        """Load the annotations, as mmengine's datasets may do later than they are built."""
        if hasattr(self.dataset, 'full_init'):
            self.dataset.full_init()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        sample = self.dataset[index]
        data_sample = sample['data_samples']
        data_sample.set_gt_label([self.labels[int(label)] for label in data_sample.gt_label])
        return sample
