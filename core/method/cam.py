"""Multi-scale, flipped inference of any network; class activation maps, their thresholds."""

from collections.abc import Callable, Sequence

from core.data import transforms
from core.data.scores import sample, strided_size, upsample
from core.data.transforms import SCALES, pyramid
from core.recipe import CAM

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Network = Callable[[Tensor], Tensor]


def summed(
    network: Network, copies: Sequence[Tensor], size: Sequence[int], activation: Network
) -> Tensor:
    """The sum of what a network gives images at each scale, and their mirror images, turned back.

    Network: (N, 3, h, w) normalised images -> (N, C, h', w') maps, at any stride. Copies: per scale
    uint8 (B, 3, h, w), of B images of equal size, on its device; see `transforms.pyramid`. What
    the activation makes of the maps is resized to `size`. Returns float32 (B, C, *size).
    """
    total = torch.zeros(())
    for images in copies:
        views = transforms.normalize(images)
        straight, mirrored = network(torch.cat([views, views.flip(-1)])).float().chunk(2)
        for maps in (straight, mirrored.flip(-1)):
            total = total + F.interpolate(activation(maps), size, mode="bilinear")
    return total


def sum_scales(
    network: Network,
    copies: Sequence[Tensor],
    size: tuple[int, int],
    high_res: bool = False,
    classes: Sequence[int] | None = None,
) -> Tensor:
    """Sum of the CAMs over scales and flips, not yet normalised: (B, C, ceil(H/4), ceil(W/4)).

    Network and copies as in `summed`, the maps being class maps at stride 16; size: (H, W)
    of the images. Classes: the indices 1..C of those to sum, in their order, as an image has few;
    None: all. `high_res`: of the two sums that the authors' code keeps, not the one at stride 4
    but `hr_cam`, at the size of the image, of which these are the samples (`scores.sample`).
    Upsampled and divided by its maximum, the map is off by .001 on average, .13 at most where a
    slope breaks, and 99.7% of the pixels keep their label at thresholds from .05 to .4
    (photographs, their colours in place of class maps).
    """
    multiple = CAM.high_res_multiple
    grid = [-(-side // multiple) * multiple for side in size] if high_res else strided_size(size)
    wanted = None if classes is None else _channels(classes, copies[0].device)
    total = summed(
        network, copies, grid, lambda m: F.relu(m if wanted is None else m.index_select(1, wanted))
    )
    return sample(total[..., : size[0], : size[1]]) if high_res else total


def normalize(maps: Tensor) -> Tensor:
    """CAMs in training views: relu(relu(A) - 1e-5) / (max(relu(A)) + 1e-5), (N, C, h, w)."""
    maps = F.relu(maps)
    return F.relu(maps - CAM.epsilon) / (maps.amax((-2, -1), keepdim=True) + CAM.epsilon)


@torch.no_grad()
def multi_scale(
    network: Network,
    image: np.ndarray | Image.Image,
    scales: Sequence[float] = SCALES,
    device: torch.device | str = "cpu",
    high_res: bool = False,
) -> Tensor:
    """`sum_scales` of one image, PIL's or uint8 RGB (H, W, 3): (C, ceil(H/4), ceil(W/4)).

    The copies are PIL's, as in the released code; the stages take `transforms.pyramid`.
    """
    picture = (image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB")
    copies = []
    for scale in scales:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        copy = torch.from_numpy(np.array(picture.resize(size, Image.Resampling.BICUBIC)))
        copies.append(copy.permute(2, 0, 1)[None].to(device))
    return sum_scales(network, copies, (picture.height, picture.width), high_res)[0]


def _channels(classes: Sequence[int], device: torch.device) -> Tensor:
    """The channels of classes 1..C; a list as index would be a blocking copy to the GPU."""
    return (torch.tensor(classes, dtype=torch.long) - 1).to(device, non_blocking=True)


def of_classes(sums: Tensor, classes: Sequence[int]) -> Tensor:
    """Keep the image's classes (indices 1..C; or none) of (C, h, w), each by its maximum + 1e-5."""
    maps = sums.index_select(0, _channels(classes, sums.device))
    return maps / (maps.amax((-2, -1), keepdim=True) + CAM.epsilon)


def class_logits(network: Network, images: Tensor) -> Tensor:
    """What a classifier says of images and their mirror images, uint8 (B, 3, H, W): (B, C)."""
    views = transforms.normalize(images)
    maps = network(torch.cat([views, views.flip(-1)])).float()
    return maps.mean((2, 3)).unflatten(0, (2, -1)).mean(0)


def of_predicted_classes(
    network: Network,
    image: np.ndarray,
    scales: Sequence[float],
    threshold: float,
    device: torch.device | str = "cpu",
) -> tuple[list[int], Tensor]:
    """The classes that a classifier finds in an image without labels, and their CAMs.

    Image uint8 (H, W, 3); found is a class of at least the probability `threshold`, or else the
    likeliest one. Returns class indices 1..C, ascending, and float32 (K, H, W) in 0..1.
    """
    logits = class_logits(network, torch.from_numpy(image).permute(2, 0, 1)[None].to(device))[0]
    classes = (torch.nonzero(logits.sigmoid() >= threshold).flatten() + 1).tolist()
    classes = classes or [int(logits.argmax()) + 1]
    copies = [copy[None].to(device) for copy in pyramid(image, scales)]
    sums = sum_scales(network, copies, image.shape[:2], classes=classes)[0]
    maps = of_classes(sums, range(1, len(classes) + 1))
    return classes, upsample(maps, image.shape[:2])


def label_map(maps: Tensor, threshold: float | None) -> Tensor:
    """The best class of each pixel against a constant background score, which wins ties.

    Scores (K, H, W), floating; K = 0 gives a map that is all background. Threshold: the background
    score; None where every pixel belongs to a class. Returns uint8 (H, W) on their device: 0 is the
    background, 1..K the classes, as the dense CRF wants them.
    """
    if threshold is None:
        threshold = -torch.inf
    background = maps.new_full((1, *maps.shape[1:]), threshold)
    return torch.cat([background, maps]).argmax(0).to(torch.uint8)
