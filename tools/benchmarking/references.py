"""The usual way of each stage, as competent but ordinary code does it.

The forms are those of the code that the authors of Puzzle-CAM released and of IRN, on which it
builds. What they compute is what core/ computes (tests/test_benchmark.py compares them).
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from core.data.datasets import DataRoot
from core.data.scores import strided_size
from core.data.transforms import MEAN, SCALES, STD
from core.method import crf
from core.method.affinity import affinity, paths

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn


def normalise(image: Image.Image) -> np.ndarray:
    """RGB -> float32 (H, W, 3), channel by channel; the arithmetic is NumPy's, in float64."""
    pixels = np.asarray(image)
    result = np.empty_like(pixels, np.float32)
    for channel in range(3):
        result[..., channel] = (pixels[..., channel] / 255.0 - MEAN[channel]) / STD[channel]
    return result


def load_view(
    path: Path, sides: tuple[int, int], crop: int, rng: np.random.Generator
) -> np.ndarray:
    """A training view, float32 (3, crop, crop): PIL decode, bicubic, flip; normalise, crop, pad."""
    image = Image.open(path).convert("RGB")
    scale = int(rng.integers(sides[0], sides[1] + 1)) / max(image.size)
    size = round(image.width * scale), round(image.height * scale)
    image = image.resize(size, Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    pixels, view = normalise(image), np.zeros((crop, crop, 3), np.float32)
    source, target = [], []
    for side in pixels.shape[:2]:
        offset, length = int(rng.integers(0, abs(side - crop) + 1)), min(side, crop)
        within, whole = slice(offset, offset + length), slice(0, length)
        source.append(within if side > crop else whole)
        target.append(whole if side > crop else within)
    view[tuple(target)] = pixels[tuple(source)]
    return view.transpose(2, 0, 1)


def tile(images: Tensor) -> Tensor:
    """The four quarters, all top-left ones first."""
    return torch.cat([part for row in images.chunk(2, 2) for part in row.chunk(2, 3)])


def merge(tiles: Tensor) -> Tensor:
    """The inverse of `tile`."""
    a, b, c, d = tiles.chunk(4)
    return torch.cat([torch.cat([a, b], 3), torch.cat([c, d], 3)], 2)


def puzzle_loss(network: nn.Module, images: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """L_cls + L_p-cls + alpha * L_re, in the precision of the network."""
    maps, merged = network(images), merge(network(tile(images)))
    loss = F.multilabel_soft_margin_loss(maps.mean((2, 3)), labels)
    loss = loss + F.multilabel_soft_margin_loss(merged.mean((2, 3)), labels)
    return loss + alpha * ((maps - merged).abs() * labels[:, :, None, None]).mean()


class PairAffinity:
    """IRN's affinities: an index of every pixel of every path, `index_select`, then the maximum."""

    def __init__(self, radius: int, height: int, width: int, device: torch.device | str = "cpu"):
        reach = radius - 1
        grid = torch.arange(height * width, device=device).view(height, width)
        self.source = grid[: height - reach, reach : width - reach].flatten()
        steps = [torch.from_numpy(line @ (width, 1)) for line in paths(radius)[1]]
        same_length = (list(group) for _, group in groupby(sorted(steps, key=len), len))
        self.paths = [torch.stack(s).to(device)[:, :, None] + self.source for s in same_length]
        self.target = torch.cat([path[:, 0] for path in self.paths])  # a path's far end is first

    def pairs(self, edge: Tensor) -> Tensor:
        """(N, h, w) in [0, 1] -> (N, n_offsets, sources), shorter paths first."""
        flat, groups = edge.flatten(1), []
        for path in self.paths:
            pixels = flat.index_select(1, path.flatten()).view(len(flat), *path.shape)
            groups.append(1 - F.max_pool2d(pixels, (path.shape[1], 1)).squeeze(2))
        return torch.cat(groups, 1)

    def loss(self, edge: Tensor, label: Tensor) -> Tensor:
        """The affinity loss of edges (N, h, w) and label maps, uint8 (N, h, w)."""
        label = label.long().flatten(1)
        source, target = label[:, None, self.source], label[:, self.target]
        valid, same = (source != 255) & (target != 255), source == target
        masks = valid & same & (source == 0), valid & same & (source > 0), valid & ~same
        pairs = self.pairs(edge)
        like, unlike = -torch.log(pairs + 1e-5), -torch.log(1 + 1e-5 - pairs)
        terms = zip((1 / 4, 1 / 4, 1 / 2), (like, like, unlike), masks, strict=True)
        return sum(w * (x * mask).sum() / mask.sum().clamp(min=1) for w, x, mask in terms)


def pyramid(image: np.ndarray) -> list[np.ndarray]:
    """PIL's bicubic copies of an RGB image, uint8 (H, W, 3)."""
    sizes = [[round(side * scale) for side in image.shape[1::-1]] for scale in SCALES]
    how = Image.Resampling.BICUBIC
    return [np.array(Image.fromarray(image).resize(size, how)) for size in sizes]


def multi_scale_cam(
    network: nn.Module, path: Path, classes: Sequence[int], device: torch.device
) -> dict[str, np.ndarray]:
    """The authors' make_cam: one image, one scale at a time; maps at stride 4 and at full size."""
    original = Image.open(path).convert("RGB")
    width, height = original.size
    multiple = -(-height // 16) * 16, -(-width // 16) * 16
    grids = {"cam": strided_size((height, width)), "hr_cam": multiple}
    sums = dict.fromkeys(grids, 0)
    for scale in SCALES:
        size = round(width * scale), round(height * scale)
        pixels = normalise(original.resize(size, Image.Resampling.BICUBIC))
        image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        maps = F.relu(network(torch.stack([image, image.flip(-1)]).to(device)))
        maps = (maps[0] + maps[1].flip(-1))[None]
        for name, grid in grids.items():
            sums[name] += F.interpolate(maps, grid, mode="bilinear", align_corners=False)[0]
    for name, maps in sums.items():
        maps = maps[torch.tensor(classes) - 1]
        maps = maps / (maps.amax((1, 2), keepdim=True) + 1e-5)
        sums[name] = maps[:, :height, :width].cpu().numpy()
    return sums


def dense_transition(edge: Tensor, radius: int, beta: float) -> Tensor:
    """IRN's transition matrix, dense (N, N), its columns adding up to 1; edge (h, w)."""
    height, width = edge.shape
    matrix = torch.eye(edge.numel(), dtype=edge.dtype, device=edge.device)
    grid = torch.arange(edge.numel(), device=edge.device).view(height, width)
    for (dy, dx), pairs in zip(paths(radius)[0], affinity(edge, radius), strict=True):
        source = grid[: height - dy, max(0, -dx) : width - max(0, dx)].flatten()
        target = source + dy * width + dx
        matrix[source, target] = matrix[target, source] = pairs.flatten()[source] ** beta
    return matrix / matrix.sum(0, keepdim=True)


def best_classes(folder: Path, image_id: str, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Class keys, the background's first, and the place of each pixel's best among them."""
    keys, maps = (np.load(folder / f"{image_id}.{name}.npy") for name in ("keys", "hr_cam"))
    background = np.float32(threshold)
    return keys, np.pad(maps, ((1, 0), (0, 0), (0, 0)), constant_values=background).argmax(0)


def affinity_label(image_path: Path, folder: Path, out: Path) -> None:
    """The authors' make_affinity_labels for one image: a new DenseCRF2D for each of two passes."""
    image, labels = np.asarray(Image.open(image_path).convert("RGB")), []
    for threshold in (0.40, 0.10):
        keys, best = best_classes(folder, image_path.stem, threshold)
        labels.append(keys[crf.refine_labels(image, best, len(keys), 10, backend="pydensecrf")])
    label = np.where(labels[0] > 0, labels[0], np.where(labels[1] > 0, 255, 0))
    Image.fromarray(label.astype(np.uint8)).save(out)


def sweep_by_files(
    data: DataRoot, ids: Sequence[str], cams: Path, thresholds: Sequence[float]
) -> list[float]:
    """The authors' evaluate.py: for every threshold all files again; mIoU (%) of each."""
    found = []
    for threshold in thresholds:
        predicted, true, hits = (np.zeros(data.n_labels) for _ in range(3))
        for image_id in ids:
            keys, best = best_classes(cams, image_id, threshold)
            pred, gt = keys[best], np.array(Image.open(data.mask_path(image_id)))
            valid = gt < 255
            correct = (pred == gt) & valid
            for label in range(data.n_labels):
                predicted[label] += np.sum((pred == label) & valid)
                true[label] += np.sum((gt == label) & valid)
                hits[label] += np.sum((gt == label) & correct)
        union = predicted + true - hits
        found.append(100 * float(np.mean(hits[union > 0] / union[union > 0])))
    return found
