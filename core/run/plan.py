"""How a training goes, step by step, as its options have it: which images are in which batch."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from core.errors import InputError
from core.method import backbones
from core.run import distributed, optimizer, precision, tracking

import numpy as np
import torch


@dataclass(frozen=True)
class Plan:
    """How a training goes: the options of `options.add_training`, and what follows from them.

    `max_step`: updates in all. `amp`: the resolved autocast type ("bf16", "fp16" or "off").
    `batch_size`: global, over all processes; each process computes its share in `accumulate`
    microbatches. `save_every`: updates between checkpoints. `images`: of the split.
    `crop`: side of the training views. `track`: where log rows are mirrored (`tracking`).
    """

    max_step: int
    batch_size: int
    lr: float
    momentum: float
    seed: int = 0
    backbone: str = "resnet50"
    amp: str = "off"
    accumulate: int = 1
    epochs: int = 1
    workers: int = 0
    save_every: int = 0
    log_every: int = 10
    compile: bool = False
    sync_bn: bool = False
    images: int = 0
    crop: int = 0
    track: str = "none"

    @classmethod
    def of(
        cls, args: argparse.Namespace, n_images: int, device: torch.device, processes: int = 0
    ) -> "Plan":
        """The plan of a command line for a split of `n_images`, on the processes there are or more.

        InputErrors: a tracker that is not installed; fewer than 2 images; a batch larger than the
        data set, or that processes and microbatches do not divide; a crop that the stride does not;
        sides in the wrong order.
        """
        tracking.check(args.track)
        if n_images < 2:
            raise InputError(f"{args.data}: split {args.split!r} has {n_images} image; at least 2")
        batch = f"--batch-size {args.batch_size}"
        if args.batch_size > n_images:
            images = f"the {n_images} images of split {args.split!r}"
            raise InputError(f"{batch} is larger than {images}; lower it")
        world = processes or distributed.world_size()
        if args.batch_size % (world * args.accumulate):
            by = f"{world} processes x --accumulate {args.accumulate}"
            raise InputError(f"{batch} is not divisible by {by}")
        grid = getattr(args, "grid", 1)  # of the puzzle module: each tile is a view of its own
        stride = backbones.stride_of(args.backbone)
        if remainder := args.crop % (stride * grid):
            by = f"{stride}{f' x --grid {grid}' * (grid > 1)}"
            near = args.crop - remainder or stride * grid
            raise InputError(f"--crop {args.crop} is not divisible by {by}; {near} is")
        if getattr(args, "re_seams", "keep") == "drop" and args.crop // (stride * grid) < 3:
            tile = f"tiles of {args.crop // (stride * grid)} cells"
            raise InputError(f"--re-seams drop leaves nothing of {tile}; give a larger --crop")
        if args.sides[0] > args.sides[1]:
            raise InputError(f"--sides {args.sides[0]} {args.sides[1]}: the smaller one first")
        if args.sync_bn and not hasattr(args, "grid"):
            raise InputError("--sync-bn: the BatchNorms of this network are frozen; leave it out")
        if args.sync_bn and device.type != "cuda":
            raise InputError("--sync-bn needs GPUs")
        steps = n_images // args.batch_size  # of an epoch: the last partial batch is dropped
        said = {k: v for k, v in vars(args).items() if k in cls.__dataclass_fields__}
        said |= {"max_step": args.epochs * steps, "save_every": args.save_every or steps}
        said |= {"images": n_images}
        return cls(**said | {"amp": precision.amp_type(args.amp, device)})

    @property
    def epoch_steps(self) -> int:
        """Updates of an epoch."""
        return self.max_step // self.epochs

    def rate(self, step: int) -> float:
        """The base learning rate at a global step."""
        return optimizer.poly_lr(step, self.max_step, self.lr)

    def resolved(self) -> dict[str, Any]:
        """What run.json records beside the options: AMP type, how many images a BN sees, how many
        there are, the steps; of timm's backbones the name with its tag, mean and std."""
        shares = self.accumulate * (1 if self.sync_bn else distributed.world_size())
        found = {"amp": self.amp, "bn_batch": self.batch_size // shares}
        found |= {"images": self.images, "steps": self.max_step}
        return found | backbones.resolved(self.backbone)

    def batches(self, n_images: int, start: int) -> Iterator[list[int]]:
        """This process's part of every global batch from step `start` on, across epochs.

        The order depends on (seed, epoch) alone, the last partial batch is dropped, and a draw is
        epoch * n_images + position (see `datasets.TrainingViews`), so a resumed run or one of
        another number of processes sees the same views in the same batches.
        """
        part = self.batch_size // distributed.world_size()
        for step in range(start, self.max_step):
            epoch, number = divmod(step, n_images // self.batch_size)
            if number == 0 or step == start:
                order = np.random.default_rng((self.seed, epoch)).permutation(n_images)
            first = number * self.batch_size + distributed.rank() * part
            yield (epoch * n_images + order[first : first + part]).tolist()
