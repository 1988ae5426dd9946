"""Weighted k-nearest-neighbour classification with frozen features, of every subnet."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from mmengine.config import Config
from mmengine.dist import all_reduce
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn import functional as F

from poa_mm.elastic import Subnet

from .data import EvaluationData, chosen_subnets, open_data
from .features import extract_features, feature_batches
from .progress import show_progress

COLLAPSED = 2e-3  # cosines in float32 are right to about 1e-6, so distances to 1e-3


class NearestNeighbours:
    """Nearest neighbours of fixed queries in a bank that arrives piece by piece and is never stored.

    Similarity is the cosine. ``similarity`` and ``labels``, both ``(N, k)``, hold the neighbours found
    so far, nearest first.

    Args:
        queries: Features, ``(N, D)``; computation is where they are, in float32.
        k: Neighbours to find.
        chunk_size: Queries compared with a piece of the bank at once. Default: 8192.
    """

    def __init__(self, queries: Tensor, k: int, chunk_size: int = 8192):
        check_numbers('query', queries)
        self.queries = F.normalize(queries.float(), dim=1)
        self.k = k
        self.chunk_size = chunk_size
        self.similarity = self.queries.new_full((len(queries), k), -math.inf)
        self.labels = torch.full_like(self.similarity, -1, dtype=torch.long)

    def update(self, bank: Tensor, labels: Tensor) -> None:
        """Look through the next piece of the bank: features ``(M, D)`` and labels ``(M,)``.

        Raises:
            ValueError: If a feature is NaN or infinite: it would be nobody's neighbour, or everybody's.
        """
        check_numbers('bank', bank)
        bank = F.normalize(bank.to(self.queries), dim=1)
        labels = labels.to(self.labels)
        for rows in self._chunks():
            similarity, nearest = (self.queries[rows] @ bank.T).topk(min(self.k, len(bank)))
            similarity = torch.cat([self.similarity[rows], similarity], dim=1)
            candidates = torch.cat([self.labels[rows], labels[nearest]], dim=1)
            self.similarity[rows], order = similarity.topk(self.k)
            self.labels[rows] = candidates.gather(1, order)

    def count_correct(self, labels: Tensor, k: int, temperature: float) -> int:
        """Queries whose ``k`` nearest neighbours vote for their label, ``(N,)``; see :func:`knn_accuracy`.

        The bank must have held ``k`` features at least.
        """
        labels = labels.to(self.labels)
        correct = 0
        for rows in self._chunks():
            similarity, neighbours = self.similarity[rows, :k], self.labels[rows, :k]
            # Relative to the nearest, which changes no vote and keeps exp from overflowing.
            weights = ((similarity - similarity[:, :1]) / temperature).exp()
            votes = weights.new_zeros(len(weights), int(neighbours.max()) + 1)
            votes.scatter_add_(1, neighbours, weights)
            correct += int((votes.argmax(dim=1) == labels[rows]).sum())
        return correct

    def _chunks(self) -> Iterator[slice]:
        starts = range(0, len(self.queries), self.chunk_size)
        return (slice(start, start + self.chunk_size) for start in starts)


def check_numbers(name: str, features: Tensor) -> None:
    """Check that features ``(N, D)`` are numbers.

    Raises:
        ValueError: If some are NaN or infinite; says how many.
    """
    bad = (~torch.isfinite(features)).any(dim=1).sum()
    if bad:
        raise ValueError(f'{int(bad)} of {len(features)} {name} features hold NaN or infinity')


def knn_accuracy(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    query_labels: Tensor,
    ks: Sequence[int] = (10, 20),
    temperature: float = 0.07,
    chunk_size: int = 256,
) -> dict[int, float]:
    """Top-1 accuracy of weighted k-nearest neighbours (Wu et al., 2018, Sec. 3.4).

    With L2-normalised features, each of the k neighbours votes for its class with the weight
    ``exp(cosine similarity / temperature)``.

    Args:
        bank: Features that are looked up, ``(M, D)``.
        bank_labels: Their classes, ``(M,)``, not negative.
        queries: Features to classify, ``(N, D)``; computation is where they are, in float32.
        query_labels: Their classes, ``(N,)``.
        ks: Numbers of neighbours. Default: (10, 20).
        temperature: Temperature of the votes. Default: 0.07.
        chunk_size: Queries compared with the bank at once; bounds memory, the result is the same.
            Default: 256.

    Returns:
        Accuracy in [0, 1] for each k.

    Raises:
        ValueError: If shapes do not fit, a feature is NaN or infinite, a label of the bank is negative, there are no
            queries or more neighbours are asked for than the bank holds.
    """
    for name, features, labels in (('bank', bank, bank_labels), ('query', queries, query_labels)):
        if features.ndim != 2 or labels.shape != features.shape[:1] or not len(features):
            raise ValueError(
                f'{name} features {tuple(features.shape)} and labels {tuple(labels.shape)} '
                'must be (N, D) and (N,) with N > 0'
            )
    if bank.shape[1] != queries.shape[1]:
        raise ValueError(f'bank features have {bank.shape[1]} channels, query features {queries.shape[1]}')
    if bank_labels.min() < 0:
        raise ValueError(f'bank labels must not be negative; got {int(bank_labels.min())}')
    if chunk_size < 1:
        raise ValueError(f'chunk_size {chunk_size} is not positive')
    ks = _checked_votes(ks, temperature, len(bank))
    search = NearestNeighbours(queries, max(ks), chunk_size)
    search.update(bank, bank_labels)
    return {k: search.count_correct(query_labels, k, temperature) / len(queries) for k in ks}


def evaluate_knn(
    cfg: Config,
    backbone: nn.Module,
    subnets: Iterable[Subnet | str] | None = None,
    progress: bool = True,
    data: EvaluationData | None = None,
) -> dict[str, dict[str, float]]:
    """Score subnets by k-nearest neighbours as the paper does: the best k counts.

    The config's entry ``knn = dict(bank=..., query=..., ks=(10, 20), temperature=0.07)`` says how. ``bank``
    and ``query`` are data loaders without sampler: ``dict(batch_size=.., num_workers=.., dataset=..)``.

    Every image is read once, whatever the number of subnets. The query features of all subnets are held
    on the backbone's device, spread over the ranks; the bank passes by without being stored. For 50,000
    queries and the 143 subnets of ViT-L that is 20 GB, divided by the number of ranks; for the 465 of
    ResNet-152, with 2048 features each, 190 GB. Where that is too much, ``knn.subnets_per_pass=50`` scores
    that many at a time and reads the images again for the next.

    Args:
        cfg: Config with the entries ``knn`` and ``model``, of which the data preprocessor is used.
        backbone: An elastic backbone, or what :func:`load_backbone` returns, on the device to use.
        subnets: What to score. Default: all of ``backbone.space``.
        progress: Show progress on rank 0. Default: True.
        data: What :func:`~poa_mm.evaluation.data.open_data` gave for ``cfg``. Default: opened here.

    Returns:
        On every rank, by subnet: ``accuracy`` in [0, 1] of the best ``k``, that ``k``, and the accuracy
        by k: ``{'384x12': {'accuracy': 0.768, 'k': 20, '10': 0.765, '20': 0.768}}``.

    Raises:
        ValueError: If the entry ``knn`` is missing or not valid, a subnet is not in the space or the
            data cannot be scored, see :func:`feature_batches`.
    """
    subnets = chosen_subnets(backbone, subnets)
    data = data or open_data(cfg)
    temperature = data.entry.get('temperature', 0.07)
    ks = _checked_votes(data.entry.get('ks', (10, 20)), temperature, len(data.bank.dataset))
    correct = torch.cat(
        [_count_correct(backbone, part, data, ks, temperature, progress) for part in data.passes(subnets)]
    )
    accuracies = (correct.double() / len(data.query.dataset)).tolist()
    return {str(subnet): _score(dict(zip(ks, row))) for subnet, row in zip(subnets, accuracies)}


def warn_of_collapse(features: Mapping[Subnet, Tensor]) -> None:
    """Say of which subnets the features of all images are the same to rounding: their neighbours mean nothing.

    Args:
        features: Of each subnet, ``(N, D)``.
    """
    collapsed = [str(subnet) for subnet, values in features.items() if len(values) > 1 and _spread(values) < COLLAPSED]
    if collapsed:
        print_log(
            f'The features of all images are alike to rounding for {", ".join(collapsed)}: the k-NN score means '
            'nothing. The network has collapsed or is untrained.',
            'current',
            logging.WARNING,
        )


def _spread(features: Tensor) -> float:
    """The largest distance of a normalised feature from the mean of all."""
    features = F.normalize(features.float(), dim=1)
    return (features - features.mean(dim=0)).norm(dim=1).max().item()


def _count_correct(
    backbone: nn.Module,
    subnets: Sequence[Subnet],
    data: EvaluationData,
    ks: Sequence[int],
    temperature: float,
    progress: bool,
) -> Tensor:
    """Correctly classified queries of all ranks, ``(subnets, ks)``."""
    total = len(data.query.dataset) + len(data.bank.dataset)
    with show_progress(f'k-NN, {len(subnets)} subnets', total, progress) as advance:
        queries, query_labels = extract_features(backbone, data.query, data.preprocessor, subnets, advance, shard=True)
        warn_of_collapse(queries)
        searches = {subnet: NearestNeighbours(queries.pop(subnet), max(ks)) for subnet in subnets}
        for features, labels in feature_batches(backbone, data.bank, data.preprocessor, subnets, advance):
            for subnet, search in searches.items():
                search.update(features[subnet], labels)
    correct = torch.tensor(
        [[search.count_correct(query_labels, k, temperature) for k in ks] for search in searches.values()]
    )
    all_reduce(correct)
    return correct


def _score(by_k: Mapping[int, float]) -> dict[str, float]:
    best = max(by_k, key=by_k.get)
    return {'accuracy': by_k[best], 'k': best, **{str(k): value for k, value in by_k.items()}}


def _checked_votes(ks: Sequence[int], temperature: float, bank_size: int) -> list[int]:
    ks = [ks] if isinstance(ks, int) else list(ks)
    if not ks or not all(isinstance(k, int) and 1 <= k <= bank_size for k in ks):
        raise ValueError(f'ks {ks} must be whole numbers between 1 and the {bank_size} images of the bank')
    if not temperature > 0:
        raise ValueError(f'temperature {temperature} is not positive')
    return ks
