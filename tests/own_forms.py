"""Somebody's pictures and labels in every form, made up: for the tests of tools/prepare_own.py."""

import base64
import io
import json
from pathlib import Path

from core.data import images
from core.data.datasets import DataRoot
from tools import prepare_own

import numpy as np
from PIL import Image

SIZE = (24, 32)  # height, width
SQUARE = [[4, 4], [16, 4], [16, 16], [4, 16]]  # 12x12 pixels
INSIDE = np.s_[4:16, 4:16]


def picture(path: Path, seed: int = 0, size: tuple[int, int] = SIZE, **save: object) -> Path:
    """A picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **save)
    return path


FOUR = ("a.jpg", "b.jpg", "c.png", "sub/d.jpg")


def four_pictures(folder: Path, names: tuple[str, ...] = FOUR) -> Path:
    """Four pictures in a folder, one of them in a sub-folder of it."""
    for number, name in enumerate(names):
        picture(folder / name, number)
    return folder


def write(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def make(source: Path, *given: object) -> DataRoot:
    """Run the tool; all pictures go to train unless --val is given."""
    out = source.parent / "my"
    words = [str(source), "--out", str(out), "--val", "0", *map(str, given)]
    prepare_own.main(prepare_own.get_args_parser().parse_args(words))
    return DataRoot(out)


def labels_of(data: DataRoot, split: str = "train") -> dict[str, set[str]]:
    """The classes of each id of a list, as the stages read them."""
    labels = data.image_labels(data.ids(split))
    return {i: {data.classes[c - 1] for c in some} for i, some in labels.items()}


def mask_of(data: DataRoot, image_id: str) -> np.ndarray:
    path = data.image_path(image_id)
    return images.read_label(data.mask_path(image_id), data.n_labels, images.image_size(path))


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


CAT_DOG = {"a": {"cat"}, "b": {"cat", "dog"}, "c": {"dog"}, "sub_d": set()}
TABLES = {
    "header": "file,label\na.jpg,cat\nb.jpg,cat;dog\nc.png,dog\nsub/d.jpg,\n",
    "no header": "a.jpg,cat\nb.jpg,cat|dog\nc.png,dog\nsub/d.jpg,none\n",
    "no extension": "id,tags\na,cat\nb,cat dog\nc,dog\nd,\n",
    "absent": "z,cat,dog\na,cat\nb,cat,dog\nc,dog\nd\n",
    "rows": "image,class,xmin\na.jpg,cat,3\nb.jpg,cat,3\nb.jpg,dog,4\nc.png,dog,5\nd.jpg,none,\n",
    "columns": "a.jpg,cat\nb.jpg,cat,dog\nc.png,dog\nd.jpg\n",
    "one-hot": "file,cat,dog\na.jpg,1,0\nb.jpg,1,1\nc.png,0,1\nd.jpg,0,0\n",
    "numbered one-hot": ",file,cat,dog,width\n5,a,1.0,0.0,32\n6,b,1,1,32\n7,c,0,1,9\n8,d,0,0,9\n",
    "semicolons": "file;label\na.jpg;cat\nb.jpg;cat,dog\nc.png;dog\nd.jpg;background\n",
    "tabs": "file\tlabel\na.jpg\tcat\nb.jpg\tcat dog\nc.png\tdog\nd.jpg\t\n",
    "spaces": "a cat\nb cat dog\nc dog\nd\n",
    "lists": "file,labels\na.jpg,['cat']\nb.jpg,\"['cat', 'dog']\"\nc.png,['dog']\nd.jpg,[]\n",
    "arrays": "file,labels\na.jpg,['cat']\nb.jpg,['cat' 'dog']\nc.png,['dog']\nd.jpg,[]\n",
    "bare lists": 'file,labels\na.jpg,[cat]\nb.jpg,"[cat, dog]"\nc.png,[dog]\nd.jpg,[]\n',
    "pandas": "file,label,label.1\na.jpg,cat,\nb.jpg,cat,dog\nc.png,dog,\nd.jpg,,\n",
    "elsewhere": "file,label\nold/a.jpg,cat\nC:\\x\\B.JPG,cat;dog\n/home/c.jpg,dog\nx/sub/d.jpg,\n",
    "quotes": 'file,label,note\na.jpg,"cat","two\nlines"\nb.jpg,"cat;dog","5"" x"\nc,dog,\nd,,\n',
    "marked": '\ufefffile,label\r\na.jpg,cat\r\nb.jpg,"cat, dog"\r\nc.png,dog\r\nd.jpg,\r\n',
}


def labelme(folder: Path) -> Path:
    shapes = [{"label": "dog", "points": SQUARE, "shape_type": "polygon"}]
    png = io.BytesIO()
    Image.new("L", (12, 12), 255).save(png, "PNG")
    mask = {"label": "cat", "points": [[4, 4], [15, 15]], "shape_type": "mask",
            "mask": base64.b64encode(png.getvalue()).decode()}  # fmt: skip
    size = {"imageHeight": SIZE[0], "imageWidth": SIZE[1]}
    box = {"label": "dog", "points": [[1, 1], [9, 9]], "shape_type": "rectangle"}
    for name, some in (("a.jpg", [mask]), ("b.jpg", [box, {**shapes[0], "label": "cat"}]),
                       ("c.png", shapes), ("sub/d.jpg", [])):  # fmt: skip
        path = (folder / name).with_suffix(".json")
        write(path, {"imagePath": Path(name).name, "shapes": some, "flags": {}, **size})
    return folder


def cvat(folder: Path) -> Path:
    points = ";".join(f"{x},{y}" for x, y in SQUARE)
    image = '<image id="0" name="{}" width="32" height="24">{}</image>'
    polygon = f'<polygon label="{{}}" points="{points}" z_order="0"/>'
    box = '<box label="dog" xtl="1" ytl="1" xbr="9" ybr="9" z_order="1"/>'
    mask = f'<mask label="cat" left="4" top="4" width="12" height="12" rle="0, {12 * 12}"/>'
    texts = (
        "<annotations><meta><task><labels><label><name>cat</name></label><label><name>dog</name>"
        "</label><label><name>unused</name></label></labels></task></meta>",
        image.format("a.jpg", mask),
        image.format("b.jpg", box + polygon.format("cat")),
        image.format("c.png", polygon.format("dog")),
        image.format("sub/d.jpg", ""),
        "</annotations>",
    )
    return write(folder.parent / "annotations.xml", "".join(texts))


def bits(*pairs: tuple[int, int]) -> list[int]:
    """Numbers, each in a number of bits, as bytes."""
    text = "".join(f"{value:0{width}b}" for value, width in pairs)
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


def brush_of(mask: np.ndarray) -> list[int]:
    """A bool (H, W) as Label Studio packs it: here a run for every pixel, of RGBA."""
    values = np.repeat(mask.ravel(), 4) * 255
    sizes = [(3 - 1, 4), (4 - 1, 4), (8 - 1, 4), (16 - 1, 4)]
    runs = [pair for value in values[::4] for pair in ((1, 1), (0, 2), (3, 3), (int(value), 8))]
    return bits((values.size, 32), (7, 5), *sizes, *runs)


def label_studio(folder: Path) -> Path:
    percent = [[100 * x / SIZE[1], 100 * y / SIZE[0]] for x, y in SQUARE]
    mask = np.zeros(SIZE, bool)
    mask[INSIDE] = True

    def task(image: str, *results: tuple[str, dict]) -> dict:
        some = [{"type": kind, "value": value, "original_width": 32, "original_height": 24}
                for kind, value in results]  # fmt: skip
        return {"id": 1, "data": {"image": image}, "annotations": [{"result": some}]}

    polygon = {"points": percent}
    box = {"x": 3, "y": 3, "width": 20, "height": 20, "rotation": 0, "rectanglelabels": ["dog"]}
    brush = {"format": "rle", "rle": brush_of(mask), "brushlabels": ["cat"]}
    tasks = [
        task("/data/upload/1/0123abcd-a.jpg", ("brushlabels", brush)),
        task("/data/local-files/?d=x/b.jpg", ("rectanglelabels", box),
             ("polygonlabels", polygon | {"polygonlabels": ["cat"]})),
        task("s3://bucket/c.png?key=1", ("polygonlabels", polygon | {"polygonlabels": ["dog"]}),
             ("choices", {"choices": ["dog"]})),
        task("/data/upload/1/76543210-d.jpg"),
        {"id": 5, "data": {"image": "later.jpg"}, "annotations": []},
    ]  # fmt: skip
    return write(folder.parent / "export.json", tasks)


def coco(folder: Path) -> Path:
    names = ("a.jpg", "b.jpg", "c.png", "sub/d.jpg")
    listed = [{"id": 7 + i, "file_name": name, "width": 32, "height": 24}
                for i, name in enumerate(names)]  # fmt: skip
    categories = [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 1, "name": "animals"}]
    square = np.ravel(SQUARE).tolist()
    mask = np.zeros(SIZE, bool)
    mask[INSIDE] = True
    flat = np.flatnonzero(np.diff(np.concatenate([[0], mask.T.ravel(), [0]])))
    counts = np.diff([0, *flat, mask.size]).tolist()
    rle = {"counts": counts, "size": list(SIZE)}
    rows = [(7, 3, rle), (8, 9, []), (8, 3, [square]), (9, 9, [square])]
    some = [{"id": i, "image_id": image, "category_id": category, "segmentation": drawn,
             "bbox": [1, 1, 8, 8], "iscrowd": int(isinstance(drawn, dict))}
            for i, (image, category, drawn) in enumerate(rows)]  # fmt: skip
    value = {"images": listed, "annotations": some, "categories": categories}
    return write(folder.parent / "coco.json", value)


def masks_for(folder: Path, into: Path, values: dict[str, list[int]]) -> Path:
    for name, some in values.items():
        label = np.zeros(SIZE, np.uint8)
        label[: len(some), 0] = some
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        images.write_label(into / name, label)
    return into
