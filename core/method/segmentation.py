"""Multi-scale, flipped segmentation of images of equal size."""

from collections.abc import Sequence

from core.method import cam

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BAND = 64  # rows upsampled at a time: 4000 pixels wide and 21 classes make 21 MB


def probabilities(network: cam.Network, copies: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Softmax of the logits, summed over scales and flips: float32 (B, n_labels, H, W).

    Arguments as in `cam.summed`, the maps being logits; size: (H, W) of the images.
    """
    return cam.summed(network, copies, size, nn.Identity()).softmax(1)


def argmax_at_size(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """The index of the largest of (L, h, w) maps, bilinearly resized to (H, W), on their device.

    Uint8, or int64 if L > 256. Worked in bands of rows: all maps at full size would take L x H x W
    floats.
    """
    kind = torch.uint8 if len(maps) <= 256 else torch.int64
    if maps.shape[1:] == size:
        return maps.argmax(0).to(kind)
    height, width = size
    # The source rows of align_corners=False, which F.interpolate offers for whole maps only.
    rows = (torch.arange(height, device=maps.device) + 0.5) * maps.shape[1] / height - 0.5
    rows = rows.clamp(0, maps.shape[1] - 1)
    label = torch.empty(size, dtype=kind, device=maps.device)
    for start in range(0, height, BAND):
        band = rows[start : start + BAND]
        low = band.floor().long()
        high = (low + 1).clamp(max=maps.shape[1] - 1)
        between = torch.lerp(maps[:, low], maps[:, high], (band - low)[None, :, None])
        wide = F.interpolate(between[None], (len(band), width), mode="bilinear")[0]
        label[start : start + BAND] = wide.argmax(0)
    return label
