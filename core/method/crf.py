"""Dense CRF refinement of label maps and class probabilities.

Mean-field inference in a fully connected CRF with Gaussian edge potentials (Krähenbühl and Koltun,
NIPS 2011), with two backends that give the same labels: `torch` (CPU or CUDA, see
`core.method.lattice`) and `pydensecrf` (their C++ code, one CPU core). Arrays, tensors on any
device and PIL images are taken alike; results are NumPy arrays.

Several images in flight on one GPU: call from several threads, each on a CUDA stream of its own.
The calls share nothing but the cache of spatial lattices, which is safe to share, and wait for the
GPU twice: for the size of the image's lattice (and of the spatial one of a new image size) and for
the result; where labels may be left out a third time, for which count (`labels_that_count`).
1200x900 pixels with 21 labels take 1 GB of GPU memory on a photograph, 2.5 GB at most.
"""

import functools
import importlib
from types import ModuleType
from typing import Any

from core.errors import InputError
from core.method import segmentation
from core.method.lattice import bilateral_lattice, spatial_lattice
from core.recipe import LABEL_CRF, PROBABILITY_CRF

import numpy as np
import torch
from torch import Tensor

Device = torch.device | str | None
BACKENDS = ("torch", "pydensecrf")

# Widths of the bilateral term: sxy in pixels, srgb in 8-bit colour steps.
LABEL_WIDTHS = {"sxy": LABEL_CRF.bilateral_sxy, "srgb": LABEL_CRF.bilateral_srgb}
PROBABILITY_WIDTHS = {"sxy": PROBABILITY_CRF.bilateral_sxy, "srgb": PROBABILITY_CRF.bilateral_srgb}


