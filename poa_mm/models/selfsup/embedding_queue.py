"""Embeddings of earlier batches, for the centring of small ones."""

from __future__ import annotations

import torch
from mmengine.dist import all_gather, get_rank, get_world_size
from torch import Tensor, nn


class EmbeddingQueue(nn.Module):
    """The last embeddings of all ranks, the newest first.

    Each rank holds all of them, so the checkpoint of one rank has the queue of every rank, and works on its share. As
    embeddings are unit vectors, rows of zeros are places that are not taken yet.

    Args:
        length: Embeddings of all ranks that it holds.
        channels: Of an embedding.
    """

    rows: Tensor

    def __init__(self, length: int, channels: int):
        super().__init__()
        self.register_buffer('rows', torch.zeros(length, channels))

    def of_rank(self) -> Tensor:
        """This rank's share, ``(Q, C)``."""
        return self.rows[get_rank() :: get_world_size()]

    @torch.no_grad()
    def push(self, embeddings: Tensor) -> None:
        """Put in ``(N, C)`` of each rank, as many of each, and let as many of the oldest go.

        Rows that are not finite stay out.
        """
        latest = torch.cat(all_gather(embeddings.float().contiguous()))
        latest = torch.where(latest.isfinite().all(dim=1, keepdim=True), latest, torch.zeros_like(latest))
        self.rows.copy_(torch.cat([latest, self.rows])[: len(self.rows)])
