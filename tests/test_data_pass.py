"""The doctor's pass over a data root: every word it has, on data made to deserve it."""

from __future__ import annotations

from pathlib import Path

from core.errors import InputError
from tools import data_pass, doctor

import cv2
import numpy as np
import pytest
from PIL import Image

IDS = [f"p{i:02}" for i in range(40)]
CLASSES = {"cat": IDS[:32], "dog": IDS[8:]}


def draw(root: Path, image_id: str, size: tuple[int, int] = (80, 64), seed: int = 0) -> Path:
    """A photograph of noise, so that no two are equal, as PNG."""
    pixels = np.random.default_rng((seed, len(image_id), *map(ord, image_id))).integers(
        0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8
    )
    path = root / "JPEGImages" / f"{image_id}.png"
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(path)
    return path


def draw_mask(
    root: Path, image_id: str, labels: list[int], size: tuple[int, int] = (80, 64)
) -> None:
    mask = np.zeros((size[1], size[0]), np.uint8)
    for row, label in enumerate(labels):
        mask[4 * row : 4 * row + 4] = label
    Image.fromarray(mask).save(root / "SegmentationClass" / f"{image_id}.png")


def classes_of(image_id: str) -> list[str]:
    return [name for name, ids in CLASSES.items() if image_id in ids]


def write_list(root: Path, split: str, ids: list[str]) -> None:
    (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(ids))


