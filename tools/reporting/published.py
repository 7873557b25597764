"""The published figures, mIoU in percent on VOC 2012, and the tables they stand in.

Source: Jo and Yu, "Puzzle-CAM: Improved localization via matching partial and full features",
ICIP 2021 (arXiv 2101.11253), Tables 1 to 3; what they cite there for AffinityNet, IRNet and SEAM.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "Jo and Yu, Puzzle-CAM, ICIP 2021, arXiv 2101.11253"
Figures = dict[str, float]


@dataclass(frozen=True)
class Table:
    """One of the paper's tables.

    Attributes:
        key: its directory below a run folder. measures: evaluation (cam.json ...) -> heading.
        rows: directory -> name. paper: directory -> published figures, by measure.
        others: methods that are not ours -> their published figures.
        images: measure -> how many images the paper scored. decimals: as printed there.
    """

    key: str
    title: str
    measures: dict[str, str]
    rows: dict[str, str]
    paper: dict[str, Figures]
    others: dict[str, Figures]
    images: dict[str, int]
    note: str
    decimals: int = 2


def _walk(cam: float, rw: float, pseudo: float) -> Figures:
    return {"cam": cam, "rw": rw, "pseudo": pseudo}


RESNETS = {
    "resnet50": "Puzzle-CAM, ResNet-50",
    "resnest50": "Puzzle-CAM, ResNeSt-50",
    "resnest101": "Puzzle-CAM, ResNeSt-101",
    "resnest269": "Puzzle-CAM, ResNeSt-269",
}

TABLES = (
    Table(
        key="table1",
        title="Table 1: the losses, mIoU of the CAMs on train (ResNet-50)",
        measures={"cam": "CAM"},
        rows={
            "cls": "L_cls",
            "cls_pcls": "L_cls + L_p-cls",
            "cls_re": "L_cls + L_re",
            "all": "L_cls + L_p-cls + L_re",
        },
        paper={
            "cls": {"cam": 47.82},
            "cls_pcls": {"cam": 47.70},
            "cls_re": {"cam": 49.21},
            "all": {"cam": 51.53},
        },
        others={},
        images={"cam": 1464},
        note="People who re-ran the authors' released code report 48.53 for the last row.",
    ),
    Table(
        key="table2",
        title="Table 2: the pseudo-labels, mIoU on train",
        measures={"cam": "CAM", "rw": "+RW", "pseudo": "+RW+dCRF"},
        rows=RESNETS,
        paper={
            "resnet50": _walk(51.53, 64.16, 64.70),
            "resnest50": _walk(57.59, 69.48, 69.91),
            "resnest101": _walk(61.85, 71.92, 72.46),
            "resnest269": _walk(62.45, 74.14, 74.67),
        },
        others={"AffinityNet": _walk(47.82, 58.10, 59.70)},
        images={"cam": 1464, "rw": 1464, "pseudo": 1464},
        note="People who re-ran the authors' released code report 48.53 for the CAMs of the "
        "ResNet-50 and 65.42 after the random walk.",
    ),
    Table(
        key="table3",
        title="Table 3: the segmentation network, mIoU",
        measures={"val": "val", "test": "test"},
        rows={key: RESNETS[key] for key in ("resnet50", "resnest101", "resnest269")},
        paper={
            "resnest101": {"val": 66.9, "test": 67.7},
            "resnest269": {"val": 71.9, "test": 72.2},
        },
        others={
            "AffinityNet": {"val": 61.7, "test": 63.7},
            "IRNet": {"val": 63.5, "test": 64.8},
            "SEAM": {"val": 64.5, "test": 65.7},
        },
        images={"val": 1449, "test": 1456},
        note="The test set is scored by the VOC server alone; tools/export_voc.py makes the "
        "submission. Its answer, kept as test.json with a `miou`, is shown here.",
        decimals=1,
    ),
)
