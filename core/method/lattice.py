"""Gaussian filtering of scattered points on the permutohedral lattice.

Adams, Baek and Davis, "Fast high-dimensional filtering using the permutohedral lattice", 2010, in
the form of the code that pydensecrf wraps, Krähenbühl and Koltun's dense CRF. The float32
operations that place a point are theirs, in their order: only sums round differently.

The d features of a point are lifted onto the plane sum(x) = 0 of R^(d+1), which the lattice tiles
with simplices. A point spreads its value over the d+1 vertices of the simplex around it (splat),
the vertices are blurred with [1/2 1 1/2] along the d+1 directions of the lattice, and the point
reads its vertices with the same weights (slice). The cost is linear in the number of points.
"""

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Label columns are filtered in groups, so that one buffer of vertex values stays below 512 MiB.
_MAX_VALUES = 2**27


class Lattice:
    """The lattice of one set of points: built once, then `filter` for any number of values.

    Its features are (N, d) float32 on any device, in units of the Gaussian's standard deviation.
    Every step of `filter` adds up gathered rows (`embedding_bag`); nothing is scattered with atomic
    additions, so that a result is the same in every run on the same device.

    Memory: 16 (d+1) bytes per point and 8 (d+1) per vertex, of which there are at most d+1 per
    point, in photographs about 1; `filter` adds 8 bytes per vertex and label, 1 GiB at most.
    """

    @torch.no_grad()
    def __init__(self, features: Tensor) -> None:
        n, d = features.shape
        # pydensecrf works on four points at a time and fills up with zero features. Their vertices
        # take part in the blur, so they are kept; one such point is enough.
        points = F.pad(features.T, (0, int(n % 4 > 0))).contiguous()
        base, rank, weights = _enclosing_simplex(_elevate(points))
        keys, steps = _vertex_keys(base, rank)
        weights[:, n:] = 0

        order = _argsort(keys)
        keys = keys.index_select(0, order)  # several times faster than keys[order] on a CPU
        is_first = F.pad(keys[1:] != keys[:-1], (1, 0), value=True)
        # The one place where the host waits for a GPU: only the colours tell how many vertices
        # there are, and room for the most there can be would make the blur 6 times as long.
        starts = is_first.nonzero().squeeze(1)
        vertex = torch.empty_like(order, dtype=torch.int32)
        vertex.scatter_(0, order, is_first.cumsum(0, dtype=torch.int32) - 1)

        # The row after the last vertex is kept at zero: missing neighbours point to it.
        self._offsets = F.pad(starts, (0, 1), value=len(keys)).int()
        self._points = (order // (d + 1)).clamp_(max=n - 1).int()
        self._splat_weights = weights.T.reshape(-1).index_select(0, order)
        self._neighbours = _neighbours(keys.index_select(0, starts), steps)
        self._vertices = vertex.view(-1, d + 1)[:n].contiguous()
        self._slice_weights = weights.T[:n].contiguous() * (1 / (1 + 2.0**-d))

    @torch.no_grad()
    def normalize_(self) -> "Lattice":
        """Divide values by the root of the filter's response to ones, before and after `filter`.

        This is the dense CRF's symmetric normalisation; the weights take up the factors, so that it
        costs nothing. Returns the lattice.
        """
        ones = torch.ones_like(self._slice_weights[:, :1])
        factor = (self.filter(ones) + 1e-20).rsqrt_()
        self._splat_weights *= factor.squeeze(1).index_select(0, self._points)
        self._slice_weights *= factor
        return self

    @torch.no_grad()
    def filter(self, values: Tensor) -> Tensor:
        """Blur `values` (N, L) float32, labels last; returns a new (N, L)."""
        columns = max(1, _MAX_VALUES // max(len(self._offsets), len(values)))
        if values.shape[1] > columns:
            return torch.cat([self.filter(part) for part in values.split(columns, 1)], 1)
        add_up = functools.partial(F.embedding_bag, mode="sum")
        splat, slice_ = self._splat_weights, self._slice_weights
        x = add_up(self._points, values.contiguous(), self._offsets, per_sample_weights=splat)
        for neighbours in self._neighbours:
            x.add_(add_up(neighbours, x), alpha=0.5)
        return add_up(self._vertices, x, per_sample_weights=slice_)


def bilateral_lattice(image: Tensor, sxy: float, srgb: float) -> Lattice:
    """Of a uint8 image (H, W, 3): x and y in units of sxy; r, g and b in units of srgb."""
    colours = image.view(-1, 3) / torch.full((), srgb, device=image.device)
    height, width, _ = image.shape
    features = torch.cat([_positions(height, width, sxy, image.device), colours], 1)
    return Lattice(features).normalize_()


def spatial_lattice(height: int, width: int, sxy: float, device: torch.device) -> Lattice:
    """It knows nothing of an image but the size, which many images share: the last 8 are kept."""
    lattice, built_on, ready = _shared_lattice(height, width, sxy, device)
    if built_on is not None:
        stream = torch.cuda.current_stream(device)
        if stream not in ready:  # once each: later it would wait for the other's next images
            stream.wait_stream(built_on)
            ready.add(stream)
    return lattice


@functools.lru_cache(maxsize=8)
def _shared_lattice(
    height: int, width: int, sxy: float, device: torch.device
) -> tuple[Lattice, torch.cuda.Stream | None, set[torch.cuda.Stream]]:
    """The lattice, the stream it was built on, and the streams that know it to be there."""
    lattice = Lattice(_positions(height, width, sxy, device)).normalize_()
    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    return lattice, stream, {stream} if stream is not None else set()


def _positions(height: int, width: int, sxy: float, device: torch.device) -> Tensor:
    """Features (H*W, 2) float32: x and y in units of sxy."""
    # Divided by a tensor: CUDA multiplies by the inverse of a number, which rounds differently.
    step = torch.full((), sxy, device=device)
    x = torch.arange(width, dtype=torch.float32, device=device) / step
    y = torch.arange(height, dtype=torch.float32, device=device) / step
    return torch.cartesian_prod(y, x).flip(1)


def _elevate(points: Tensor) -> Tensor:
    """Features (d, N) -> coordinates (d+1, N) on the plane sum(x) = 0 (Adams et al., p. 5)."""
    d, n = points.shape
    # float32 constants in the order of the C++ code: the last bit decides which simplex.
    deviation = float(np.float32(math.sqrt(2 / 3) * (d + 1)))
    elevated = points.new_empty(d + 1, n)
    total = points.new_zeros(n)
    for i in range(d, 0, -1):
        scaled = points[i - 1] * float(np.float32(1 / math.sqrt(i * (i + 1)) * deviation))
        elevated[i] = total - i * scaled
        total = total + scaled
    elevated[0] = total
    return elevated


def _enclosing_simplex(elevated: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Find the simplex around each point (Adams et al., p. 6 and 10).

    Returns, all (d+1, N): `base`, integers (as float32) with base * (d+1) the simplex's vertex 0;
    `rank`, int64, each coordinate's place (0: largest) among the offsets from vertex 0; the
    barycentric weights of the vertices 0..d.
    """
    d = len(elevated) - 1
    down = float(np.float32(1) / np.float32(d + 1))
    base = torch.round(elevated * down)
    offset = elevated - base * (d + 1)
    rank = base.sum(0).to(torch.int8).repeat(d + 1, 1)  # not 0 where rounding left the plane
    for i in range(d):
        is_larger = offset[i] >= offset[i + 1 :]
        rank[i] += d - i - is_larger.sum(0, dtype=torch.int8)
        rank[i + 1 :] += is_larger
    shift = (rank < 0).to(torch.int8) - (rank > d).to(torch.int8)
    base += shift
    rank = (rank + (d + 1) * shift).long()

    offset = (elevated - base * (d + 1)) * down
    ordered = torch.empty_like(offset).scatter_(0, rank, offset).flip(0)
    weights = torch.empty_like(ordered)
    weights[0] = ordered[0] + (1 - ordered[d])
    weights[1:] = ordered[1:] - ordered[:-1]
    return base, rank, weights


def _vertex_keys(base: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """Give every vertex of every simplex one integer, linear in its coordinates.

    The d+1 coordinates of a lattice vertex are congruent mod d+1 and add up to 0, so the d numbers
    (x[i] - x[i-1]) / (d+1) determine it; they are the digits of a mixed-radix number. A step along
    lattice direction i (+d at i, -1 elsewhere) changes that number by the constant `steps[i]`.

    Returns keys (N * (d+1),) int64, the d+1 vertices of a point side by side, and the steps (d+1,).
    """
    d = len(base) - 1
    digits = base[1:] - base[:-1]
    # The vertices of a simplex differ from vertex 0 by at most 1 per digit, neighbours by 1 more.
    spans = digits.amax(1) - digits.amin(1) + 5
    strides = F.pad(spans[:-1].long().cumprod(0), (1, 0), value=1)
    # Too many cells for 63 bits (no image at the usual widths comes near): the strides become
    # fixed random 62-bit numbers and the key a hash with wrap-around, linear all the same. Two of a
    # million vertices collide with probability 1e-7. Chosen on the device: the host does not ask.
    hashed = torch.from_numpy(np.random.default_rng(0).integers(2**61, 2**62, d))
    hashed = hashed.to(base.device, non_blocking=True)
    strides = torch.where(spans.double().prod() < 2.0**62, strides, hashed)
    steps = F.pad(strides, (0, 1)) - F.pad(strides, (1, 0))

    # Vertex r has subtracted d+1 from the r coordinates of the highest rank, and added r to all.
    moves = torch.empty_like(rank).scatter_(0, rank, steps[:, None].expand_as(rank)).flip(0)
    keys = torch.zeros_like(rank)
    for coordinate, step in zip(base.long(), steps, strict=True):
        keys[0] += coordinate * step
    for r in range(d):
        torch.sub(keys[r], moves[r], out=keys[r + 1])
    return keys.T.reshape(-1), steps


def _argsort(keys: Tensor) -> Tensor:
    """Stable argsort of int64 keys; on a CPU by NumPy's radix sort, 16 bits at a time."""
    if keys.device.type != "cpu":
        return keys.sort(stable=True).indices
    # A million keys take 25 ms on one core, a third of the time of a comparison sort.
    digits = (keys - keys.min()).numpy().view(np.uint64)
    order = np.argsort(digits.astype(np.uint16), kind="stable")
    for shift in range(16, int(digits.max()).bit_length(), 16):
        digit = (digits >> np.uint64(shift)).astype(np.uint16)
        order = order[np.argsort(digit[order], kind="stable")]
    return torch.from_numpy(order)


def _neighbours(keys: Tensor, steps: Tensor) -> Tensor:
    """The two vertices next to each vertex along each direction; `keys` (M,) sorted, unique.

    Returns (d+1, M+1, 2) int32, the rows of the next and the previous one; M where there is none.
    """
    m = len(keys)
    rows = torch.full((len(steps), m + 1, 2), m, dtype=torch.int32, device=keys.device)
    itself = torch.arange(m, dtype=torch.int32, device=keys.device)
    for row, step in zip(rows, steps, strict=True):
        wanted = keys + step
        if keys.device.type == "cpu":
            after, before = _common(keys.numpy(), wanted.numpy())
            row.numpy()[before, 0], row.numpy()[after, 1] = after, before
            continue
        found = torch.searchsorted(keys, wanted).clamp_(max=m - 1)
        following = torch.where(keys.index_select(0, found) == wanted, found, m)
        row[:m, 0] = following
        row[:, 1].scatter_(0, following, itself)
        row[m] = m
    return rows


def _common(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the numbers that two arrays share are in each; none is twice in one.

    Both ascend (hashed keys in pieces), and NumPy's stable sort merges what is sorted already: a
    third of the time of searching for each.
    """
    both = np.concatenate([a, b])
    order = np.argsort(both, kind="stable")
    pairs = np.flatnonzero(both[order[1:]] == both[order[:-1]])
    return order[pairs], order[pairs + 1] - len(a)
