"""Masks as polygons and as COCO's run lengths.

Coordinates are of the pixels' corners: x and y of pixel (row, column) go from column to column + 1
and from row to row + 1, as in COCO, labelme, CVAT and Label Studio.
"""

import cv2
import numpy as np


def _corners(contour: np.ndarray, tolerance: float) -> np.ndarray:
    """A contour of the doubled mask as (N, 2) pixel corners, without points on a straight line."""
    points = (contour[:, 0] + 1) // 2  # of the doubled pixels 2k and 2k + 1: the edges k and k + 1
    points = points[np.any(points != np.roll(points, 1, 0), 1)]
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    points = points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
    if tolerance:
        fewer = cv2.approxPolyDP(points[:, None].astype(np.int32), tolerance, True)[:, 0]
        points = fewer if len(fewer) > 2 else points
    return points


def _cut_open(outer: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """One ring for a ring and a hole in it: there and back over the shortest way between points."""
    distances = ((outer[:, None] - hole) ** 2).sum(2)
    i, j = np.unravel_index(np.argmin(distances), distances.shape)
    there = np.concatenate([hole[j:], hole[: j + 1]])
    return np.concatenate([outer[: i + 1], there, outer[i:]])


def polygons(mask: np.ndarray, tolerance: float = 0.0) -> list[np.ndarray]:
    """The polygons of a mask (H, W), each (N, 2) of x and y; filled, they are the mask again.

    One for each part, the largest first; holes are cut open to the outside, since polygons of
    these forms have none. Pixels that touch at a corner are of the same part.

    Args:
        tolerance: pixels that the outline may be off, for fewer points; 0 is exact.
    """
    doubled = mask.astype(np.uint8).repeat(2, 0).repeat(2, 1)
    contours, tree = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parts = {i: [_corners(c, tolerance)] for i, c in enumerate(contours) if tree[0, i, 3] < 0}
    for i, contour in enumerate(contours):
        if tree[0, i, 3] >= 0:
            parts[tree[0, i, 3]].append(_corners(contour, tolerance))
    rings = []
    for outer, *holes in sorted(parts.values(), key=lambda part: -area(part[0])):
        for hole in sorted(holes, key=lambda hole: hole[:, 0].min()):
            outer = _cut_open(outer, hole)
        rings.append(outer)
    return rings


def area(ring: np.ndarray) -> float:
    """The area within a ring of points."""
    x, y = ring.astype(np.float64).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed counts: of 0, of 1, of 0, ... down the columns, one after the other."""
    flat = mask.T.ravel().astype(bool)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return [0, *counts] if flat[0] else counts
