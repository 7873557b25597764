"""The benchmark's own data: photograph-like JPEGs, masks, CAM files in our form and the usual."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from core.data.datasets import VOC_CLASSES, DataRoot
from core.data.images import write_label
from core.data.scores import Scores, strided_size, upsample
from tools import make_shapes
from tools.benchmarking import references
from tools.benchmarking.measure import Bench

SPLIT = "train"
# Grain (cell in pixels, amplitude, channels) laid over the drawn shapes: with it a 375x500 JPEG has
# 80 kB and its bilateral lattice 102,000 vertices. VOC's have about 110 kB and 100,000 to 200,000.
GRAIN = ((3, 18, 1), (3, 6, 3))


def data_root(bench: Bench) -> DataRoot:
    """The data set of this run, written at the first call; VOC's classes, two in each image."""
    root = bench.folder / "data"
    if not root.exists():
        for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
            (root / folder).mkdir(parents=True)
        lines = []
        for number in range(bench.n_images):
            image, label = photograph(number, bench.size)
            path = root / "JPEGImages" / f"{number:04d}.jpg"
            Image.fromarray(image).save(path, quality=95)
            write_label(root / "SegmentationClass" / f"{number:04d}.png", label)
            names = [VOC_CLASSES[c - 1] for c in make_shapes.present(label)]
            lines.append(" ".join([f"{number:04d}", *names]))
        (root / "labels.txt").write_text("\n".join(lines) + "\n")
        ids = "\n".join(line.split()[0] for line in lines)
        (root / f"ImageSets/Segmentation/{SPLIT}.txt").write_text(ids + "\n")
    return DataRoot(root)


def photograph(number: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """uint8 RGB (H, W, 3) and its label map (H, W) with two classes; the same for a number."""
    rng = np.random.default_rng((7, number))
    height, width = size
    side = max(size)
    label = np.zeros(size, np.uint8)
    while len(make_shapes.present(label)) != 2:
        things = [make_shapes.place(rng, side) for _ in range(2)]
        label = make_shapes.label_map(things, side)[:height, :width]
    image = make_shapes.background(rng, side)
    for thing in things:
        make_shapes.paint(rng, image, thing)
    for cell, amplitude, channels in GRAIN:
        image += amplitude * make_shapes.smooth_noise(rng, side, cell, channels)
    return np.clip(np.rint(image[:height, :width]), 0, 255).astype(np.uint8), label


def cam_file(label: np.ndarray, number: int) -> Scores:
    """CAMs (each map's maximum 1) as a network might give: the blurred mask and smooth noise."""
    rng = np.random.default_rng((8, number))
    classes = make_shapes.present(label)
    height, width = strided_size(label.shape)
    masks = torch.from_numpy(np.stack([label == c for c in classes]).astype(np.float32))
    maps = F.interpolate(masks[None], (height, width), mode="area")
    maps = F.avg_pool2d(maps, 9, 1, 4, count_include_pad=False)[0].numpy()
    noise = make_shapes.smooth_noise(rng, max(height, width), 8, len(classes))
    maps = np.clip(maps + 0.1 * noise[:height, :width].transpose(2, 0, 1), 0, None)
    maps /= maps.max((1, 2), keepdims=True)
    return Scores(np.array(classes, np.uint8), maps.astype(np.float16), label.shape)


def write_cams(bench: Bench) -> None:
    """`folder/cams/<id>.npz` in our form, `folder/usual-cams/<id>.*.npy` in the usual one."""
    ours, usual = bench.folder / "cams", bench.folder / "usual-cams"
    if ours.exists():
        return
    ours.mkdir()
    usual.mkdir()
    data = data_root(bench)
    for number, image_id in enumerate(data.ids(SPLIT)):
        file = cam_file(np.array(Image.open(data.mask_path(image_id))), number)
        file.save(ours / f"{image_id}.npz")
        cam = file.cam.astype(np.float32)
        full = upsample(torch.from_numpy(cam), file.size).numpy()
        # As the authors' make_cam writes them: class keys with the background first, both sizes.
        keys = np.array([0, *file.classes.tolist()])
        references.save_cams(usual, image_id, keys=keys, cam=cam, hr_cam=full)
