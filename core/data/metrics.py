"""Figures of label maps from confusion matrices, of all thresholds in one pass; of rankings."""

from collections.abc import Sequence

from core.data.images import IGNORE

import cv2
import numpy as np

CELLS = 4096  # of [0, 1], among which a table finds the thresholds


class ConfusionMatrix:
    """Pixel counts of ground truth against prediction, for classes 0..n_classes-1 (0 = background).

    `matrix` is int64 (n_classes, n_classes + 1): rows are the ground truth, columns the prediction;
    the last column counts the pixels whose prediction is no class at all (255, say), a miss.
    """

    def __init__(self, n_classes: int) -> None:
        if not 1 <= n_classes <= IGNORE:
            raise ValueError(f"the number of classes must be in 1..{IGNORE}, not {n_classes}")
        self.n_classes = n_classes
        self.matrix = np.zeros((n_classes, n_classes + 1), np.int64)

    def update(self, pred: np.ndarray, gt: np.ndarray) -> None:
        """Count one image or batch: integer arrays or tensors of the same shape, any order.

        Pixels with gt 255 are ignored. Raises ValueError for other labels in gt that are no class,
        for shapes that differ, for arrays that are not of integers.
        """
        cells = _cells(pred, gt, self.n_classes)
        counts = np.bincount(cells.ravel(), minlength=(self.n_classes + 1) ** 2)
        self.matrix += counts.reshape(-1, self.n_classes + 1)[:-1]

    def merge(self, other: "ConfusionMatrix") -> None:
        """Add the counts of another process. Raises ValueError for another number of classes."""
        self.matrix += other.matrix  # NumPy refuses another shape

    def iou(self) -> np.ndarray:
        """Intersection over union in percent, (n_classes,); NaN for a class on neither side."""
        return 100 * self._share(self.matrix.diagonal())

    def miou(self) -> float:
        """Mean of `iou` in percent, over the classes seen, the background included."""
        return mean(self.iou())

    def fp(self, background: bool = True) -> float:
        """Pixels wrongly given to a class, as a fraction of its union; mean over the classes seen.

        The mean of the authors' training log has the background in it, so that
        miou() / 100 + fp() + fn() = 1; that of their evaluate.py leaves it out.
        """
        false = self.matrix[:, :-1].sum(0) - self.matrix.diagonal()
        return mean(self._share(false)[0 if background else 1 :])

    def fn(self, background: bool = True) -> float:
        """Pixels of a class that were missed, as a fraction of its union; mean as in `fp`."""
        missed = self.matrix.sum(1) - self.matrix.diagonal()
        return mean(self._share(missed)[0 if background else 1 :])

    def precision(self) -> np.ndarray:
        """Share of the pixels given to a class that are of it, in percent; NaN without any."""
        given = self.matrix[:, :-1].sum(0)
        return _percent(self.matrix.diagonal(), given)

    def recall(self) -> np.ndarray:
        """Share of a class's pixels that are given to it, in percent; NaN without any."""
        return _percent(self.matrix.diagonal(), self.matrix.sum(1))

    def _share(self, counts: np.ndarray) -> np.ndarray:
        union = self.matrix.sum(1) + self.matrix[:, :-1].sum(0) - self.matrix.diagonal()
        return np.divide(counts, union, out=np.full(self.n_classes, np.nan), where=union > 0)


class ThresholdSweep:
    """The confusion matrices of all background thresholds, from one pass over the images.

    A pixel is its best foreground class where that class's score is above the threshold, else
    background: the argmax of [threshold, scores], in which background wins ties. So the joint
    histogram (ground truth, best class, number of thresholds below the score) holds them all.
    """

    def __init__(self, n_classes: int, thresholds: Sequence[float]) -> None:
        self.thresholds = np.sort(np.asarray(thresholds, np.float64))
        if self.thresholds.ndim != 1 or not np.isfinite(self.thresholds).all():
            raise ValueError(f"thresholds must be a list of numbers, not {thresholds}")
        self.n_classes = n_classes
        rows, columns = ConfusionMatrix(n_classes).matrix.shape
        self.histogram = np.zeros((rows, columns, len(self.thresholds) + 1), np.int64)
        self._table = _table(self.thresholds.astype(np.float32))

    def _below(self, scores: np.ndarray) -> np.ndarray:
        """Number of thresholds below each score: by a table, a tenth of a binary search's time."""
        if self._table is None or scores.dtype != np.float32:
            return np.searchsorted(self.thresholds.astype(scores.dtype), scores, side="left")
        lower, edge = self._table
        cell = (scores * np.float32(CELLS)).clip(0, CELLS).astype(np.intp)
        return lower.take(cell) + (scores > edge.take(cell))

    def update(self, classes: np.ndarray, scores: np.ndarray, gt: np.ndarray) -> None:
        """Count one image: the best class of every pixel, its score (floating point), ground truth.

        All of one shape. The comparison is made in the type of the scores, as by an argmax over
        [threshold, scores]. Raises ValueError as `ConfusionMatrix.update` does, and for NaN scores.
        """
        scores = np.asarray(scores)
        cells = _cells(classes, gt, self.n_classes)
        if scores.shape != cells.shape or scores.dtype.kind != "f" or np.isnan(scores).any():
            raise ValueError(f"scores must be numbers of shape {cells.shape}, one for each pixel")
        rows, columns, bins = self.histogram.shape
        places = (cells * bins + self._below(scores)).ravel()
        counts = np.bincount(places, minlength=(rows + 1) * columns * bins)
        self.histogram += counts.reshape(-1, columns, bins)[:-1]

    def merge(self, other: "ThresholdSweep") -> None:
        """Add the counts of another process. Raises ValueError for other thresholds or classes."""
        if not np.array_equal(self.thresholds, other.thresholds):
            raise ValueError("cannot add a sweep over other thresholds")
        self.histogram += other.histogram

    def confusions(self) -> list[ConfusionMatrix]:
        """One matrix per threshold, in the order of `self.thresholds` (ascending)."""
        confusions = [ConfusionMatrix(self.n_classes) for _ in self.thresholds]
        # The bin b holds the scores above exactly b thresholds: foreground for those before b.
        background = self.histogram.cumsum(-1)
        for i, confusion in enumerate(confusions):
            confusion.matrix += background[..., -1] - background[..., i]
            confusion.matrix[:, 0] += background[..., i].sum(1)
        return confusions


