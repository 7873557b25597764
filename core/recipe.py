"""The paper on one page: the constants of every stage, from which options take their defaults.

Puzzle-CAM (Jo and Yu, ICIP 2021, arXiv 2101.11253) for the classifier and the segmentation; IRN
(Ahn, Cho and Kwak, CVPR 2019) for affinity labels, boundary network and random walk. A constant is
the released code's unless its comment says otherwise. Sizes are in pixels, thresholds are
background scores. Nothing is computed here, and nothing of the project is imported.
"""

from dataclasses import dataclass
from typing import Any


def constants(stage: Any) -> Any:
    """Turn a class into its one, frozen instance."""
    return dataclass(frozen=True)(stage)()


@constants
class DATA:
    """PASCAL VOC 2012 with SBD's images: train_aug = (SBD train + val + VOC train) - VOC val."""

    classes: int = 20  # without the background
    train_aug_images: int = 10_582  # trained on, with image-level labels alone
    train_images: int = 1_464  # CAMs and pseudo-labels are scored on these
    val_images: int = 1_449  # the segmentation on these
    test_images: int = 1_456
    ignore: int = 255  # label of pixels without one; fills the padding of masks
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # ImageNet, of RGB in [0, 1]
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


@constants
class BACKBONE:
    """ResNet or ResNeSt without the stride of layer4, as in the released code."""

    output_stride: int = 16
    resnest_dilation: int = 2  # of layer4's 3x3 convolutions, its first block's left out


@constants
class OPTIMIZER:
    """SGD and the random views of all three trainings."""

    nesterov: bool = True
    poly_power: float = 0.9  # lr * (1 - step / max_step) ** power
    # Of the rate: pretrained weights, pretrained biases, new weights, new biases; the boundary
    # network is one group, at 1.
    rate_factors: tuple[int, int, int, int] = (1, 2, 10, 20)
    flip: float = 0.5  # probability, of a view


@dataclass(frozen=True)
class Training:
    """Defaults of the three trainings, which may give other values."""

    epochs: int
    lr: float = 0.1
    weight_decay: float = 1e-4  # 0 on biases, but for the boundary network's
    # The released optimiser takes its weight decay for the momentum; its 0.9 is the poly power.
    momentum: float = 1e-4
    sides: tuple[int, int] = (320, 640)  # the longer side, resized to an integer in this range
    batch_size: int = 32  # over all GPUs; the last, partial batch of an epoch is dropped
    crop: int = 512  # random crop; a smaller image lies at a random place in it


@constants
class CLASSIFICATION(Training):
    """The classifier and the puzzle module (Puzzle-CAM)."""

    epochs: int = 15
    grid: int = 2  # tiles a side of the puzzle module
    alpha: float = 4.0  # weight of L_re, the paper's; the released default is 1
    alpha_ramp: float = 0.5  # share of the training in which alpha rises from 0


@constants
class CAM:
    """Class activation maps at inference."""

    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)  # each with its mirror image
    stride: int = 4  # of the maps that the random walk starts from
    high_res_multiple: int = 16  # the released hr_cam is summed at sides rounded up to this
    epsilon: float = 1e-5  # in the division by a map's maximum


@dataclass(frozen=True)
class CRF:
    """Dense CRF (Krähenbühl and Koltun, NIPS 2011): a Gaussian and a bilateral Potts term."""

    bilateral_sxy: float  # width in pixels
    bilateral_srgb: float  # width in 8-bit colour steps
    bilateral_compat: float = 10.0  # weight
    gaussian_sxy: float = 3.0
    gaussian_compat: float = 3.0
    gt_prob: float = 0.7  # with which a pixel's label is right
    min_prob: float = 1e-5  # the unary energy of probabilities is -log of at least this
    # Ours, of predictions with more labels than VOC: `core.method.crf.labels_that_count`.
    many_labels: int = 21
    left_out: float = 0.1


LABEL_CRF = CRF(bilateral_sxy=50.0, bilateral_srgb=5.0)  # of label maps (IRN)
PROBABILITY_CRF = CRF(bilateral_sxy=80.0, bilateral_srgb=13.0)  # of the segmentation's softmax


@constants
class AFFINITY_LABELS:
    """Confident labels from CAMs (IRN); the thresholds are published for ResNeSt-101 only."""

    foreground_threshold: float = 0.40  # a class that beats it is certain
    background_threshold: float = 0.10  # background where it beats every class is certain
    crf_iterations: int = 10


@constants
class AFFINITY(Training):
    """The boundary network of IRN on a frozen backbone."""

    epochs: int = 3
    edge_channels: int = 32  # of each tap
    norm_groups: int = 4
    radius: int = 10  # of pairs, in stride-4 pixels
    loss_weights: tuple[float, float, float] = (0.25, 0.25, 0.5)  # L_bgpos, L_fgpos, L_neg
    epsilon: float = 1e-5  # in the logarithms


@constants
class RANDOM_WALK:
    """From the CAMs to the boundaries (IRN)."""

    pad_to: int = 512  # images are padded to the crop of the training, if none is known to this ...
    pad_multiple: int = 32  # ... and larger ones to a multiple of this
    radius: int = 5  # of a step, in stride-4 pixels
    beta: float = 10.0  # exponent of the affinities
    log2_steps: int = 8


@constants
class PSEUDO_LABELS:
    """Labels of the segmentation, from the scores after the walk."""

    threshold: float = 0.35  # published for ResNeSt-101 only
    crf_iterations: int = 1


@constants
class SEGMENTATION(Training):
    """DeepLabv3+ (Chen et al., ECCV 2018) on the pseudo-labels; the backbone's BN is frozen."""

    epochs: int = 50
    lr: float = 0.007
    weight_decay: float = 4e-5
    momentum: float = 4e-5  # the weight decay again
    sides: tuple[int, int] = (256, 1024)
    aspp_rates: tuple[int, ...] = (6, 12, 18)  # beside the 1x1 branch (rate 1) and the pooling
    channels: int = 256  # of ASPP and decoder
    skip_channels: int = 48  # of layer1's tap in the decoder
    norm_groups: int = 4
    aspp_dropout: float = 0.5
    decoder_dropouts: tuple[float, float] = (0.5, 0.1)


@constants
class PREDICTION:
    """Segmentation at inference: logits summed over scales and mirror images."""

    scales: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    crf_iterations: int = 10


@constants
class EVALUATION:
    """The thresholds that scores are tried at; Tables 1 and 2 report the best."""

    # Ours, finer than the released grid and holding it: 0.05 to 0.75 by 0.01.
    thresholds: tuple[float, ...] = tuple(i / 100 for i in range(5, 76))
    paper_thresholds: tuple[float, ...] = tuple(i / 100 for i in range(5, 80, 5))  # the released
