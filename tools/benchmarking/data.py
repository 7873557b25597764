"""The benchmark's own data: photograph-like JPEGs, masks, CAM files in our form and the usual."""

from core.data.datasets import VOC_CLASSES, DataRoot
from core.data.images import write_label
from core.data.scores import Scores, strided_size, upsample
from tools import make_shapes
from tools.benchmarking.measure import Bench

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

SPLIT = "train"
# Grain (cell in pixels, amplitude, channels) laid over the drawn shapes: with it a 375x500 JPEG has
# 80 kB and its bilateral lattice 102,000 vertices. VOC's have about 110 kB and 100,000 to 200,000.
GRAIN = ((3, 18, 1), (3, 6, 3))


def data_root(bench: Bench) -> DataRoot:
    """The data set of this run, written at the first call; VOC's classes, two in each image.

    Beside it `cams/<id>.npz` in our form and `usual-cams/<id>.*.npy`, what the authors' make_cam
    pickles: class keys with the background first, float32 maps at stride 4 and at full size. An
    array a file is as many bytes, and no code in it.
    """
    root, ours, usual = (bench.folder / name for name in ("data", "cams", "usual-cams"))
    if root.exists():
        return DataRoot(root)
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    for name in ("cams", "usual-cams", "affinity", "usual-affinity"):
        (bench.folder / name).mkdir()
    names = [f"{number:04d}" for number in range(bench.n_images)]
    lines = []
    for number, name in enumerate(names):
        image, label = photograph(number, bench.size)
        Image.fromarray(image).save(root / f"JPEGImages/{name}.jpg", quality=95)
        write_label(root / f"SegmentationClass/{name}.png", label)
        file = cam_file(label, number)
        file.save(ours / f"{name}.npz")
        cam = file.cam.astype(np.float32)
        np.save(usual / f"{name}.keys.npy", np.array([0, *file.classes.tolist()]))
        np.save(usual / f"{name}.cam.npy", cam)
        np.save(usual / f"{name}.hr_cam.npy", upsample(torch.from_numpy(cam), file.size).numpy())
        lines.append(" ".join([name, *(VOC_CLASSES[c - 1] for c in file.classes)]))
    for path, text in (("labels", lines), (f"ImageSets/Segmentation/{SPLIT}", names)):
        (root / f"{path}.txt").write_text("\n".join([*text, ""]))
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
