"""CAMs, dense CRF, random walk, evaluation and the CAM files, each against its usual form."""

import copy
from collections.abc import Iterator
from functools import cache, partial
from itertools import chain, starmap

from core.data import images, scoring
from core.data.scores import strided_size
from core.data.transforms import SCALES, pyramid
from core.method import crf
from core.method.affinity import paths
from core.method.cam import of_classes, sum_scales
from core.method.networks import Classifier
from core.method.random_walk import random_walk
from core.recipe import AFFINITY_LABELS, EVALUATION, RANDOM_WALK
from core.run import inference, precision
from core.run.parallel import CPU, Pool, cpu_count
from make_affinity_labels import Labelling
from tools.benchmarking import references
from tools.benchmarking.data import SPLIT, data_root
from tools.benchmarking.measure import Bench, Rows, count_flop

import numpy as np
import torch
from PIL import Image

RADIUS, BETA, LOG2_STEPS = RANDOM_WALK.radius, RANDOM_WALK.beta, RANDOM_WALK.log2_steps
THRESHOLDS = EVALUATION.paper_thresholds
BATCH_IMAGES = 4  # make_cam.py's default


def cams(bench: Bench) -> Rows:
    """From JPEG files to CAMs on the host, four scales and mirror images."""
    data, device = data_root(bench), bench.device
    group = data.ids(SPLIT)[:BATCH_IMAGES]
    workers = 4 if bench.cuda else 0  # the CPU is busy with the network
    labels = data.image_labels(group)
    pictures = {i: data.image_path(i) for i in group}
    groups = inference.equal_size_batches(pictures, BATCH_IMAGES, device, lambda size: size)
    groups *= 16 if bench.cuda else 1  # to hide the start of the loader processes
    network = Classifier(bench.backbone, 20).eval()
    usual = copy.deepcopy(network)

    @torch.inference_mode()
    def ours() -> None:
        side = max(bench.size)
        views = inference.pyramids(pictures, groups, SCALES, side, workers, device, "cams")
        ready = network.to(device, memory_format=torch.channels_last)
        for names, copies, size in views:
            with precision.autocast(bench.amp, device):
                sums = sum_scales(ready, copies, size)
            for name, maps in zip(names, sums, strict=True):
                of_classes(maps, labels[name]).half().cpu()

    @torch.no_grad()
    def reference() -> None:
        usual.to(device)
        for i in chain.from_iterable(groups):
            references.multi_scale_cam(usual, pictures[i], labels[i], device)

    items = sum(map(len, groups))
    shapes = [(2, 3, *(round(side * scale) for side in bench.size)) for scale in SCALES]
    flop = items * count_flop(lambda: Classifier(bench.backbone, 20).eval(), *shapes)
    note = f"{bench.backbone}, 4 scales x 2, batches of {len(groups[0])}, from JPEG"
    figures = "images/s", partial(bench.arithmetic, flop), note, items
    works, target = (ours, reference), 4.0 if bench.cuda else 2.0
    yield bench.compare("multi-scale CAM inference", *works, *figures, target=target)


def pyramid_copies(bench: Bench) -> Rows:
    """The four copies of a photograph that make_cam.py's network sees, on one core."""
    data = data_root(bench)
    photos = [images.as_array(images.read_image(data.image_path(i))) for i in data.ids(SPLIT)]
    works = partial(map, pyramid, photos), partial(map, references.pyramid, photos)
    bound, note = "one core: the two sizes above the photograph's", "uint8. Reference: PIL"
    figures = "ms/image", bound, note, len(photos)
    yield bench.one_core.compare("pyramid, per core", *works, *figures, target=3.0)