def write_labels(root: Path, labels: dict[str, list[str]]) -> None:
    (root / "labels.txt").write_text("".join(" ".join([i, *c]) + "\n" for i, c in labels.items()))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Forty pictures of cats and dogs, all with masks; thirty-six to train on, four to score."""
    folder = tmp_path / "data"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.txt").write_text("cat\ndog\n")
    write_labels(folder, {i: classes_of(i) for i in IDS})
    for image_id in IDS:
        draw(folder, image_id)
        draw_mask(folder, image_id, [["cat", "dog"].index(c) + 1 for c in classes_of(image_id)])
    write_list(folder, "train", IDS[:38])
    write_list(folder, "val", IDS[38:])
    return folder


def findings(root: Path, split: str = "train") -> list[tuple[str, str, str, str]]:
    return list(data_pass.check(root, split, workers=0))


def words(root: Path, level: str = "warn", split: str = "train") -> list[str]:
    """`what: found` of the findings of a level."""
    return [f"{what}: {found}" for at, what, found, _ in findings(root, split) if at == level]


def test_nothing_to_say_of_good_data(root: Path) -> None:
    assert {level for level, *_ in findings(root)} == {"ok"}
    said = words(root, "ok")
    assert "data: train: 38 images with labels, 0 images missing" in said
    assert "classes: cat 32, dog 30" in said
    assert "sizes: 80x64 to 80x64 pixels, the middle one 80x64" in said
    assert "masks: 38 of 38 images of train have one" in said
    assert [s for s in said if s.startswith("list")] == [
        "list: train has 38 ids",
        "list: val has 2 ids",
    ]
    assert not any("VOC" in text for text in said)


def test_several_processes_see_the_same(root: Path) -> None:
    assert list(data_pass.check(root, "train", workers=2)) == findings(root)


def test_published_lists_are_for_voc_alone(root: Path) -> None:
    (root / "classes.txt").unlink()
    assert any("train has 38 ids, VOC's 1464" in text for text in words(root))


def test_missing_and_damaged_pictures(root: Path) -> None:
    (root / "JPEGImages" / "p01.png").unlink()
    path = root / "JPEGImages" / "p02.png"
    path.write_bytes(path.read_bytes()[:200])
    failed = words(root, "FAIL")
    assert failed[0] == "data: train: 38 images with labels, 1 images missing"
    assert failed[1].startswith("images: 1 of 39 cannot be read; the first: ")
    assert "p02.png: truncated" in failed[1] and len(failed) == 2


def test_missing_pictures_of_the_other_lists(root: Path) -> None:
    (root / "JPEGImages" / "p38.png").unlink()
    assert "data: val: 2 images, 1 of them missing" in words(root, "FAIL")


def test_lists_that_no_stage_reads_and_one_that_overlaps(root: Path) -> None:
    lists = root / "ImageSets" / "Segmentation"
    (lists / "test.txt").write_text("")
    (lists / "._train.txt").write_bytes(b"\0\xff")
    assert any("test.txt: the split is empty" in each for each in words(root))
    assert not words(root, "FAIL")
    (lists / "val.txt").write_text("\n".join(IDS[-3:]))
    assert "data: 1 of val's 3 images are in train" in words(root)


def test_counts_of_classes(root: Path) -> None:
    (root / "classes.txt").write_text("cat\ndog\nbird\nfish\neel\n")
    labels = {i: [*classes_of(i), "eel"] for i in IDS}
    for image_id in IDS[:3]:
        labels[image_id] += ["bird", "fish"]
    write_labels(root, labels)
    said = words(root)
    assert "classes: in under 30 images: bird 3, fish 3" in said
    assert "classes: in every image: eel" in said
    assert "classes: never one without the other: bird with fish" in said
    (root / "classes.txt").write_text("cat\ndog\nbird\nfish\neel\nnewt\n")
    assert "classes: in no image of the list: newt" in words(root)


def test_negatives_are_counted(root: Path) -> None:
    write_labels(root, {i: [] if i in IDS[:5] else classes_of(i) for i in IDS})
    assert any("; 5 images of none" in text for text in words(root, "ok"))


def test_rotated_deep_and_tiny_pictures(root: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    with Image.open(root / "JPEGImages" / "p03.png") as image:
        turned = image.convert("RGB").transpose(Image.Transpose.ROTATE_90)
    turned.save(root / "JPEGImages" / "p03.png", exif=exif)
    deep = np.full((64, 80), 60_000, np.uint16)
    Image.fromarray(deep).save(root / "JPEGImages" / "p04.png")
    cv2.imwrite(str(root / "JPEGImages" / "p06.png"), np.stack([deep] * 3, 2) // 16)
    draw(root, "p05", (80, 40))
    draw_mask(root, "p05", [1], (80, 40))
    said = words(root, "ok")
    assert any(s.startswith("images: 1 turned upright") and s.endswith("p03") for s in said)
    assert any(s.startswith("images: 2 of 16 bits") and s.endswith("p04, p06") for s in said)
    assert words(root) == [
        "sizes: 80x40 to 80x64 pixels, the middle one 80x64; 1 under 64 pixels: p05"
    ]
    draw_mask(root, "p03", [1], (64, 80))  # drawn on the picture as it lies in the file
    failed = words(root, "FAIL")
    assert len(failed) == 1 and "not turned as the image's EXIF says" in failed[0]


def test_copies(root: Path) -> None:
    names = [root / "JPEGImages" / f"{i}.png" for i in IDS]
    names[1].write_bytes(names[0].read_bytes())
    assert words(root) == ["copies: 1 pictures are there more than once: p00 = p01"]
    names[39].write_bytes(names[2].read_bytes())
    found = "1 pictures are in the training list and in val under two ids: p02 = p39"
    assert words(root) == [f"copies: {found}"]


def test_masks_that_look_wrong(root: Path) -> None:
    for image_id in IDS[:8]:
        draw_mask(root, image_id, [2])  # a dog, labelled cat
    said = words(root)
    assert len(said) == 1
    assert said[0].startswith("masks: 8 of 38 of train hold other classes than the image-level")
    assert said[0].endswith("p00 dog, labelled cat")
    blank = np.full((64, 80), 255, np.uint8)
    Image.fromarray(blank).save(root / "SegmentationClass" / "p09.png")
    assert "masks: 1 of train hold 255, ignore, alone: p09" in words(root)
    (root / "SegmentationClass" / "p38.png").unlink()
    assert "masks: 1 of 2 images of val have one" in words(root)
    draw_mask(root, "p10", [7])
    assert "p10.png: label 7 is outside" in words(root, "FAIL")[0]


def test_labels_counted_from_nought(root: Path) -> None:
    for image_id in IDS:
        draw_mask(root, image_id, [["cat", "dog"].index(c) for c in classes_of(image_id)])
    assert "masks: train has labels, but no pixel, of dog" in words(root)


def test_255_for_the_object(root: Path) -> None:
    for image_id in IDS:
        draw_mask(root, image_id, [255])
    with pytest.raises(InputError, match="where 255 is the object"):
        findings(root)


def test_a_root_one_folder_up(root: Path) -> None:
    with pytest.raises(InputError, match=f"is {root} meant"):
        findings(root.parent)


@pytest.mark.usefixtures("known_rates")
def test_the_last_line_says_what_comes_first(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--data", str(root), "--split", "train", "--out", str(tmp_path / "runs")]
    given += ["--weights", "none", "--backbone", "resnet18", "--workers", "0"]
    given += ["--stage", "make_cam"]
    with pytest.raises(SystemExit) as stop:
        doctor.main(given)
    assert stop.value.code == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("ready")
    (root / "JPEGImages" / "p07.png").unlink()
    with pytest.raises(SystemExit) as stop:
        doctor.main(given)
    assert stop.value.code == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("not ready; first data: ") and "p07 is the first" in last
