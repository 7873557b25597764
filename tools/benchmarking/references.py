"""The usual way of each stage, as competent but ordinary code does it.

The forms are those of the code that the authors of Puzzle-CAM released and of IRN, on which it
builds: PIL and float64 NumPy in the loader, float32 NCHW networks in eager mode, one image and one
scale at a time, dense N x N matrices, pydensecrf once per pass, all files read again for each
threshold, float32 CAMs at full resolution. What they compute is what core/ computes
(tests/test_benchmark.py compares them).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from core.data.transforms import MEAN, STD
from core.method.affinity import affinity, paths


def normalise(image: Image.Image | np.ndarray) -> np.ndarray:
    """RGB (H, W, 3) -> float32, channel by channel; the arithmetic is NumPy's, in float64."""
    image = np.asarray(image)
    result = np.empty_like(image, np.float32)
    for channel in range(3):
        result[..., channel] = (image[..., channel] / 255.0 - MEAN[channel]) / STD[channel]
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
    pixels = normalise(image)
    view = np.zeros((crop, crop, 3), np.float32)
    target, source = [], []
    for side in pixels.shape[:2]:
        offset = int(rng.integers(0, abs(side - crop) + 1))
        length = min(side, crop)
        target.append(slice(0, crop) if side > crop else slice(offset, offset + length))
        source.append(slice(offset, offset + crop) if side > crop else slice(0, length))
    view[tuple(target)] = pixels[tuple(source)]
    return view.transpose(2, 0, 1)


def tile(images: Tensor) -> Tensor:
    """The four quarters, all top-left ones first."""
    h, w = images.shape[2] // 2, images.shape[3] // 2
    rows = (images[:, :, :h], images[:, :, h:])
    return torch.cat([part for row in rows for part in (row[..., :w], row[..., w:])])


def merge(tiles: Tensor) -> Tensor:
    """The inverse of `tile`."""
    a, b, c, d = tiles.chunk(4)
    return torch.cat([torch.cat([a, b], 3), torch.cat([c, d], 3)], 2)


def puzzle_loss(network: nn.Module, images: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """L_cls + L_p-cls + alpha * L_re, in the precision of the network."""
    maps = network(images)
    merged = merge(network(tile(images)))
    loss = F.multilabel_soft_margin_loss(maps.mean((2, 3)), labels)
    loss = loss + F.multilabel_soft_margin_loss(merged.mean((2, 3)), labels)
    return loss + alpha * ((maps - merged).abs() * labels[:, :, None, None]).mean()


class PairAffinity(nn.Module):
    """IRN's affinities: an index of every pixel of every path, `index_select`, then the maximum."""

    def __init__(self, radius: int, height: int, width: int):
        super().__init__()
        offsets, lines = paths(radius)
        reach = radius - 1
        grid = np.arange(height * width).reshape(height, width)
        source = grid[: height - reach, reach : width - reach].reshape(-1)
        steps = [line @ (width, 1) for line in lines]
        self.order = np.argsort([len(s) for s in steps], kind="stable")  # grouped by length
        for number, length in enumerate(sorted({len(s) for s in steps})):
            group = np.stack([s for s in steps if len(s) == length])
            index = group[:, :, None] + source
            self.register_buffer(f"path_{number}", torch.from_numpy(index))
        self.n_lengths = number + 1
        target = source + (offsets[self.order] @ (width, 1))[:, None]
        self.register_buffer("source", torch.from_numpy(source))
        self.register_buffer("target", torch.from_numpy(target))

    def forward(self, edge: Tensor) -> Tensor:
        """(N, h, w) in [0, 1] -> (N, n_offsets, sources), offsets in the order `self.order`."""
        flat = edge.flatten(1)
        groups = []
        for number in range(self.n_lengths):
            index = getattr(self, f"path_{number}")
            pixels = flat.index_select(1, index.flatten()).view(len(flat), *index.shape)
            groups.append(1 - F.max_pool2d(pixels, (index.shape[1], 1)).squeeze(2))
        return torch.cat(groups, 1)

    def loss(self, edge: Tensor, label: Tensor) -> Tensor:
        """The affinity loss of edges (N, h, w) and label maps, uint8 (N, h, w)."""
        label = label.long().flatten(1)
        source, target = label[:, None, self.source], label[:, self.target]
        valid = (source != 255) & (target != 255)
        alike = (source == target) & valid
        background, foreground = (alike & (source == 0)).float(), (alike & (source > 0)).float()
        unlike = ((source != target) & valid).float()
        pairs = self(edge)
        positive, negative = -torch.log(pairs + 1e-5), -torch.log(1 + 1e-5 - pairs)

        def mean(values: Tensor, mask: Tensor) -> Tensor:
            return (values * mask).sum() / mask.sum().clamp(min=1)

        both = mean(positive, background) / 2 + mean(positive, foreground) / 2
        return (both + mean(negative, unlike)) / 2


def multi_scale_cam(
    network: nn.Module, path: Path, classes: Sequence[int], scales: Sequence[float],
    device: torch.device,
) -> dict[str, np.ndarray]:  # fmt: skip
    """The authors' make_cam: one image, one scale at a time; maps at stride 4 and at full size."""
    original = Image.open(path).convert("RGB")
    width, height = original.size
    strided, full = [], []
    for scale in scales:
        size = round(width * scale), round(height * scale)
        image = torch.from_numpy(
            normalise(original.resize(size, Image.Resampling.BICUBIC)).transpose(2, 0, 1).copy()
        )
        maps = F.relu(network(torch.stack([image, image.flip(-1)]).to(device)))
        maps = (maps[0] + maps[1].flip(-1))[None]
        for sizes, stride in ((strided, 4), (full, 16)):
            grid = (height - 1) // stride + 1, (width - 1) // stride + 1
            grid = grid if stride == 4 else (grid[0] * stride, grid[1] * stride)
            sizes.append(F.interpolate(maps, grid, mode="bilinear", align_corners=False)[0])
    keep = torch.tensor(classes) - 1
    cam, hr_cam = torch.stack(strided).sum(0)[keep], torch.stack(full).sum(0)[keep]
    cam = cam / (cam.amax((1, 2), keepdim=True) + 1e-5)
    hr_cam = hr_cam[:, :height, :width] / (hr_cam.amax((1, 2), keepdim=True) + 1e-5)
    keys = np.array([0, *classes])
    return {"keys": keys, "cam": cam.cpu().numpy(), "hr_cam": hr_cam.cpu().numpy()}


def dense_transition(edge: Tensor, radius: int, beta: float) -> Tensor:
    """IRN's transition matrix, dense (N, N), its columns adding up to 1; edge (h, w)."""
    height, width = edge.shape
    n = height * width
    matrix = torch.eye(n, dtype=edge.dtype, device=edge.device)
    grid = torch.arange(n, device=edge.device).view(height, width)
    for (dy, dx), pairs in zip(paths(radius)[0], affinity(edge, radius), strict=True):
        source = grid[: height - dy, max(0, -dx) : width - max(0, dx)].flatten()
        target = source + dy * width + dx
        values = pairs.flatten()[source] ** beta
        matrix[source, target] = values
        matrix[target, source] = values
    return matrix / matrix.sum(0, keepdim=True)


def dense_walk(cam: Tensor, edge: Tensor, radius: int, beta: float, log2_steps: int) -> Tensor:
    """(cam * (1 - edge)) T^(2^log2_steps), by squaring T; cam (K, h, w)."""
    matrix = dense_transition(edge, radius, beta)
    for _ in range(log2_steps):
        matrix = matrix @ matrix
    return ((cam * (1 - edge)).flatten(1) @ matrix).view(cam.shape)


def crf_labels(image: np.ndarray, labels: np.ndarray, n_labels: int, iterations: int) -> np.ndarray:
    """The authors' `crf_inference_label`: a new DenseCRF2D for every pass."""
    crf = dense_crf(image, n_labels, sxy=50, srgb=5)
    from pydensecrf.utils import unary_from_labels

    unary = unary_from_labels(labels, n_labels, gt_prob=0.7, zero_unsure=False)
    crf.setUnaryEnergy(np.ascontiguousarray(unary))
    q = np.array(crf.inference(iterations)).reshape(n_labels, *image.shape[:2])
    return q.argmax(0)


def dense_crf(image: np.ndarray, n_labels: int, sxy: float, srgb: float):
    """A DenseCRF2D with its two pairwise terms (the lattices are built here)."""
    import pydensecrf.densecrf

    height, width = image.shape[:2]
    crf = pydensecrf.densecrf.DenseCRF2D(width, height, n_labels)
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=np.array(image, order="C"), compat=10)
    return crf