def walk(bench: Bench) -> Rows:
    """The sparse walk in float64, as the stage runs it, against squaring the dense matrix."""
    height, width = strided_size(bench.size)
    scores = torch.rand(2, height, width, dtype=torch.float64).to(bench.device)
    edge = torch.rand(height, width, dtype=torch.float64).to(bench.device) ** 2
    matrix = cache(partial(references.dense_transition, edge.float(), RADIUS, BETA))
    parts = 1 if bench.cuda else 8  # a CPU needs half a minute for a whole squaring

    def reference() -> None:
        matrix()[: edge.numel() // parts] @ matrix()

    def bound(time_taken: float) -> str:
        entries = edge.numel() * (2 * len(paths(RADIUS)[0]) + 1)
        rate = 2**LOG2_STEPS * entries * 12 / 1e9 / time_taken
        return f"memory: 2^{LOG2_STEPS} reads of the sparse matrix, {rate:.3g} GB/s"

    timed = "ONE squaring" if bench.cuda else "an eighth of ONE squaring"
    note = f"float64. Reference: dense float32, {timed}, multiplied by {parts * LOG2_STEPS}"
    works = partial(random_walk, scores, edge, RADIUS, BETA, LOG2_STEPS), reference
    figures = "ms/image", bound, note, 1, parts * LOG2_STEPS
    target, target_ours = (None, 10.0) if bench.cuda else (400.0, None)
    goals = {"target": target, "target_ours": target_ours}
    yield bench.compare(f"random walk, {height} x {width} grid", *works, *figures, **goals)


def _labelling(bench: Bench, device: torch.device) -> Labelling:
    """What make_affinity_labels.py does with an image."""
    thresholds = AFFINITY_LABELS.foreground_threshold, AFFINITY_LABELS.background_threshold
    iterations = AFFINITY_LABELS.crf_iterations
    return Labelling(bench.folder / "affinity", thresholds, iterations, "torch", device)


def _tasks(bench: Bench, ids: list[str]) -> Iterator[tuple]:
    """Read what the labelling of each image takes."""
    read = inference.images_and_scores(data_root(bench), ids, bench.folder / "cams", workers=0)
    return ((i, images.as_array(image), scores) for i, image, scores in read)


def affinity_labels(bench: Bench) -> Rows:
    """Two 10-iteration CRFs with 3 labels an image, file to file, on one core (and on a GPU)."""
    data, usual = data_root(bench), bench.folder / "usual-affinity"
    ids, usual_cams = data.ids(SPLIT)[:4], bench.folder / "usual-cams"
    labelling, on_device = _labelling(bench, CPU), _labelling(bench, bench.device)

    def ours() -> Iterator[None]:
        return starmap(labelling, _tasks(bench, ids))

    def reference() -> None:
        for i in ids:
            references.affinity_label(data.image_path(i), usual_cams, usual / f"{i}.png")

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
            together = partial(pool.map, on_device, list(_tasks(bench, ids)))
            row = bench.compare(name, together, reference, *figures)
        yield row | agreement()


def parallel(bench: Bench) -> Rows:
    """The affinity labels with one process per core against one process."""
    jobs = min(cpu_count(), bench.threads)
    ids = data_root(bench).ids(SPLIT)
    labelling, tasks = _labelling(bench, CPU), jobs * list(_tasks(bench, ids))
    name = f"affinity labels, {jobs} processes against one"
    note = "core.run.parallel.Pool; the same code on one core is the reference"
    figures = "images/s", "the cores, and the memory they share", note, len(tasks)
    with Pool(jobs) as pool:
        works = partial(pool.map, labelling, tasks), partial(starmap, labelling, tasks)
        yield bench.one_core.compare(name, *works, *figures, target=0.9 * jobs)


def torch_backend(bench: Bench) -> Rows:
    """Our lattice in PyTorch, on a GPU or a core, against pydensecrf's C++ on a core."""
    bench = bench if bench.cuda else bench.one_core
    data, device = data_root(bench), bench.device
    first = data.ids(SPLIT)[0]
    photo = images.as_array(images.read_image(data.image_path(first)))
    mask = images.read_label(data.mask_path(first), data.n_labels)
    values = np.unique(mask)
    labels = np.searchsorted(values, mask)
    probs = torch.randn(21, *mask.shape).softmax(0).numpy()

    def refine(backend: str, iterations: int = 10) -> None:
        dense_crf = crf.DenseCRF(photo, **crf.LABEL_WIDTHS, backend=backend, device=device)
        for _ in range(2 if iterations else 1):
            dense_crf.refine_labels(labels, len(values), iterations)

    def refine_21(backend: str) -> None:
        crf.refine_probabilities(photo, probs, 10, backend, device)

    note = f"torch on {'a GPU' if bench.cuda else 'one core'}, pydensecrf on one, lattice shared"
    passes = "gathers from the lattice's vertices, and its sorting"
    lattice = "sorting the keys of 6 vertices a pixel; the spatial one is kept for its image size"
    memory = "memory: 21 values of every vertex and pixel"
    for name, work, bound, targets in (
        ("lattices of an image", partial(refine, iterations=0), lattice, (None, None)),
        ("2 x 10 iterations, 3 labels", refine, passes, (1.0, 10.0)),
        ("10 iterations, 21 labels", refine_21, memory, (None, 10.0)),
    ):
        works, target = (partial(work, b) for b in ("torch", "pydensecrf")), targets[bench.cuda]
        yield bench.compare(f"CRF in torch, {name}", *works, "ms/image", bound, note, target=target)
    if bench.cuda:
        tasks, note = [("torch",)] * 16, "2 x 10 iterations, 3 labels, lattice included"
        bound = "kernel launches, one thread of Python at a time"
        with Pool(4, device) as pool:
            name = f"CRF in torch, {pool.jobs} images in flight against one"
            works = partial(pool.map, refine, tasks), partial(starmap, refine, tasks)
            yield bench.compare(name, *works, "images/s", bound, note, len(tasks))


def evaluation(bench: Bench) -> Rows:
    """Scores at 15 thresholds, from the files, on one core."""
    data, folder = data_root(bench), bench.folder / "cams"
    ids = data.ids(SPLIT)

    def ours() -> list[float]:
        sweep = scoring.scores(data, folder, "SegmentationClass", THRESHOLDS, ids).sweep
        return [matrix.miou() for matrix in sweep.confusions()]

    usual = bench.folder / "usual-cams"
    reference = partial(references.sweep_by_files, data, ids, usual, THRESHOLDS)
    name = f"evaluation, {len(THRESHOLDS)} thresholds, per core"
    bound = "one core: upsampling, argmax and one histogram of every pixel"
    difference = float(np.abs(np.subtract(ours(), reference())).max())
    figures = "images/s", bound, "", len(ids)
    row = bench.one_core.compare(name, ours, reference, *figures, target=20.0)
    yield {**row, "largest_difference_miou": difference}


def cam_bytes(bench: Bench) -> Rows:
    """Bytes of the files on disk."""
    n_images = len(data_root(bench).ids(SPLIT))
    folders = bench.folder / "cams", bench.folder / "usual-cams"
    sizes = [[sum(path.stat().st_size for path in folder.iterdir()) for folder in folders]]
    bound = "2 bytes for each of 1/16 of the pixels and class"
    note = f"{bench.size[1]}x{bench.size[0]}, 2 classes. Reference: both sizes in float32"
    figures = np.array(sizes) / n_images, "bytes/image", bound, note
    yield bench.one_core.row("CAM bytes", *figures, target=20.0)
