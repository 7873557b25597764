"""Which images are in which batch, whatever the number of processes and wherever a run resumes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from core.errors import InputError
from core.run import distributed


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
        order, ordered_epoch = None, -1
        for step in range(self.start, self.stop):
            epoch, number = divmod(step, per_epoch)
            if epoch != ordered_epoch:
                order = np.random.default_rng((self.seed, epoch)).permutation(self.n_images)
                ordered_epoch = epoch
            begin = number * self.batch_size + first
            yield [epoch * self.n_images + int(i) for i in order[begin : begin + part]]


def check_batch(args: argparse.Namespace, n_images: int) -> int:
    """Return the steps of the whole training, or say which option cannot be.

    Raises:
        InputError: fewer than 2 images, a batch larger than the data set or one that the
            processes and parts do not divide.
    """
    if n_images < 2:
        raise InputError(f"{args.data}: split {args.split!r} has {n_images} image; at least 2")
    if args.batch_size > n_images:
        raise InputError(
            f"--batch-size {args.batch_size} is larger than the {n_images} images of split "
            f"{args.split!r}; lower it"
        )
    parts = distributed.world_size() * args.accumulate
    if args.batch_size % parts:
        raise InputError(
            f"--batch-size {args.batch_size} is not divisible by {distributed.world_size()} "
            f"processes x --accumulate {args.accumulate}"
        )
    if args.sides[0] > args.sides[1]:
        raise InputError(f"--sides {args.sides[0]} {args.sides[1]}: the smaller one comes first")
    return args.epochs * (n_images // args.batch_size)