def save_cams(folder: Path, image_id: str, **arrays: np.ndarray) -> None:
    """What the authors pickle in one file, an array a file: as many bytes, and no code in it."""
    for name, array in arrays.items():
        np.save(folder / f"{image_id}.{name}.npy", array)


def load_cams(folder: Path, image_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Class keys with the background first, and float32 CAMs (K, H, W) at full resolution."""
    names = (folder / f"{image_id}.{name}.npy" for name in ("keys", "hr_cam"))
    keys, cams = (np.load(name, allow_pickle=False) for name in names)
    return keys, cams


def affinity_label(image_path: Path, folder: Path, out: Path) -> None:
    """The authors' make_affinity_labels for one image: two dense CRFs, one after the other."""
    image = np.asarray(Image.open(image_path).convert("RGB"))
    keys, cams = load_cams(folder, image_path.stem)
    sure = []
    for threshold in (0.40, 0.10):
        padded = np.pad(cams, ((1, 0), (0, 0), (0, 0)), constant_values=threshold)
        sure.append(keys[crf_labels(image, padded.argmax(0), len(keys), 10)])
    label = sure[0].copy()
    label[sure[0] == 0] = 255
    label[(sure[0] + sure[1]) == 0] = 0
    Image.fromarray(label.astype(np.uint8)).save(out)


def sweep_by_files(
    ids: Sequence[str], cams: Path, mask_of: Callable[[str], Path], n_labels: int,
    thresholds: Sequence[float],
) -> list[float]:  # fmt: skip
    """The authors' evaluate.py: for every threshold all files again; mIoU (%) of each."""
    found = []
    for threshold in thresholds:
        predicted, true, hits = (np.zeros(n_labels) for _ in range(3))
        for image_id in ids:
            keys, maps = load_cams(cams, image_id)
            scores = np.pad(maps, ((1, 0), (0, 0), (0, 0)), constant_values=np.float32(threshold))
            pred = keys[scores.argmax(0)]
            gt = np.array(Image.open(mask_of(image_id)))
            valid = gt < 255
            correct = (pred == gt) & valid
            for label in range(n_labels):
                predicted[label] += np.sum((pred == label) & valid)
                true[label] += np.sum((gt == label) & valid)
                hits[label] += np.sum((gt == label) & correct)
        union = predicted + true - hits
        found.append(100 * float(np.mean(hits[union > 0] / union[union > 0])))
    return found
