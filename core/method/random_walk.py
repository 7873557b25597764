"""The random walk that carries class scores up to the boundaries, at any image size.

IRN (Ahn et al., CVPR 2019) squares the dense N x N transition matrix 8 times. T^256 x is also 256
products with a sparse T of 69 entries a pixel: the same scores, in 0.1 s instead of minutes on the
CPU at 94 x 125, and in 200 MB at 225 x 300, where the dense matrix alone takes 34 GiB.
"""

import warnings
from collections.abc import Sequence

from core.data.scores import upsample
from core.method.affinity import affinity, paths
from core.recipe import RANDOM_WALK

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad


def random_walk(
    cam: Tensor,
    edge: Tensor,
    radius: int = RANDOM_WALK.radius,
    beta: float = RANDOM_WALK.beta,
    log2_steps: int = RANDOM_WALK.log2_steps,
) -> Tensor:
    """Scores after 2^log2_steps steps: (cam * (1 - edge)) T^(2^log2_steps).

    Cam (K, h, w), finite, float32 or float64, K = 0 allowed; edge (h, w) in [0, 1]; tensors or
    arrays. Or of B images at once, which costs a GPU what one does: (B, K, h, w) and (B, h, w).
    Returns scores of the shape and type and on the device of `cam`. Float64 agrees with the dense
    form to 1e-12; float32 drifts by about 1e-4 relative, as T's rounding acts 256 times. Raises
    ValueError for other shapes or types, for scores that are not finite, for edges outside [0, 1].
    On a GPU bad values do not raise, as asking for them would make the host wait: every score of
    the image is NaN then, which `Scores.save` refuses.
    """
    cam = torch.as_tensor(cam)
    edge = torch.as_tensor(edge).to(cam)
    if cam.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the random walk computes in float32 or float64, not {cam.dtype}")
    one, maps = edge.ndim == 2, cam.shape[-3:-2]
    fits = edge.ndim in (2, 3) and cam.shape == (*edge.shape[:-2], *maps, *edge.shape[-2:])
    if not (fits and maps and edge.numel()):
        shapes = f"{tuple(cam.shape)} and {tuple(edge.shape)}"
        raise ValueError(f"the random walk needs cam (K, h, w) and edge (h, w), not {shapes}")
    if beta <= 0 or log2_steps < 0:
        raise ValueError(f"need beta > 0 and log2_steps >= 0, not {beta} and {log2_steps}")
    cams, edges = (cam[None], edge[None]) if one else (cam, edge)
    is_sound = cams.isfinite().flatten(1).all(1)
    is_sound &= ((edges >= 0) & (edges <= 1)).flatten(1).all(1)
    if is_sound.is_cpu and not is_sound.all():
        raise ValueError("the random walk needs finite scores and edges in [0, 1]")
    if not cam.numel():
        return cam

    with torch.no_grad():
        step, by_map = transition(edges, radius, beta), cams.transpose(0, 1)
        scores = (by_map * (1 - edges)).flatten(1).T.contiguous()  # (B h w, K)
        scores = scores[:, 0] if len(by_map) == 1 else scores  # a vector is faster than a matrix
        # One kernel a step, bound by reading T: (8 + 4) bytes an entry in float64, 10 MB for a
        # 375 x 500 image, which stays in the last-level cache of a CPU or a GPU.
        for _ in range(2**log2_steps):
            scores = step @ scores
        walked = scores.reshape(-1, len(by_map)).T.reshape(by_map.shape).transpose(0, 1)
        walked = torch.where(is_sound[:, None, None, None], walked, torch.nan).contiguous()
        return walked[0] if one else walked


def rescale(scores: Tensor, size: Sequence[int]) -> Tensor:
    """Scores after the walk, (K, h, w) -> (K, h, w), as shares of their maximum at image size.

    One maximum for all classes of the image (IRN), not one for each: a class that the walk left
    faint stays faint beside the others. It is the maximum of the upsampled maps, cut to `size`
    (H, W), at most that of the stride-4 maps. Scores without any class stay as they are.
    """
    return scores / upsample(scores, size).max().clamp(min=1e-20) if len(scores) else scores


def transition(edge: Tensor, radius: int, beta: float) -> Tensor:
    """The matrix of one step on columns of scores: sparse CSR (N, N), N = h·w, of edge (h, w).

    This is the transpose of the paper's T, whose columns sum to 1: affinities are symmetric, so
    row i holds affinity(i, j)^beta of its neighbours j and 1 of itself, divided by their sum. Of
    edges (B, h, w) it holds B such matrices along its diagonal, N = B·h·w.
    """
    edge = edge if edge.ndim == 3 else edge[None]
    count, height, width = edge.shape
    offsets = paths(radius)[0]
    after = (affinity(edge, radius) ** beta).unbind(1)
    # A pair seen from its far end. What wraps around is 0: that pair leaves the image.
    before = [pair.roll((dy, dx), (1, 2)) for pair, (dy, dx) in zip(after, offsets, strict=True)]
    weight = torch.stack([*before[::-1], torch.ones_like(edge), *after], dim=-1)
    del before, after
    weight /= weight.sum(-1, keepdim=True)

    # In this order the columns of a row ascend, as CSR wants them. 32-bit indices take half the
    # memory, and MKL would convert 64-bit ones at every product.
    offsets = np.concatenate([-offsets[::-1], 0 * offsets[:1], offsets]).astype(np.int32)
    dy, dx = torch.from_numpy(offsets).to(edge.device, non_blocking=True).unbind(1)
    y = torch.arange(height, device=edge.device, dtype=torch.int32)[:, None, None] + dy
    x = torch.arange(width, device=edge.device, dtype=torch.int32)[:, None] + dx
    inside = (((y >= 0) & (y < height)) & ((x >= 0) & (x < width))).expand_as(weight).flatten()
    # How many pairs stay inside is known from the shape: a masked_select would wait to be told.
    count *= int((height - abs(offsets[:, 0])).clip(0) @ (width - abs(offsets[:, 1])).clip(0))
    place = inside.cumsum(0)
    entries = pad(place[len(offsets) - 1 :: len(offsets)], (1, 0)).int()
    place = torch.where(inside, place - 1, count)  # the rest goes behind the last one
    values = weight.new_empty(count + 1).scatter_(0, place, weight.flatten())[:count]
    del weight
    first = torch.arange(0, edge.numel(), height * width, device=edge.device, dtype=torch.int32)
    columns = (first[:, None, None, None] + y * width + x).flatten()
    columns = columns.new_empty(count + 1).scatter_(0, place, columns)[:count]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks)")
        shape = (edge.numel(), edge.numel())
        return torch.sparse_csr_tensor(entries, columns, values, shape, check_invariants=False)