def require(backend: str) -> str:
    """The backend's name, where it can be used.

    Raises ValueError for another name than those of `BACKENDS`, InputError where pydensecrf does
    not import.
    """
    if backend not in BACKENDS:
        raise ValueError(f"CRF backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    if backend == "pydensecrf" and _pydensecrf() is None:
        remedy = "install requirements-crf.txt, which needs a C++ compiler, or use torch"
        raise InputError(f"CRF backend pydensecrf does not import: {remedy}")
    return backend


def device_of(backend: str, device: torch.device) -> torch.device:
    """Where a resolved backend computes, given the device of the networks."""
    return device if backend == "torch" else torch.device("cpu")


def refine_labels(
    image: Any,
    labels: Any,
    n_labels: int,
    iterations: int,
    backend: str = "torch",
    device: Device = None,
) -> np.ndarray:
    """`DenseCRF.refine_labels` of one image, at the widths for label maps (sxy 50, srgb 5)."""
    crf = DenseCRF(image, **LABEL_WIDTHS, backend=backend, device=device)
    return crf.refine_labels(labels, n_labels, iterations)


def refine_probabilities(
    image: Any,
    probs: Any,
    iterations: int,
    backend: str = "torch",
    device: Device = None,
    left_out: float = 0.0,
) -> np.ndarray:
    """`DenseCRF.refine_probabilities` of one image, at the segmentation's widths (80 and 13)."""
    crf = DenseCRF(image, **PROBABILITY_WIDTHS, backend=backend, device=device)
    return crf.refine_probabilities(probs, iterations, left_out)


def most_probable(
    image: Any,
    probs: Any,
    iterations: int,
    backend: str = "torch",
    device: Device = None,
    left_out: float = 0.0,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """`DenseCRF.most_probable` of one image, at the segmentation's widths (80 and 13)."""
    crf = DenseCRF(image, **PROBABILITY_WIDTHS, backend=backend, device=device)
    return crf.most_probable(probs, iterations, left_out, size)


def labels_that_count(probs: Tensor, left_out: float) -> Tensor:
    """The labels that a dense CRF of probabilities (C, H, W) filters, ascending int64 (K,).

    Left out are those of the lowest peaks that together hold no more than `left_out` at any pixel;
    never the most probable label of a pixel, nor the background, 0, unless it is ruled out (0 at
    every pixel).
    """
    flat = probs.flatten(1)
    peaks = flat.amax(1)
    order = peaks.argsort()
    held = flat[order].cumsum(0).amax(1)  # at some pixel, by a label and all of lower peaks
    counts = torch.zeros_like(peaks, dtype=torch.bool).scatter_(0, order, held > left_out)
    counts.scatter_(0, flat.argmax(0), True)
    counts[0] |= peaks[0] > 0
    return counts.nonzero().squeeze(1)


def may_leave_out(n_labels: int) -> float:
    """`left_out` of the predictions: of more labels than VOC's the recipe's, else 0."""
    return PROBABILITY_CRF.left_out if n_labels > PROBABILITY_CRF.many_labels else 0.0


class DenseCRF:
    """The pairwise terms of one image, built once and used for any number of passes.

    Image uint8 (H, W, 3); sxy and srgb: widths of the bilateral term, in pixels and in colour steps
    (0..255); device: where the torch backend works, None is the CPU. Raises ValueError for another
    image or a width that is not positive, and as `require` does.
    """

    def __init__(
        self, image: Any, sxy: float, srgb: float, backend: str = "torch", device: Device = None
    ) -> None:
        if not (sxy > 0 and srgb > 0):
            raise ValueError(f"CRF: sxy and srgb must be positive, not {sxy} and {srgb}")
        self.backend = require(backend)
        image = _tensor(image, "image", "uint8", (None, None, 3))
        where = device_of(self.backend, torch.device(device or "cpu"))
        self._image = _send(image, where, copy=True).contiguous()
        self.device = self._image.device  # a "cuda" without an index has one now
        height, width = self._size = tuple(image.shape[:2])
        self._widths = {"sxy": float(sxy), "srgb": float(srgb)}
        self._compiled: dict[int, Any] = {}  # a model of pydensecrf has a fixed number of labels
        if self.backend == "torch":
            spatial = spatial_lattice(height, width, LABEL_CRF.gaussian_sxy, self.device)
            bilateral = bilateral_lattice(self._image, **self._widths)
            weights = LABEL_CRF.gaussian_compat, LABEL_CRF.bilateral_compat
            self._terms = list(zip((spatial, bilateral), weights, strict=True))

    def refine_labels(self, labels: Any, n_labels: int, iterations: int) -> np.ndarray:
        """Refine a label map of which each pixel is right with the recipe's probability, 0.7.

        Labels (H, W), integers in 0..n_labels-1; iterations: mean-field steps, 0 or more. Returns
        the most probable label (H, W), the lowest on ties: uint8, or int64 if n_labels > 256.
        Raises ValueError for labels of another size, type or range.
        """
        return self.refine_label_maps([labels], n_labels, iterations)[0]

    def refine_label_maps(
        self, maps: list[Any], n_labels: int, iterations: int
    ) -> list[np.ndarray]:
        """`refine_labels` for several label maps of the image.

        The torch backend filters all maps at once: gathering six floats costs what three do.
        """
        unaries, right = [], LABEL_CRF.gt_prob
        wrong = (1 - right) / max(n_labels - 1, 1)
        for labels in maps:
            labels = _tensor(labels, "labels", "integer", self._size)
            if labels.is_cpu:  # on a GPU `scatter_` refuses them: to ask would make the host wait
                low, high = (int(value) for value in labels.long().aminmax())
                if low < 0 or high >= n_labels:
                    raise ValueError(f"CRF: labels {low}..{high} do not fit n_labels {n_labels}")
            labels = _send(labels, self.device).long()
            unary = labels.new_full((n_labels, labels.numel()), -np.log(wrong), dtype=torch.float32)
            unaries.append(unary.scatter_(0, labels.reshape(1, -1), -np.log(right)))
        best = self._infer(torch.stack(unaries), iterations).argmax(1).view(-1, *self._size)
        return list(best.to(torch.uint8 if n_labels <= 256 else torch.int64).cpu().numpy())

    def refine_probabilities(
        self, probs: Any, iterations: int, left_out: float = 0.0
    ) -> np.ndarray:
        """Refine class probabilities; the unary energy is -log(max(probs, 1e-5)).

        Probs (C, H, W) floating, each in 0..1; iterations: mean-field steps, 0 or more; left_out:
        what the labels that are left out for speed may hold together at any pixel
        (`labels_that_count`), 0 filters all. Returns (C, H, W) float32 marginals, which add up to 1
        at each pixel; labels left out have 0. Raises ValueError for probabilities of another size
        or type, NaN, or outside 0..1.
        """
        q = self._marginals(probs, iterations, left_out).cpu().numpy()
        _refuse(np.isnan(q[0, 0, 0]))
        return q

    def most_probable(
        self, probs: Any, iterations: int, left_out: float = 0.0,
        size: tuple[int, int] | None = None,
    ) -> np.ndarray:  # fmt: skip
        """The argmax of `refine_probabilities`, taken on the device: marginals are 4 C bytes each.

        Size: (H, W) to which the marginals are resized before, bilinearly; None: the image's own.
        Returns (H, W) labels, the lowest on ties: uint8, or int64 if C > 256.
        """
        q = self._marginals(probs, iterations, left_out)
        label = segmentation.argmax_at_size(q, size or self._size)
        best = torch.where(q[0, 0, 0].isnan(), -1, label.int()).cpu().numpy()
        _refuse(best[0, 0] < 0)
        return best.astype(np.uint8 if len(q) <= 256 else np.int64)

    def _marginals(self, probs: Any, iterations: int, left_out: float) -> Tensor:
        """`refine_probabilities` as a tensor on the device; NaN if the probabilities are none."""
        probs = _tensor(probs, "probabilities", "floating", (None, *self._size)).detach()
        probs = _send(probs, self.device, dtype=torch.float32)
        # NaN fails both comparisons; the margin is for softmax outputs that round above 1. The
        # answer goes with the result: to ask for it here would make the host wait for a GPU.
        is_sound = ((probs >= -1e-3) & (probs <= 1 + 1e-3)).all()
        kept = labels_that_count(probs, left_out) if left_out else None
        some = probs if kept is None else probs.index_select(0, kept)
        clipped = some.flatten(1).clamp(PROBABILITY_CRF.min_prob, 1)
        # On a CPU NumPy's logarithm, which pydensecrf takes: torch's differs in the last bit.
        is_cpu = clipped.device.type == "cpu"
        unary = -torch.from_numpy(np.log(clipped.numpy())) if is_cpu else -clipped.log()
        q = self._infer(unary[None], iterations)[0].reshape(some.shape)
        if kept is not None:
            q = torch.zeros_like(probs).index_copy_(0, kept, q)
        return torch.where(is_sound, q, torch.nan)

    @torch.no_grad()
    def _infer(self, unaries: Tensor, iterations: int) -> Tensor:
        """Mean-field inference from M unary energies (M, C, N): the marginals (M, C, N)."""
        if iterations < 0:
            raise ValueError(f"CRF: iterations must be 0 or more, not {iterations}")
        if self.backend == "pydensecrf":
            return torch.stack([self._infer_compiled(unary, iterations) for unary in unaries])
        n_maps, n_labels, n_points = unaries.shape
        energy = unaries.flatten(0, 1).T.contiguous()  # the lattice wants the labels last
        q = _softmax_((-energy).view(-1, n_labels))
        for _ in range(iterations):
            logits = -energy
            for lattice, weight in self._terms:
                logits.add_(lattice.filter(q.view(n_points, -1)), alpha=weight)
            q = _softmax_(logits.view(-1, n_labels))
        return q.view(n_points, n_maps, n_labels).permute(1, 2, 0)

    def _infer_compiled(self, unary: Tensor, iterations: int) -> Tensor:
        n_labels = len(unary)
        if n_labels not in self._compiled:
            library = _pydensecrf()
            assert library is not None  # `require` has seen to it
            crf = library.DenseCRF2D(*self._size[::-1], n_labels)
            crf.addPairwiseGaussian(sxy=LABEL_CRF.gaussian_sxy, compat=LABEL_CRF.gaussian_compat)
            image = self._image.numpy()
            crf.addPairwiseBilateral(**self._widths, rgbim=image, compat=LABEL_CRF.bilateral_compat)
            self._compiled[n_labels] = crf
        self._compiled[n_labels].setUnaryEnergy(unary.contiguous().numpy())
        return torch.from_numpy(np.array(self._compiled[n_labels].inference(iterations)))


def _softmax_(logits: Tensor) -> Tensor:
    """Softmax over the last axis, in place: torch.softmax is 3 times slower on 3 labels."""
    logits -= logits.amax(1, keepdim=True)
    logits.exp_()
    return logits.div_(logits.sum(1, keepdim=True))


def _send(tensor: Tensor, device: torch.device, **changes: Any) -> Tensor:
    """`tensor` on `device`, without a wait for the GPU that takes it (one that gives it must)."""
    return tensor.to(device, non_blocking=device.type != "cpu", **changes)


def _refuse(is_bad: bool) -> None:
    if is_bad:
        raise ValueError("CRF: the probabilities hold NaN or values outside 0..1")


@functools.cache
def _pydensecrf() -> ModuleType | None:
    try:
        return importlib.import_module("pydensecrf.densecrf")
    except Exception:  # missing, or built for another Python or NumPy: errors of any kind
        return None


def _tensor(array: Any, name: str, kind: str, shape: tuple[int | None, ...]) -> Tensor:
    """`array` as a tensor, if it is of that kind and shape (None: any length but 0)."""
    if not isinstance(array, Tensor):
        array = torch.from_numpy(np.array(array, order="C"))  # it may be read-only or reversed
    is_float = array.is_floating_point()
    kinds = {"uint8": array.dtype == torch.uint8, "integer": not is_float, "floating": is_float}
    found = tuple(array.shape)
    fits = kinds[kind] and len(found) == len(shape) and 0 not in found
    if not (fits and all(b in (None, a) for a, b in zip(found, shape, strict=True))):
        wanted = tuple("any" if length is None else length for length in shape)
        raise ValueError(f"CRF: the {name} must be {kind} {wanted}, not {array.dtype} {found}")
    return array
