"""The dense CRF: the affinity labels, in one process and in a pool, and the torch backend."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from core import recipe
from core.data import images
from core.method import crf
from core.run.inference import images_and_scores
from core.run.parallel import Pool, cpu_count
from make_affinity_labels import Labelling
from tools.benchmarking import measure, references, rows
from tools.benchmarking.data import SPLIT, data_root, write_cams
from tools.benchmarking.measure import CPU, Bench, Work

ITERATIONS = 10
CORE = "one core: gathers from the lattice's vertices"
Rows = Iterator[dict[str, Any]]


def _has_pydensecrf(stage: str) -> bool:
    """Whether the reference is there; without it the stage is left out, with a line."""
    if crf.resolve_backend("auto", CPU) == "pydensecrf":
        return True
    measure.say(f"{stage}: left out, its reference pydensecrf does not import")
    return False


def _labelling(bench: Bench, ids: list[str], device: torch.device) -> tuple[Labelling, list[tuple]]:
    """What make_affinity_labels.py does with an image, and its tasks."""
    write_cams(bench)
    out = bench.folder / "affinity"
    out.mkdir(exist_ok=True)
    chosen = recipe.AFFINITY_LABELS
    labelling = Labelling(
        out,
        (chosen.foreground_threshold, chosen.background_threshold),
        chosen.crf_iterations,
        "torch",
        device,
    )
    return labelling, list(_tasks(bench, ids))


def _tasks(bench: Bench, ids: list[str]) -> Iterator[tuple]:
    """Read what the labelling of each image takes."""
    for i, image, scores in images_and_scores(data_root(bench), ids, bench.folder / "cams", 0):
        yield i, images.as_array(image), scores


def affinity_labels(bench: Bench) -> Rows:
    """Two 10-iteration CRFs with 3 labels an image, file to file, on one core (and on a GPU)."""
    if not _has_pydensecrf("affinity labels"):
        return
    data = data_root(bench)
    ids = data.ids(SPLIT)[:4]
    labelling = _labelling(bench, ids, CPU)[0]
    usual = bench.folder / "affinity-usual"
    usual.mkdir(exist_ok=True)

    def reference() -> None:
        for i in ids:
            cams = bench.folder / "usual-cams"
            references.affinity_label(data.image_path(i), cams, usual / f"{i}.png")

    def ours() -> None:
        for task in _tasks(bench, ids):
            labelling(*task)

    def agreement() -> float:
        pairs = [(labelling.out / f"{i}.png", usual / f"{i}.png") for i in ids]
        return float(
            np.mean([np.array(Image.open(a)) == np.array(Image.open(b)) for a, b in pairs])
        )

    found = measure.compare(bench, lambda: ours, lambda: reference, repeats=5)
    yield rows.row(
        bench, "affinity labels, per core", found, "ms/image",
        f"{CORE}; the two passes share one lattice", items=len(ids), target=1.4,
        agreement=agreement(), note="in torch, the default. Reference: a new DenseCRF2D per pass",
    )  # fmt: skip
    if bench.device.type == "cuda":
        with Pool(0, bench.device) as pool:
            found = _pooled(bench, pool, *_labelling(bench, ids, bench.device), reference)
        yield rows.row(
            bench, f"affinity labels, {pool.jobs} images in flight", found, "ms/image",
            "the GPU: sorting the lattice's keys, then memory", items=len(ids),
            device=bench.device, agreement=agreement(), note="Reference: pydensecrf, one core",
        )  # fmt: skip


def _pooled(
    bench: Bench,
    pool: Pool,
    labelling: Labelling,
    tasks: list[tuple],
    reference: Callable[[], object],
) -> measure.Measured:
    """Affinity labels through a pool against the reference."""

    def ours() -> None:
        for _ in pool.map(labelling, tasks):
            pass

    return measure.compare(bench, lambda: ours, lambda: reference, 5, bench.device)


def parallel(bench: Bench) -> Rows:
    """The affinity labels with one process per core against one process."""
    jobs = min(cpu_count(), bench.threads)
    ids = data_root(bench).ids(SPLIT)[: 2 if bench.quick else 8]
    labelling, tasks = _labelling(bench, ids, CPU)
    tasks *= jobs

    def alone() -> None:
        for task in tasks:
            labelling(*task)

    with Pool(jobs) as pool:

        def together() -> None:
            for _ in pool.map(labelling, tasks):
                pass

        found = measure.compare(bench, lambda: together, lambda: alone, repeats=3)
    yield rows.row(
        bench, f"affinity labels, {jobs} processes against one", found, "images/s",
        "the cores, and the memory they share", items=len(tasks), target=0.9 * jobs,
        note="core.run.parallel.Pool; the same code on one core is the reference",
    )  # fmt: skip


def torch_backend(bench: Bench) -> Rows:
    """Our lattice in PyTorch against pydensecrf's C++ on one core."""
    if not _has_pydensecrf("crf"):
        return
    data = data_root(bench)
    ids = data.ids(SPLIT)
    photo = images.as_array(images.read_image(data.image_path(ids[0])))
    mask = images.read_label(data.mask_path(ids[0]), 21)
    values = np.unique(mask[mask != images.IGNORE])
    labels = np.searchsorted(values, np.minimum(mask, values[-1])).astype(np.uint8)
    build = functools.partial(
        crf.DenseCRF, photo, **crf.LABEL_WIDTHS, backend="torch", device=bench.device
    )
    n = len(values)

    def passes(field: crf.DenseCRF) -> None:
        for _ in range(2):
            field.refine_labels(labels, n, ITERATIONS)

    compiled = functools.partial(crf.DenseCRF, photo, **crf.LABEL_WIDTHS, backend="pydensecrf")
    cuda = bench.device.type == "cuda"
    compare = functools.partial(_crf_row, bench)
    yield compare(
        "CRF in torch, lattices of an image", lambda: build(),
        lambda: references.dense_crf(photo, n, **crf.LABEL_WIDTHS),
        "sorting the keys of 6 vertices a pixel; the spatial lattice is kept for its image size",
    )  # fmt: skip
    yield compare(
        "CRF in torch, 2 x 10 iterations, 3 labels", lambda: passes(build()),
        lambda: passes(compiled()), "gathers from the lattice's vertices, and its sorting",
        target=10.0 if cuda else 1.0,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    probs = torch.randn(21, *mask.shape, generator=generator).softmax(0).numpy()

    def refine(backend: str) -> np.ndarray:
        return crf.refine_probabilities(photo, probs, ITERATIONS, backend, bench.device)

    yield compare(
        "CRF in torch, 10 iterations, 21 labels", lambda: refine("torch"),
        lambda: refine("pydensecrf"), "memory: 21 values of every vertex and pixel", repeats=3,
        target=10.0 if cuda else None,
    )  # fmt: skip
    if cuda:
        yield _in_flight(bench, lambda: passes(build()))


def _crf_row(
    bench: Bench, stage: str, ours: Work, reference: Work, bound: str, repeats: int = 7,
    target: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One row of the torch backend against pydensecrf, one image a call."""
    found = measure.compare(
        bench, lambda: ours, lambda: reference, repeats, bench.device, bench.threads
    )
    note = f"torch on {bench.device.type}, pydensecrf on one core with its lattice shared"
    return rows.row(
        bench, stage, found, "ms/image", bound, device=bench.device, target=target, note=note
    )


def _in_flight(bench: Bench, one_image: Work) -> dict[str, Any]:
    """Several images at once on a GPU against one after the other."""
    count = 16

    def alone() -> None:
        for _ in range(count):
            one_image()

    with Pool(0, bench.device) as pool:

        def together() -> None:
            for _ in pool.map(lambda _: one_image(), [(i,) for i in range(count)]):
                pass

        found = measure.compare(bench, lambda: together, lambda: alone, 5, bench.device)
    return rows.row(
        bench, f"CRF in torch, {pool.jobs} images in flight against one", found, "images/s",
        "kernel launches of one image leave the GPU idle", items=count, device=bench.device,
        note="2 x 10 iterations, 3 labels, lattice included",
    )  # fmt: skip