def _table(thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """For each 4096th of [0, 1]: how many thresholds lie in those before, and the one in it or inf.

    Multiplying by 4096 rounds nothing. None where two share a cell or one lies outside [0, 1].
    """
    cells = (thresholds * CELLS).clip(0, CELLS).astype(np.intp)
    outside = (thresholds < 0).any() or (thresholds > 1).any()
    if outside or len(np.unique(cells)) < len(cells):
        return None
    edge = np.full(CELLS + 1, np.inf, np.float32)
    edge[cells] = thresholds
    return np.searchsorted(cells, np.arange(CELLS + 1), side="left"), edge


class BoundaryIoU:
    """IoU of the inner edges of classes (Cheng et al., CVPR 2021): which outlines are right.

    An edge is what of a class's pixels lies within `ratio` of the image's diagonal from its
    outline, the image's border included; pixels whose ground truth is 255 are on neither side.
    Intersections and unions add up over the images, as in `ConfusionMatrix`.
    """

    def __init__(self, n_classes: int, ratio: float = 0.02) -> None:
        self.counts, self.ratio = np.zeros((n_classes, 2), np.int64), ratio

    def update(self, pred: np.ndarray, gt: np.ndarray) -> None:
        """Count one image: uint8 label maps (H, W)."""
        width = max(1, round(self.ratio * float(np.hypot(*gt.shape))))
        known = gt != IGNORE
        for index in np.union1d(pred, gt):
            if index < len(self.counts):
                inside = [_edge(label == index, width) & known for label in (pred, gt)]
                both, either = np.logical_and(*inside).sum(), np.logical_or(*inside).sum()
                self.counts[index] += (both, either)

    def merge(self, other: "BoundaryIoU") -> None:
        """Add the counts of another process."""
        self.counts += other.counts

    def iou(self) -> np.ndarray:
        """In percent, (n_classes,); NaN for a class on neither side."""
        return _percent(*self.counts.T)


def _edge(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of a mask that a 3x3 erosion, `width` times, takes away; outside is background."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)
    return mask & (eroded[1:-1, 1:-1] == 0)


def _percent(counts: np.ndarray, of: np.ndarray) -> np.ndarray:
    return 100 * np.divide(counts, of, out=np.full(len(of), np.nan), where=of > 0)


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Average precision of a ranking, in percent: the mean, over the positives, of the precision
    at their rank. NaN without a positive; equal scores share the rank of the last of them.

    Scores (N,), positive bool (N,). The area under the precision-recall curve without interpolation
    (as scikit-learn's), not VOC's 11 points.
    """
    below = np.searchsorted(np.sort(-scores), -scores[positive], side="right")
    hits = np.searchsorted(np.sort(-scores[positive]), -scores[positive], side="right")
    return 100 * mean(hits / below)


def _cells(pred: np.ndarray, gt: np.ndarray, n_classes: int) -> np.ndarray:
    """Cell of every pixel in the flattened (n_classes + 1, n_classes + 1) matrix.

    The last row holds the ignored pixels, the last column the predictions that are no class.
    """
    pred, gt = np.asarray(pred), np.asarray(gt)
    if pred.shape != gt.shape or pred.dtype.kind not in "iu" or gt.dtype.kind not in "iu":
        found = f"{pred.dtype} {pred.shape} and {gt.dtype} {gt.shape}"
        raise ValueError(f"prediction and ground truth must be integers of one shape, not {found}")
    wrong = ((gt < 0) | (gt >= n_classes)) & (gt != IGNORE)
    if wrong.any():
        known = f"neither a class 0..{n_classes - 1} nor 255"
        raise ValueError(f"ground truth holds label {gt[wrong][0]}: {known}")
    rows, columns = np.minimum(gt.astype(np.intp), n_classes), pred.astype(np.intp)
    columns[(columns < 0) | (columns >= n_classes)] = n_classes
    return rows * (n_classes + 1) + columns


def mean(values: np.ndarray) -> float:
    """Mean without the NaN; NaN, silently, where nothing is left."""
    seen = values[~np.isnan(values)]
    return float(seen.mean()) if seen.size else float("nan")
