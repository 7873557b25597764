"""The dense CRF: the affinity labels, in one process and in a pool, and the torch backend."""

from __future__ import annotations

import dataclasses
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
from tools.benchmarking.measure import Bench, Rows


def _labelling(bench: Bench, device: torch.device) -> Labelling:
    """What make_affinity_labels.py does with an image."""
    out = bench.folder / "affinity"
    out.mkdir(exist_ok=True)
    return Labelling(out, *dataclasses.astuple(recipe.AFFINITY_LABELS), "torch", device)


def _tasks(bench: Bench, ids: list[str]) -> Iterator[tuple]:
    """Read what the labelling of each image takes."""
    for i, image, scores in images_and_scores(data_root(bench), ids, bench.folder / "cams", 0):
        yield i, images.as_array(image), scores


def affinity_labels(bench: Bench) -> Rows:
    """Two 10-iteration CRFs with 3 labels an image, file to file, on one core (and on a GPU)."""
    data, cams = data_root(bench), bench.folder / "usual-cams"
    ids, usual = data.ids(SPLIT)[:4], bench.folder / "affinity-usual"
    usual.mkdir(exist_ok=True)
    labelling, on_device = _labelling(bench, CPU), _labelling(bench, bench.device)

    def ours() -> Iterator[None]:
        return starmap(labelling, _tasks(bench, ids))

    def reference() -> None:
        for i in ids:
            references.affinity_label(data.image_path(i), cams, usual / f"{i}.png")

    def agreement() -> dict[str, float]:
        """Share of the pixels whose labels are the same."""
        folders = labelling.out, usual
        ours, theirs = ([np.array(Image.open(f / f"{i}.png")) for i in ids] for f in folders)
        return {"agreement": float(np.mean(np.equal(ours, theirs)))}

    bound = "one core: gathers from the lattice's vertices; the two passes share one lattice"
    note = "in torch, the default. Reference: a new DenseCRF2D per pass"
    name, figures = "affinity labels, per core", ("ms/image", bound, note, len(ids))
    row = bench.one_core.compare(name, ours, reference, *figures, target=1.4)
    yield row | agreement()
    if bench.cuda:
        bound = "the GPU: sorting the lattice's keys, then memory"
        figures = "ms/image", bound, "Reference: pydensecrf, one core", len(ids)
        with Pool(0, bench.device) as pool:
            name = f"affinity labels, {pool.jobs} images in flight"
            ours = partial(pool.map, on_device, list(_tasks(bench, ids)))
            row = bench.compare(name, ours, reference, *figures)
        yield row | agreement()


def parallel(bench: Bench) -> Rows:
    """The affinity labels with one process per core against one process."""
    jobs = min(cpu_count(), bench.threads)
    ids = data_root(bench).ids(SPLIT)[: 2 if bench.quick else 8]
    labelling, tasks = _labelling(bench, CPU), jobs * list(_tasks(bench, ids))
    name = f"affinity labels, {jobs} processes against one"
    note = "core.run.parallel.Pool; the same code on one core is the reference"
    figures = "images/s", "the cores, and the memory they share", note, len(tasks)
    with Pool(jobs) as pool:
        works = partial(pool.map, labelling, tasks), partial(starmap, labelling, tasks)
        yield bench.one_core.compare(name, *works, *figures, target=0.9 * jobs)


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
    passes = "gathers from the lattice's vertices, and its sorting"
    lattice = "sorting the keys of 6 vertices a pixel; the spatial one is kept for its image size"
    memory = "memory: 21 values of every vertex and pixel"
    for name, work, bound, targets in (
        ("lattices of an image", partial(refine, iterations=0), lattice, (None, None)),
        ("2 x 10 iterations, 3 labels", refine, passes, (1.0, 10.0)),
        ("10 iterations, 21 labels", refine_21, memory, (None, 10.0)),
    ):
        works, target = (partial(work, b) for b in ("torch", "pydensecrf")), targets[bench.cuda]
        name = f"CRF in torch, {name}"
        yield bench.compare(name, *works, "ms/image", bound, note, target=target)
    if bench.cuda:
        tasks, note = [("torch",)] * 16, "2 x 10 iterations, 3 labels, lattice included"
        bound = "kernel launches of one image leave the GPU idle"
        with Pool(0, device) as pool:
            name = f"CRF in torch, {pool.jobs} images in flight against one"
            works = partial(pool.map, refine, tasks), partial(starmap, refine, tasks)
            yield bench.compare(name, *works, "images/s", bound, note, len(tasks))
