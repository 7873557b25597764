"""The pipeline as a list: what report, pictures, tables and doctor know of the stages.

A new stage is a script and one entry here. Every step writes RUNS/<name>; data flow down the list.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One stage.

    Attributes:
        name: of its directory. script: without `.py`. holds: what its directory holds.
        reads: the options that take the directories of earlier steps, and their names.
        title: of its column in tables and pictures, for what is scored and shown; else empty.
        split: "train" or "val": whose images it works on.
    """

    name: str
    script: str
    holds: str
    reads: tuple[tuple[str, str], ...] = ()
    title: str = ""
    split: str = "train"

    @property
    def makes_cams(self) -> bool:
        """Whether its scores come from no other scores."""
        return self.holds == "scores" and "--scores" not in dict(self.reads)

    @property
    def figures(self) -> str:
        """The name of its evaluation: RUNS/<figures>.json."""
        return self.name if self.split == "train" else self.split


# What the walk and the prediction read.
WALK = (("--scores", "cam"), ("--checkpoint", "affinity"))
PREDICTION = (("--checkpoint", "segmentation"),)
STEPS = (
    Step("classification", "train_classification", "model"),
    Step("cam", "make_cam", "scores", (("--checkpoint", "classification"),), "CAM"),
    Step("affinity_labels", "make_affinity_labels", "labels", (("--scores", "cam"),)),
    Step("affinity", "train_affinity", "model", (("--labels", "affinity_labels"),)),
    Step("rw", "make_random_walk", "scores", WALK, "+ random walk"),
    Step("pseudo", "make_pseudo_labels", "labels", (("--scores", "rw"),), "+ dense CRF"),
    Step("segmentation", "train_segmentation", "model", (("--labels", "pseudo"),)),
    Step("predictions", "predict", "labels", PREDICTION, "segmentation", "val"),
)
