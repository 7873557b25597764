#!/usr/bin/env python
"""Give a trained network to other programs: ONNX, safetensors, and a card that says what it is.

    python tools/export_model.py runs/voc/segmentation/model.pt --out result/voc

Writes into a new folder model.onnx (uint8 RGB in, at any size; mean and std are in the graph),
model.safetensors with config.json, from which this project builds the network again, and README.md,
the card. The ONNX file is run in onnxruntime at three sizes and compared with PyTorch first. A
ResNet-50 takes a minute or less.
"""

import contextlib
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `core` from any directory
from core import files, recipe
from core.data import transforms
from core.errors import InputError
from core.method.networks import AffinityNet, Classifier, DeepLabV3Plus
from core.run import artefacts, checkpoint, options
from core.run.main import run_main

import numpy as np
import torch
from torch import Tensor, nn

SIZES = ((1, 64, 64), (2, 75, 201), (1, 321, 481))  # images, height, width
TOLERANCE = 1e-3  # of a value's size, or of 1 where that is larger
# Network -> name of the ONNX output, and what it is.
OUTPUTS = {
    Classifier: (
        "maps",
        "class maps A (N, C, ceil(H/{stride}), ceil(W/{stride})); a class's logit is the mean of "
        "its map, its CAM the map's positive part",
    ),
    AffinityNet: ("edges", "logits of a class boundary (N, ceil(H/4), ceil(W/4))"),
    DeepLabV3Plus: ("logits", "logits (N, C + 1, H, W); label 0 is {background}"),
}
CARD = """# {network}, {backbone}

{what}. Trained by Puzzle-CAM's `{stage}`.

* Input `image`: uint8 RGB (N, 3, H, W), any N, H and W; mean and std are part of model.onnx.
* Output `{output}`: {meaning}.
* Classes, in order: {classes}.
* model.onnx equals PyTorch to {difference:.0e} (in onnxruntime, at {sizes} pixels).

One scale, no mirror images, no dense CRF: `predict.py` adds those, and scores better.

## Use

With onnxruntime alone:

```python
import numpy as np
import onnxruntime
from PIL import Image

image = np.asarray(Image.open("picture.jpg").convert("RGB"))
session = onnxruntime.InferenceSession("model.onnx")
({output},) = session.run(None, {{"image": image.transpose(2, 0, 1)[None].copy()}})
```

With PyTorch, in a checkout of the project:

```python
import json

import torch
from core.data.transforms import normalize
from core.method import networks
from safetensors.torch import load_file

config = json.load(open("config.json", encoding="utf-8"))
network = getattr(networks, config["network"])(**config["arguments"]).eval()
network.load_state_dict(load_file("model.safetensors"))
with torch.no_grad():
    {output} = network(normalize(torch.zeros(1, 3, 120, 160, dtype=torch.uint8)))
```

## How it was trained

{training}

The terms of the training images, and of the weights it started from, hold for what is made with it.
"""


class FromPixels(nn.Module):
    """A network with the normalisation of its input in front: uint8 RGB (N, 3, H, W) -> maps."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network(transforms.normalize(image))


def get_args_parser() -> options.Parser:
    p = options.Parser(__doc__)
    p.add_argument("checkpoint", type=options.model, help="model.pt of a stage, or its directory")
    p.add_argument("--out", type=Path, required=True, help="new folder")
    return p


def import_extras() -> tuple[Any, Any]:
    """onnxruntime and safetensors.torch; an InputError says how to get what is missing."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it
        import safetensors.torch as safetensors
    except ImportError as error:
        remedy = "pip install onnx onnxscript onnxruntime safetensors"
        raise InputError(f"exporting a model needs {error.name}: {remedy}") from None
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        raise InputError(f"exporting a model needs torch 2.6 or later, this is {torch.__version__}")
    return onnxruntime, safetensors


