"""The dense CRF: the affinity labels, in one process and in a pool, and the torch backend."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import starmap

import numpy as np
import torch
from PIL import Image

from core import recipe
from core.data import images
from core.method import crf
from core.run.inference import images_and_scores
from core.run.parallel import CPU, Pool, cpu_count
from make_affinity_labels import Labelling
from tools.benchmarking import references
from tools.benchmarking.data import SPLIT, data_root
from tools.benchmarking.measure import Bench, Rows, consume


def _labelling(bench: Bench, device: torch.device) -> Labelling:
    """What make_affinity_labels.py does with an image."""
    out = bench.folder / "affinity"
    out.mkdir(exist_ok=True)
    chosen = recipe.AFFINITY_LABELS
    thresholds = chosen.foreground_threshold, chosen.background_threshold
    return Labelling(out, *thresholds, chosen.crf_iterations, "torch", device)


def _tasks(bench: Bench, ids: list[str]) -> Iterator[tuple]:
    """Read what the labelling of each image takes."""
    for i, image, scores in images_and_scores(data_root(bench), ids, bench.folder / "cams", 0):
        yield i, images.as_array(image), scores


def affinity_labels(bench: Bench) -> Rows:
    """Two 10-iteration CRFs with 3 labels an image, file to file, on one core (and on a GPU)."""
    data = data_root(bench)
    ids = data.ids(SPLIT)[:4]
    labelling = _labelling(bench, CPU)
    usual = bench.folder / "affinity-usual"
    usual.mkdir(exist_ok=True)

    def reference() -> None:
        for i in ids:
            cams = bench.folder / "usual-cams"
            references.affinity_label(data.image_path(i), cams, usual / f"{i}.png")

    def agreement() -> float:
        """Share of the pixels whose labels are the same."""
        folders = labelling.out, usual
        ours, theirs = ([np.array(Image.open(f / f"{i}.png")) for i in ids] for f in folders)
        return float(np.mean(np.equal(ours, theirs)))

    row = bench.one_core.compare(
        "affinity labels, per core",
        lambda: consume(starmap(labelling, _tasks(bench, ids))),
        reference,
        "ms/image",
        "one core: gathers from the lattice's vertices; the two passes share one lattice",
        len(ids),
        targets=(1.4, None),
        note="in torch, the default. Reference: a new DenseCRF2D per pass",
    )
    yield {**row, "agreement": agreement()}
    if not bench.cuda:
        return
    on_gpu, tasks = _labelling(bench, bench.device), list(_tasks(bench, ids))
    with Pool(0, bench.device) as pool:
        row = bench.compare(
            f"affinity labels, {pool.jobs} images in flight",
            lambda: consume(pool.map(on_gpu, tasks)),
            reference,
            "ms/image",
            "the GPU: sorting the lattice's keys, then memory",
            len(ids),
            note="Reference: pydensecrf, one core",
        )
    yield {**row, "agreement": agreement()}


def parallel(bench: Bench) -> Rows:
    """The affinity labels with one process per core against one process."""
    jobs = min(cpu_count(), bench.threads)
    labelling = _labelling(bench, CPU)
    ids = data_root(bench).ids(SPLIT)[: 2 if bench.quick else 8]
    tasks = jobs * list(_tasks(bench, ids))
    with Pool(jobs) as pool:
        yield bench.one_core.compare(
            f"affinity labels, {jobs} processes against one",
            lambda: consume(pool.map(labelling, tasks)),
            lambda: consume(starmap(labelling, tasks)),
            "images/s",
            "the cores, and the memory they share",
            len(tasks),
            repeats=3,
            targets=(0.9 * jobs, None),
            note="core.run.parallel.Pool; the same code on one core is the reference",
        )


def torch_backend(bench: Bench) -> Rows:
    """Our lattice in PyTorch against pydensecrf's C++ on one core, an image a call."""
    data, device = data_root(bench), bench.device
    first = data.ids(SPLIT)[0]
    photo = images.as_array(images.read_image(data.image_path(first)))
    mask = images.read_label(data.mask_path(first), data.n_labels)
    values, labels = np.unique(mask, return_inverse=True)
    labels = labels.reshape(mask.shape).astype(np.uint8)
    probs = torch.randn(21, *mask.shape).softmax(0).numpy()

    def refine(backend: str, iterations: int = 10) -> None:
        field = crf.DenseCRF(photo, **crf.LABEL_WIDTHS, backend=backend, device=device)
        for _ in range(2 if iterations else 1):
            field.refine_labels(labels, len(values), iterations)

    def refine_21(backend: str) -> None:
        crf.refine_probabilities(photo, probs, 10, backend, device)

    note = f"torch on {device.type}, pydensecrf on one core with its lattice shared"
    lattices = (
        "sorting the keys of 6 vertices a pixel; the spatial lattice is kept for its image size"
    )
    passes = "gathers from the lattice's vertices, and its sorting"
    memory = "memory: 21 values of every vertex and pixel"
    for name, work, bound, repeats, targets in (
        ("lattices of an image", partial(refine, iterations=0), lattices, 7, (None, None)),
        ("2 x 10 iterations, 3 labels", refine, passes, 7, (1.0, 10.0)),
        ("10 iterations, 21 labels", refine_21, memory, 3, (None, 10.0)),
    ):
        name, ours, usual = (
            f"CRF in torch, {name}",
            partial(work, "torch"),
            partial(work, "pydensecrf"),
        )
        kwargs = {"repeats": repeats, "targets": targets, "note": note}
        yield bench.compare(name, ours, usual, "ms/image", bound, **kwargs)
    if not bench.cuda:
        return
    tasks = [("torch",)] * 16
    with Pool(0, device) as pool:
        yield bench.compare(
            f"CRF in torch, {pool.jobs} images in flight against one",
            lambda: consume(pool.map(refine, tasks)),
            lambda: consume(starmap(refine, tasks)),
            "images/s",
            "kernel launches of one image leave the GPU idle",
            len(tasks),
            note="2 x 10 iterations, 3 labels, lattice included",
        )
