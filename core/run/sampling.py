"""Which images are in which batch, whatever the number of processes and wherever a run resumes."""

from __future__ import annotations

from collections.abc import Iterator

from core.run import distributed

import numpy as np
from torch.utils.data import Sampler


class GlobalBatches(Sampler[list[int]]):
    """This process's part of every global batch from step `start` to `stop`, across epochs.

    The order depends on (seed, epoch) alone, the last partial batch is dropped, and a draw is
    epoch * n_images + position (see `datasets.TrainingViews`), so a resumed run or one of another
    number of processes sees the same views in the same batches.
    """

    def __init__(self, n_images: int, batch_size: int, seed: int, start: int, stop: int):
        self.n_images, self.batch_size, self.seed = n_images, batch_size, seed
        self.start, self.stop = start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[int]]:
        per_epoch = self.n_images // self.batch_size
        part = self.batch_size // distributed.world_size()
        first = part * distributed.rank()
        order, ordered_epoch = np.zeros(0, int), -1
        for step in range(self.start, self.stop):
            epoch, number = divmod(step, per_epoch)
            if epoch != ordered_epoch:
                order = np.random.default_rng((self.seed, epoch)).permutation(self.n_images)
                ordered_epoch = epoch
            begin = number * self.batch_size + first
            yield [epoch * self.n_images + int(i) for i in order[begin : begin + part]]
