"""The losses of Puzzle-CAM (arXiv 2101.11253, "Loss design"), of boundaries, of segmentation.

All are computed in float32 or wider, under autocast too: bfloat16 has 8 bits, and a mean over
thousands of pixels or a logarithm near 0 needs more.
"""

from collections.abc import Callable

from core.data.images import IGNORE
from core.method.affinity import neighbour, pair_affinity, paths
from core.recipe import AFFINITY
from core.recipe import CLASSIFICATION as PUZZLE

import torch
import torch.nn.functional as F
from torch import Tensor


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def classification(logits: Tensor, labels: Tensor) -> Tensor:
    """L_cls, L_p-cls: multi-label soft margin of logits (N, C) and labels (N, C) in {0, 1}."""
    logits = _wide(logits)
    return F.multilabel_soft_margin_loss(logits, labels.to(logits.dtype))


def reconstruction(
    maps: Tensor,
    merged: Tensor,
    labels: Tensor,
    masked: bool = True,
    seams: int = 0,
    relative: bool = False,
) -> Tensor:
    """L_re, the L1 norm: how far the merged maps of the tiles are from those of the whole images.

    Maps and merged (N, C, h, w), raw class maps (no ReLU, no normalisation); labels (N, C) in
    {0, 1}. `masked` silences the absent classes, which stay in the mean all the same; the paper's
    formula has no mask. Raises ValueError for shapes that do not fit.

    Two changes that are not the paper's, for small crops (docs/results.md). Seams: the tiles a side
    that `merged` is of; the cells on both sides of their seams are left out of the mean, since a
    tile ends there and its map is of its padding. Relative: both maps are divided by the maximum of
    the image's own map, at least 1 and without gradient, so that lower maps do not agree better.
    """
    if maps.shape != merged.shape or maps.shape[:2] != labels.shape:
        shapes = [tuple(tensor.shape) for tensor in (maps, merged, labels)]
        raise ValueError(f"maps, merged maps and labels do not fit: {shapes}")
    distance = (_wide(maps) - _wide(merged)).abs()
    if relative:
        distance = distance / _wide(maps).detach().amax((2, 3), keepdim=True).clamp(min=1)
    if masked:
        distance = distance * labels[:, :, None, None]
    if not seams:
        return distance.mean()
    rows, columns = (_off_seams(side, seams, maps.device) for side in maps.shape[2:])
    kept = rows[:, None] & columns
    return (distance * kept).sum() / (kept.sum() * labels.numel())


def _off_seams(side: int, grid: int, device: torch.device) -> Tensor:
    """Which of `side` cells do not lie at a seam between `grid` tiles; bool (side,)."""
    cell, tile = torch.arange(side, device=device), side // grid
    last, first = cell % tile == tile - 1, cell % tile == 0
    return ~((last & (cell < side - 1)) | (first & (cell > 0)))


def puzzle(
    a: Tensor,
    a_re: Tensor | None,
    labels: Tensor,
    alpha: float,
    p_cls: bool = True,
    re: Callable[[Tensor, Tensor, Tensor], Tensor] | None = reconstruction,
) -> tuple[Tensor, dict[str, Tensor | float]]:
    """L = L_cls + L_p-cls + alpha * L_re (Puzzle-CAM, "Loss design").

    A, the class maps of the images, and A_re, those of their tiles put together: (N, C, h, w), raw.
    Without A_re the loss is L_cls, that of the plain classifier. Labels (N, C) in {0, 1}. `re`:
    what L_re is, of A, A_re and labels; None leaves it out.

    Returns the loss and its terms. `peak` is the mean height of the present classes' maps over
    their own average, which goes to 0 when the maps collapse into flat ones.
    """
    a = _wide(a)  # a mean of bf16 maps would be rounded to bf16
    loss = l_cls = classification(a.mean((2, 3)), labels)
    terms: dict[str, Tensor | float] = {"cls": l_cls}
    if a_re is not None and p_cls:
        terms["p_cls"] = l_p_cls = classification(_wide(a_re).mean((2, 3)), labels)
        loss = loss + l_p_cls
    if a_re is not None and re is not None:
        terms["re"] = l_re = re(a, a_re, labels)
        terms["alpha"] = alpha
        loss = loss + alpha * l_re
    flat = a.detach().flatten(2)
    height = (flat.amax(2) - flat.mean(2)) * labels
    terms["peak"] = height.sum() / labels.sum().clamp(min=1)
    return loss, terms


