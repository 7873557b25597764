"""tools/own: labels in every form to those of a data root; wrong forms end in one line."""

import json
from pathlib import Path

from core.errors import InputError
from tools import prepare_own
from tools.own import pictures, regions
from tools.polygons import polygons

import numpy as np
import pytest
from own_forms import (
    CAT_DOG,
    INSIDE,
    SIZE,
    SQUARE,
    TABLES,
    coco,
    cvat,
    four_pictures,
    label_studio,
    labelme,
    labels_of,
    make,
    mask_of,
    picture,
    write,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return four_pictures(tmp_path / "pictures")


@pytest.mark.parametrize("form", TABLES)
def test_tables(folder: Path, tmp_path: Path, form: str) -> None:
    data = make(folder, "--labels", write(tmp_path / "labels.csv", TABLES[form]))
    assert data.classes == ["cat", "dog"]
    assert labels_of(data) == CAT_DOG


@pytest.mark.parametrize(
    ("yes", "no"), [("1", "-1"), ("yes", "no"), ("x", ""), ("Y", "N")]
)  # fmt: skip
def test_marks_in_the_columns_of_classes(folder: Path, tmp_path: Path, yes: str, no: str) -> None:
    rows = f"a.jpg,{yes},{no}\nb.jpg,{yes},{yes}\nc.png,{no},{yes}\nd.jpg,{no},{no}\n"
    table = write(tmp_path / "labels.csv", f"file,cat,dog\n{rows}")
    assert labels_of(make(folder, "--labels", table)) == CAT_DOG


def test_counts_are_no_marks(folder: Path, tmp_path: Path) -> None:
    """Left out with a note, a column of counts would make its pictures negatives."""
    table = write(tmp_path / "labels.csv", "file,cat,dog\na.jpg,2,0\nb.jpg,0,1\nc.png,0,0\n")
    with pytest.raises(InputError, match="'cat' holds 0, 2, as of counts"):
        make(folder, "--labels", table)


def test_the_index_of_pandas_names_no_pictures(tmp_path: Path) -> None:
    """Its numbers are names of pictures as well: 0.jpg, 1.jpg ..."""
    folder = four_pictures(tmp_path / "pictures", ("0.jpg", "1.jpg", "2.jpg", "3.jpg"))
    labels = {"2": "cat", "0": "dog", "3": "dog", "1": "cat"}
    for ending in (".jpg", ""):
        rows = [f"{i},{name}{ending},{label}" for i, (name, label) in enumerate(labels.items())]
        table = write(tmp_path / f"labels{ending}.csv", "\n".join([",file,label", *rows]))
        data = make(folder, "--labels", table, "--overwrite")
        assert labels_of(data) == {name: {label} for name, label in labels.items()}
    rows = [f"{i},{name},{label}" for i, (name, label) in enumerate(labels.items())]
    table = write(tmp_path / "labels.csv", "\n".join(["number,file,label", *rows]))
    with pytest.raises(InputError, match="which of the columns number, file names the pictures"):
        make(folder, "--labels", table)


def test_numbers_of_classes_name_no_pictures(tmp_path: Path) -> None:
    """Where all labels are names of pictures, and not all files are here."""
    folder = four_pictures(tmp_path / "pictures", ("1.jpg", "2.jpg", "3.jpg", "4.jpg"))
    rows = [f"{i},{1 + i % 3}" for i in range(1, 21)]
    table = write(tmp_path / "labels.csv", "\n".join(["id,label", *rows]))
    data = make(folder, "--labels", table)
    assert labels_of(data) == {str(i): {str(1 + i % 3)} for i in range(1, 5)}


@pytest.mark.parametrize(
    ("head", "rows", "message"),
    [
        ("species,checked", "cat,1;cat,0;dog,1;dog,0", "species, checked holds the classes"),
        ("a,checked,b", "cat,1,1;cat,0,1;dog,1,0;cat,1,0", "a, checked, b holds the classes"),
        ("cat,dog", "1,0;0,nan;1,1;0,1", "'dog' holds 'nan' among its marks; write 1 or 0"),
        ("cat,dog", "1,0;0,1;1,1;0,maybe", "'dog' holds 'maybe' among its marks"),
    ],
)
def test_marks_beside_what_may_be_classes(
    folder: Path, tmp_path: Path, head: str, rows: str, message: str
) -> None:
    """Left out with a note the column would turn its pictures into negatives."""
    files = ("a.jpg", "b.jpg", "c.png", "d.jpg")
    lines = [",".join(row) for row in zip(files, rows.split(";"), strict=True)]
    table = write(tmp_path / "labels.csv", "\n".join([f"file,{head}", *lines]))
    with pytest.raises(InputError, match=message):
        make(folder, "--labels", table)


def test_columns_beside_marks_that_are_no_classes(folder: Path, tmp_path: Path) -> None:
    rows = "a.jpg,train,0.5,1,0\nb.jpg,train,7,1,1\nc.png,val,7,0,1\nd.jpg,val,7,0,0\n"
    table = write(tmp_path / "labels.csv", f"file,split,weight,cat,dog\n{rows}")
    assert labels_of(make(folder, "--labels", table)) == CAT_DOG


@pytest.mark.parametrize(
    "text",
    [
        "file,cat,dog,note\na.jpg,1,0,note\nb.jpg,1,1,blurred\nc.png,0,1,far\nd.jpg,0,0,dark\n",
        "file,label,source\na.jpg,cat,source\nb.jpg,cat dog,web\nc.png,dog,web\nd.jpg,,web\n",
        "file,label\na.jpg,cat\nb.jpg,cat dog\nfile,label\nc.png,dog\nd.jpg,\n",
    ],
)
def test_a_header_whose_words_stand_below_too(folder: Path, tmp_path: Path, text: str) -> None:
    assert labels_of(make(folder, "--labels", write(tmp_path / "labels.csv", text))) == CAT_DOG


def test_a_part_of_a_coco_file(folder: Path, tmp_path: Path) -> None:
    """The annotations of all, one image listed twice."""
    one = {"id": 1, "file_name": "a.jpg"}
    whole = {"categories": [{"id": 1, "name": "cat"}], "images": [one, one]}
    whole["annotations"] = [{"image_id": i, "category_id": 1, "bbox": [0, 0, 2, 2]} for i in (1, 9)]
    data = make(folder, "--labels", write(tmp_path / "x.json", json.dumps(whole)))
    assert labels_of(data) == {"a": {"cat"}}


def test_names_of_two_words_between_tabs(folder: Path, tmp_path: Path) -> None:
    rows = "a.jpg\tred panda\nb.jpg\tred panda\nc.png\tdog\nd.jpg\tsea cow\n"
    data = make(folder, "--labels", write(tmp_path / "labels.tsv", rows))
    assert labels_of(data)["a"] == {"red panda"} and labels_of(data)["sub_d"] == {"sea cow"}


def test_names_between_quotes_hold_marks(folder: Path, tmp_path: Path) -> None:
    rows = """a.jpg,"['owl, barn', ""queen's; x""]"\nb.jpg,[]\nc.png,['dog|s']\nd,"[""cat""]"\n"""
    data = make(folder, "--labels", write(tmp_path / "labels.csv", f"file,labels\n{rows}"))
    found = {"a": {"owl, barn", "queen's; x"}, "b": set(), "c": {"dog|s"}, "sub_d": {"cat"}}
    assert labels_of(data) == found


def test_a_spreadsheet(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a spreadsheet; save it as CSV"):
        make(folder, "--labels", write(tmp_path / "labels.xlsx", "PK"))


def test_names_of_two_words(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    table = write(tmp_path / "labels.csv", "a.jpg,red panda\nb.jpg,snow fox\n")
    assert labels_of(make(folder, "--labels", table)) == {"a": {"red panda"}, "b": {"snow fox"}}
    printed = capsys.readouterr().out
    assert "spaces belong to names" in printed and "left out: 2 as c.png: no labels" in printed
    data = make(folder, "--labels", table, "--separator", "space", "--overwrite")
    assert labels_of(data)["a"] == {"red", "panda"}


@pytest.mark.parametrize("form", [labelme, cvat, label_studio, coco], ids=lambda f: f.__name__)
def test_exports(folder: Path, form) -> None:
    labels = form(folder)
    data = make(folder, "--labels", labels)
    assert data.classes == ["cat", "dog"]
    assert labels_of(data) == CAT_DOG
    assert not (data.root / "SegmentationClass").exists()

    data = make(folder, "--labels", labels, "--with-masks", "--overwrite")
    cat, dog = (np.zeros(SIZE, int) for _ in range(2))
    cat[INSIDE], dog[INSIDE] = 1, 2
    assert np.array_equal(mask_of(data, "a"), cat)
    assert np.array_equal(mask_of(data, "c"), dog)
    assert not mask_of(data, "sub_d").any()
    assert not data.mask_path("b").exists()  # of the dog there is but a box


@pytest.mark.parametrize("form", [label_studio, coco], ids=lambda f: f.__name__)
def test_runs_for_another_size_are_no_mask(folder: Path, form, capsys) -> None:
    """The picture was resized since: laid over its corner they would be wrong."""
    labels = form(folder)
    picture(folder / "a.jpg", size=(48, 64))
    text = labels.read_text().replace('"width": 32, "height": 24', '"width": 64, "height": 48', 1)
    data = make(folder, "--labels", write(labels, text), "--with-masks")
    assert labels_of(data) == CAT_DOG and not data.mask_path("a").exists()
    assert "1 without a mask: a damaged shape, or one for another size" in capsys.readouterr().out


@pytest.mark.parametrize("space", ["", " xmlns='http://x.org/a'"])
def test_voc_annotations(folder: Path, space: str) -> None:
    xml = f"<annotation{space}><filename>{{}}</filename>{{}}</annotation>"
    thing = "<object><name>{}</name></object>"
    for name, some in (("a.jpg", ["cat"]), ("b.jpg", ["dog", "cat"]), ("c.png", ["dog"])):
        text = xml.format(name, "".join(map(thing.format, some)))
        write(folder.parent / "xml" / f"{name[0]}.xml", text)
    data = make(folder, "--labels", folder.parent / "xml", "--rest-negative")
    assert labels_of(data) == CAT_DOG


@pytest.mark.parametrize("stale", ["a.jpg", "c.png"])
def test_files_that_name_one_picture(folder: Path, tmp_path: Path, stale: str) -> None:
    """As copied files do: all labels would be those of one picture, whichever is read first."""
    xml = "<annotation><filename>{}</filename><object><name>cat</name></object></annotation>"
    for name in ("a", "a_2"):  # the second is called as no picture
        write(tmp_path / "xml" / f"{name}.xml", xml.format("a.jpg"))
    data = make(folder, "--labels", tmp_path / "xml")
    assert labels_of(data) == {"a": {"cat"}}
    for name in ("b", "c"):
        write(tmp_path / "xml" / f"{name}.xml", xml.format(stale))
    words = r"b\.xml: it says that it is of .*/[ac]\.xml does, yet there is b\.jpg; correct"
    with pytest.raises(InputError, match=words):
        make(folder, "--labels", tmp_path / "xml", "--overwrite")


def test_which_files_of_a_folder_are_labels(folder: Path, tmp_path: Path) -> None:
    """Links are followed, as to pictures; what Jupyter and macOS leave behind is not read."""
    for hidden in (".ipynb_checkpoints", "__MACOSX"):
        write(tmp_path / "labels" / hidden / "old.csv", "a.jpg,dog\n")
    write(tmp_path / "labels" / "some.csv", "a.jpg,cat\n")
    write(tmp_path / "elsewhere" / "more.csv", "b.jpg,cat;dog\nc.png,dog\nd.jpg,\n")
    (tmp_path / "labels" / "link").symlink_to(tmp_path / "elsewhere")
    assert labels_of(make(folder, "--labels", tmp_path / "labels")) == CAT_DOG


def test_later_shapes_lie_over_earlier_ones_and_boxes_are_unknown(folder: Path) -> None:
    inner = [[6, 6], [10, 6], [10, 10], [6, 10]]
    labels = [("cat", SQUARE, "polygon"), ("dog", inner, "polygon"),
              ("dog", [[20, 2], [30, 10]], "rectangle"), ("ignore", [[0, 20], [4, 20], [4, 24],
              [0, 24]], "polygon"), ("cat", [[25, 18], [25, 20]], "circle")]  # fmt: skip
    shapes = [{"label": n, "points": p, "shape_type": kind} for n, p, kind in labels]
    write(folder / "a.json", {"imagePath": "a.jpg", "shapes": shapes})
    data = make(folder, "--labels", folder / "a.json", "--with-masks")
    expected = np.zeros(SIZE, int)
    expected[2:10, 20:30] = expected[20:24, 0:4] = 255
    expected[INSIDE], expected[6:10, 6:10] = 1, 2
    mask = mask_of(data, "a").astype(int)
    assert 9 <= (mask[15:22, 22:29] == 1).sum() <= 25  # a disc of radius 2
    mask[15:22, 22:29] = 0
    assert np.array_equal(mask, expected)


def test_names_of_pictures(tmp_path: Path) -> None:
    some = [pictures.Picture(tmp_path / n, n) for n in ("a/1.jpg", "b/1.jpg", "2.jpg", "c.v1.png")]
    index = pictures.Index(some)
    for name, meant in {"a/1.jpg": 0, "a/1": 0, "x/b/1.png": 1, "2": 2, "x/y/2.JPG": 2, "c.v1": 3,
                        r"D:\x\a\1.jpg": 0, "./2.jpg": 2, "x/1.jpg": None, "3": None,
                        "c": None, "": None}.items():  # fmt: skip
        wanted = None if meant is None else some[meant]
        assert index.find([name], tmp_path) == wanted, name
    with pytest.raises(InputError, match=r"'1.jpg' may be a/1.jpg or b/1.jpg; write the folders"):
        index.find(["1.jpg"], tmp_path)


def test_pictures_and_folders_one_by_one(tmp_path: Path) -> None:
    x, y = (picture(tmp_path / folder / "1.jpg").parent for folder in "xy")
    table = write(tmp_path / "labels.csv", "file,label\nx/1.jpg,dog\n")
    assert labels_of(make(x / "1.jpg", "--labels", table)) == {"1": {"dog"}}
    words = [x, y, "--labels", table, "--out", tmp_path / "other"]
    args = prepare_own.get_args_parser().parse_args([*map(str, words)])
    with pytest.raises(InputError, match=r"may be .*x/1.jpg or .*y/1.jpg; give the folder above"):
        prepare_own.main(args)


def test_a_polygon_covers_the_pixels_whose_centres_it_holds() -> None:
    """A square of 10 x 10 has 100 pixels, in percent too; a mask's outline gives the mask."""
    square = [(5.0, 5.0), (15.0, 5.0), (15.0, 15.0), (5.0, 15.0)]
    expected = np.zeros((20, 50), bool)
    expected[5:15, 5:15] = True
    assert np.array_equal(regions.fill([square], False, (20, 50)), expected)
    percent = [(2 * x, 5 * y) for x, y in square]
    assert np.array_equal(regions.fill([percent], True, (20, 50)), expected)
    rng = np.random.default_rng(0)
    y, x = np.ogrid[:40, :60]
    ring = ((x - 30) ** 2 + (y - 20) ** 2 < 300) & ((x - 30) ** 2 + (y - 20) ** 2 > 60)
    blobs = np.kron(rng.random((10, 15)) < 0.5, np.ones((4, 4), bool))
    for mask in (ring, blobs):
        rings = [[(float(x), float(y)) for x, y in ring] for ring in polygons(mask)]
        assert np.array_equal(regions.fill(rings, False, mask.shape), mask)


def test_coco_run_lengths_as_pycocotools_packs_them() -> None:
    mask = pytest.importorskip("pycocotools.mask")
    drawn = np.random.default_rng(3).random((40, 300)) < 0.02
    packed = mask.encode(np.asfortranarray(drawn.astype(np.uint8)))["counts"]
    for counts in (packed, packed.decode()):
        found = regions.runs(regions.unpack_coco(counts), (40, 300), "F", (0, 0), (40, 300))
        assert np.array_equal(found, drawn)


def test_a_brush_as_label_studio_packs_it() -> None:
    packed = [0, 0, 0, 18, 57, 27, 252, 96, 32, 1, 0, 6, 0, 40, 0, 192, 3, 128, 17, 56, 32]
    values = [1, 1, 1, 1, 2, 3, 5, 6, 7, 8, 4, 4, 4, 4, 4, 4, 4, 4]  # a vector of its own tests
    assert regions.unpack(packed, 18).tolist() == values
    for damaged in (packed[:9], [255] * 21, []):
        with pytest.raises(ValueError):
            regions.unpack(damaged, 18)


COCO_WITHOUT = """
{"images": [], "annotations": [{"category_id": 3}], "categories": [{"id": 1, "name": "cat"}]}
"""
COCO_LOST = COCO_WITHOUT.replace("3", '1, "image_id": 7')
COCO_IMAGES = COCO_LOST.replace("[]", '[{"id": 7}, {"id": 7, "file_name": "a.jpg"}]')
COCO_CLASSES = COCO_LOST.replace("}]}", '}, {"id": 1, "name": "dog"}]}')
WRONG = {
    "x.csv": {
        "file,label\nq.jpg,cat\n": "no cell names a picture; its first row is 'file | label'",
        "a.jpg,1,0\nb.jpg,0,1\n": "columns of 0 and 1 without a header; name the classes",
        "a.jpg,3,9,cat\nb.jpg,,,\n": "columns of numbers beside others, without a header; name",
        "file,label\na.jpg,1\nb.jpg,0\n": "0 and 1 alone: call the column after the class",
        "file,w,h\na.jpg,3,4\nb.jpg,5,6\n": "which of the columns w, h holds the classes",
        "a.jpg,none\nb.jpg,\n": "no picture with a class",
        "a.jpg,cat/dog\n": "class 'cat/dog' cannot be part of a file name",
        "a.jpg,cat\na,dog\n": "'a.jpg' and 'a' both seem to be a.jpg",
        'file,label\na.jpg,"cat\nb.jpg,cat\nc.png,dog\n': "not a table (unexpected end of data; an",
        'file;label\na.jpg;"cat\nb.jpg;cat\nc.png;"dog"\n': "an open quote?); save it as CSV",
        "": "its first row is 'nothing'",
    },
    "x.json": {
        "{": "damaged or not JSON",
        "[]": "no known form",
        "[" * 100_000: "damaged or not JSON",
        '{"_via_img_metadata": {"a": {"regions": []}}}': "of VIA",
        '[{"image": "a.jpg", "annotator": 1}]': "JSON-MIN",
        '{"images": []}': "without annotations and categories",
        '{"shapes": [{}], "imagePath": "a.jpg"}': "an entry is not as it should be",
        '{"shapes": [{"label": "x", "points": [[0, NaN]]}], "imagePath": "a.jpg"}': "no number",
        COCO_WITHOUT: "category 3 is not among",
        COCO_LOST: "an annotation of image 7, which it does not list; export",
        COCO_IMAGES: "two of 'images' have the id 7",
        COCO_CLASSES: "two of 'categories' have the id 1",
        '{"shapes": [], "imagePath": "z.jpg"}': "other pictures",
        '[{"data": {"image": "a.jpg"}, "annotations": []}]': "nothing is annotated yet",
    },
    "x.xml": {
        "<annotations><track/></annotations>": "CVAT for video",
        "<html/>": "<html>",
        "<annotations>": "damaged XML",
        "<!DOCTYPE x []><annotations/>": "DTD is refused",
        "<annotations><image name='a.jpg'/></annotations>": "KeyError: 'height'",
    },
}


@pytest.mark.parametrize(
    ("name", "text", "words"), [(n, t, w) for n, some in WRONG.items() for t, w in some.items()],
    ids=lambda each: each[:30],
)  # fmt: skip
def test_wrong_labels(folder: Path, tmp_path: Path, name: str, text: str, words: str) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(InputError) as error:
        make(folder, "--labels", path)
    assert words in str(error.value) and str(error.value).startswith(str(path))
    assert not (tmp_path / "my").exists()