def write_onnx(path: Path, network: FromPixels, output: str) -> None:
    """Write the network as ONNX, with free numbers of images, rows and columns."""
    free = torch.export.Dim.DYNAMIC
    example = torch.zeros(2, 3, 97, 130, dtype=torch.uint8)
    before = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)  # the exporter's, about versions of operators
        try:
            program = torch.onnx.export(
                network, (example,), dynamo=True, verbose=False, input_names=["image"],
                output_names=[output], dynamic_shapes=({0: free, 2: free, 3: free},),
            )  # fmt: skip
        finally:
            logging.disable(before)
    program.save(str(path))


@torch.no_grad()
def compare(path: Path, network: FromPixels, onnxruntime: Any) -> float:
    """The largest difference between ONNX and PyTorch at `SIZES`, on random pixels.

    Raises:
        InputError: it is over `TOLERANCE`.
    """
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator, largest = torch.Generator().manual_seed(0), 0.0
    for count, height, width in SIZES:
        shape = (count, 3, height, width)
        image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        ours = network(image).numpy()
        (theirs,) = session.run(None, {"image": image.numpy()})
        if theirs.shape != ours.shape:
            raise InputError(f"model.onnx gives {theirs.shape} for {shape}, PyTorch {ours.shape}")
        largest = max(largest, float((abs(theirs - ours) / np.maximum(1, abs(ours))).max()))
    if not largest <= TOLERANCE:
        raise InputError(f"model.onnx differs from PyTorch by {largest:.1e}; try another torch")
    return largest


def describe_training(record: dict[str, Any]) -> str:
    """Settings, versions and digests of a run.json as a list in Markdown."""
    if not record:
        return "No run.json lay beside the checkpoint: nothing is known."
    rows = {
        "finished": f"started {record.get('started')}, {record.get('seconds')} s on "
        f"{record.get('processes')} x {record.get('device_name') or record.get('device')}",
        "settings": record.get("settings"),
        "resolved": record.get("resolved"),
        "results": record.get("results"),
        "digests of the inputs": record.get("inputs"),
        "versions": record.get("versions"),
        "commit": record.get("git"),
    }
    lines = []
    for name, value in rows.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        if value:
            lines.append(f"* {name}: {value}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    onnxruntime, safetensors = import_extras()
    if args.out.exists():
        raise InputError(f"{args.out}: exists already; choose a new folder")
    artefacts.read_model(args.checkpoint)
    network = checkpoint.load_model(args.checkpoint, list(OUTPUTS), None)
    beside = args.checkpoint.with_name("run.json")
    record = files.read_json(beside, "restore it") if beside.exists() else {}
    kind = type(network)
    output, meaning = OUTPUTS[kind]
    background = "the background" if network.background else "never given"
    meaning = meaning.format(stride=network.backbone.strides[-1], background=background)
    whole = FromPixels(network).eval()

    with files.new_folder(args.out) as folder:
        with files.naming(args.out):
            write_onnx(folder / "model.onnx", whole, output)
            difference = compare(folder / "model.onnx", whole, onnxruntime)
            weights = {name: t.contiguous() for name, t in network.state_dict().items()}
            safetensors.save_file(weights, folder / "model.safetensors", {"format": "pt"})
        config = {
            "network": kind.__name__,
            "arguments": network.arguments,
            "classes": network.classes,
            "background": network.background,
            "output": {"name": output, "is": meaning},
            "mean": recipe.DATA.mean,
            "std": recipe.DATA.std,
        }
        files.write_json(folder / "config.json", config)
        card = CARD.format(
            network=kind.__name__,
            backbone=network.arguments["backbone"],
            what=(kind.__doc__ or "").splitlines()[0].rstrip("."),
            stage=record.get("stage", "scripts"),
            output=output,
            meaning=meaning,
            classes=", ".join(network.classes),
            difference=difference,
            sizes=", ".join(f"{n} x {height} x {width}" for n, height, width in SIZES),
            training=describe_training(record),
        )
        files.write_text(folder / "README.md", card)
    print(f"{args.out}: ONNX equals PyTorch to {difference:.1e}; README.md says how to use it")


if __name__ == "__main__":
    run_main(main, get_args_parser)
