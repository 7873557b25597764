"""What the inference stages share: batches of equal-sized images, read ahead by processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from core.data import images
from core.data.datasets import DataRoot
from core.data.transforms import pyramid
from core.errors import InputError
from core.run import distributed
from core.run.parallel import ignore_interrupts, signals_held


def equal_size_batches(data: DataRoot, ids: Sequence[str], batch_images: int) -> list[list[str]]:
    """Group ids whose images have the same size, at most `batch_images` a group.

    The grouping does not depend on the number of processes nor on what is done already, so every
    way of running a stage computes each image in the same batch and gives the same bytes.
    """
    by_size: dict[tuple[int, int], list[str]] = {}
    for image_id in ids:
        by_size.setdefault(images.image_size(data.image_path(image_id)), []).append(image_id)
    return [
        group[i : i + batch_images]
        for group in by_size.values()
        for i in range(0, len(group), batch_images)
    ]


def remaining(groups: Sequence[list[str]], outputs: Sequence[tuple[Path, str]]) -> list[list[str]]:
    """This process's share of the groups, without those whose files are all there.

    Args:
        outputs: (directory, suffix) of the files that each id gets.
    """

    def done(image_id: str) -> bool:
        return all((folder / f"{image_id}{suffix}").exists() for folder, suffix in outputs)

    todo = [group for group in groups if not all(map(done, group))]
    distributed.barrier()  # everyone has looked before anyone writes
    return distributed.share(todo)


class _Prepared(Dataset):
    def __init__(self, groups: Sequence[Any], prepare: Callable[[Any], Any]):
        self.groups, self.prepare = groups, prepare

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Any:
        return self.prepare(self.groups[index])


def _same(item: Any) -> Any:
    return item


def read_ahead(groups: Sequence[Any], prepare: Callable[[Any], Any], workers: int) -> Iterator[Any]:
    """Yield prepare(group) in order, computed ahead by `workers` processes.

    Raises:
        InputError: from `prepare`, or when a loader process was killed.
    """
    loader = DataLoader(
        _Prepared(groups, prepare),
        batch_size=None,
        num_workers=workers,
        collate_fn=_same,
        worker_init_fn=ignore_interrupts,
        prefetch_factor=4 if workers else None,
    )
    try:
        with signals_held():
            batches = iter(loader)
        yield from batches
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(
            "a loader process was killed (out of memory or /dev/shm?); lower --workers and start "
            "again: finished images are kept"
        ) from None


def pyramids(
    data: DataRoot,
    groups: Sequence[list[str]],
    scales: Sequence[float],
    workers: int,
    device: torch.device,
    what: str,
) -> Iterator[tuple[list[str], list[Tensor], tuple[int, int]]]:
    """Read groups of images of equal size ahead, behind a progress bar named `what`.

    Yields:
        A group's ids; per scale its bicubic copies, uint8 (B, 3, h, w) on the device; its (H, W).
    """

    def load(group: list[str]) -> tuple[list[str], list[Tensor], tuple[int, int]]:
        photos = [images.as_array(images.read_image(data.image_path(i))) for i in group]
        copies = zip(*(pyramid(photo, scales) for photo in photos), strict=True)
        return group, [torch.stack(each) for each in copies], photos[0].shape[:2]

    with distributed.progress(sum(map(len, groups)), what) as bar:
        for group, copies, size in read_ahead(groups, load, workers):
            yield group, [each.to(device, non_blocking=True) for each in copies], size
            bar.update(len(group))