def alpha(
    step: int, max_step: int, peak: float = PUZZLE.alpha, ramp: float = PUZZLE.alpha_ramp
) -> float:
    """Weight of L_re at a global step: 0 -> peak, linear over the first `ramp` of training."""
    if max_step < 1 or ramp < 0:
        raise ValueError(f"alpha needs max_step >= 1 and ramp >= 0, not {max_step} and {ramp}")
    return min(peak * step / (ramp * max_step), peak) if ramp else peak


def affinity(
    edge: Tensor, label: Tensor, radius: int = AFFINITY.radius, counts: Tensor | None = None
) -> Tensor:
    """Affinity loss (IRN, "Loss for class boundary detection"): an edge only between unlike pairs.

    Edge (H, W) or (N, H, W), probabilities in [0, 1]; label of the same shape, integers in 0..255,
    0 = background, 255 = ignore. L = (L_bgpos/2 + L_fgpos/2 + L_neg)/2, each the mean over its
    pairs in the whole batch: both background, both the same class, different; 0 without any. The
    sources are those of `pair_affinity`, as in the code of IRN: pairs never leave the image.
    `counts` (3,), not 0, replaces the numbers of pairs that the sums are divided by, for a
    microbatch.
    Raises ValueError where the shapes differ.
    """
    if edge.shape != label.shape or edge.ndim not in (2, 3):
        shapes = f"{tuple(edge.shape)} and {tuple(label.shape)}"
        raise ValueError(f"edge and label must both be (H, W) or both (N, H, W), not {shapes}")
    sets = _pair_sets(label, radius)
    counts = _sizes(sets).clamp(min=1) if counts is None else counts
    affinities = pair_affinity(_wide(edge).reshape(-1, *edge.shape[-2:]), radius)
    log_likelihood = torch.where(sets[2], 1 - affinities, affinities).add_(AFFINITY.epsilon).log()
    # The rest is 0, not left out: to learn how many a selection leaves, the host would wait.
    bgpos, fgpos, neg = (
        -torch.where(pairs, log_likelihood, 0).sum() / count
        for pairs, count in zip(sets, counts, strict=True)
    )
    of_bgpos, of_fgpos, of_neg = AFFINITY.loss_weights
    return of_bgpos * bgpos + of_fgpos * fgpos + of_neg * neg


def count_pairs(label: Tensor, radius: int = AFFINITY.radius) -> Tensor:
    """How many pairs the three means of `affinity` are over: int64 (3,) bgpos, fgpos, neg."""
    return _sizes(_pair_sets(label, radius))


def segmentation(
    logits: Tensor, labels: Tensor, counts: Tensor | None = None, balanced: bool = False
) -> Tensor:
    """Cross-entropy of logits (N, C, H, W) and labels (N, H, W), 0 = background, 255 = ignore.

    The mean over the labelled pixels; balanced, which is not the paper's, the mean of that over the
    objects' pixels and that over the background's (docs/results.md). `counts`, of `count_pixels`
    and not 0, replaces the numbers of pixels that the sums are divided by, for a microbatch.
    """
    if counts is None:
        counts = count_pixels(labels, balanced).clamp(min=1)
    # Summed apart: within, the sum on a GPU is of another order every time.
    each = F.cross_entropy(_wide(logits), labels, ignore_index=IGNORE, reduction="none")
    parts = _pixel_sets(labels, balanced)
    return torch.stack([torch.where(part, each, 0).sum() for part in parts]).div(counts).mean()


def count_pixels(labels: Tensor, balanced: bool = False) -> Tensor:
    """How many pixels each mean of `segmentation` is over: int64 (1,), or (2,) balanced."""
    return _sizes(_pixel_sets(labels, balanced))


def _pixel_sets(labels: Tensor, balanced: bool) -> tuple[Tensor, ...]:
    """Masks of the labelled pixels, or of the objects' and the background's."""
    valid = labels != IGNORE
    return (valid & (labels > 0), labels == 0) if balanced else (valid,)


def _sizes(sets: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([torch.count_nonzero(pairs) for pairs in sets])  # 20 times as fast as sum


def _pair_sets(label: Tensor, radius: int) -> tuple[Tensor, Tensor, Tensor]:
    """Masks (N, n_offsets, h, w) of the pairs that are background, of one class, unlike."""
    # One byte a pair: 152 neighbours of 32 x 119 x 110 pixels make 64 million pairs.
    label = label.reshape(-1, *label.shape[-2:]).to(torch.uint8)
    offsets = paths(radius)[0]
    source = neighbour(label, 0 * offsets[0], radius)[:, None]
    target = torch.stack([neighbour(label, offset, radius) for offset in offsets], dim=1)
    alike = source == target
    unlike = ~alike & (source != IGNORE) & (target != IGNORE)
    return alike & (source == 0), alike & ((source != 0) & (source != IGNORE)), unlike
