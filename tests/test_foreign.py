"""Other projects' score maps: every form in, ours out and in again, hostile files refused."""

import io
import json
import os
import pickle
import shutil
from pathlib import Path

from core.data.datasets import DataRoot
from core.data.scores import Scores, strided_size, upsample
from core.errors import InputError
from core.method.random_walk import rescale
from core.run import artefacts
from tools import export_scores, foreign, import_scores

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import write_cams
from faults.stages import STAGES
from PIL import Image

SIZE, LABELS, N = (48, 64), [2, 3], 3
torch.manual_seed(0)
# Smooth, as maps of a network are.
CAM = F.interpolate(torch.rand(1, 2, 3, 4), strided_size(SIZE), mode="bicubic")[0]
CAM = (CAM.clamp(min=0) / CAM.amax((1, 2), keepdim=True)).numpy()
FULL = upsample(torch.from_numpy(CAM), SIZE).numpy()
FORMS = {
    "irn": {"keys": np.array([1, 2]), "cam": CAM, "high_res": FULL},
    "list of keys": {"keys": [1, 2], "cam": CAM, "high_res": FULL},
    "irn's tensors": {"keys": torch.tensor([1, 2]), "cam": torch.from_numpy(CAM), "high_res": FULL},
    "a view": {"keys": torch.arange(4)[1:3], "cam": torch.from_numpy(CAM.copy()).mT.clone().mT},
    "half": {"keys": torch.tensor([1, 2]), "cam": torch.from_numpy(CAM).half()},
    "puzzlecam": {"keys": np.array([0, 2, 3]), "cam": CAM, "hr_cam": FULL},
    "clip-es": {"keys": np.array([1, 2]), "attn_highres": FULL.astype(np.float16)},
    "seam": {1: FULL[0], 2: FULL[1]},
    "seam, unordered": {2: FULL[1], 1: FULL[0]},
    "all classes": np.stack([np.zeros(SIZE, np.float32), *FULL]),
    "own classes": CAM,
}


def saved(path, value, protocol=None):
    """A .npy of an array, or of a dict pickled by any protocol."""
    if protocol is None or isinstance(value, np.ndarray):
        np.save(path, value, allow_pickle=True)
    else:
        header = io.BytesIO()
        np.save(header, np.array({}, object), allow_pickle=True)
        start = header.getvalue().index(b"\n") + 1
        boxed = np.array(value, object)
        path.write_bytes(header.getvalue()[:start] + pickle.dumps(boxed, protocol))
    return path


@pytest.mark.parametrize("protocol", [None, 0, 2, 3, 4, 5])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(tmp_path, form, protocol):
    path = saved(tmp_path / "a.npy", FORMS[form], protocol)
    scores = foreign.as_scores(foreign.load(path), path, LABELS, N, SIZE, "")
    assert scores.classes.tolist() == LABELS and scores.size == SIZE
    error = np.abs(scores.cam - CAM)
    strided = form == "own classes" or (isinstance(FORMS[form], dict) and "cam" in FORMS[form])
    assert error.max() < (1e-3 if strided else 0.15)
    assert error.mean() < 2e-3


def test_images_and_archives(tmp_path):
    np.savez(tmp_path / "a.npz", keys=np.array([1, 2]), cam=CAM)
    np.savez(tmp_path / "b.npz", CAM)
    for name in ("a.npz", "b.npz"):
        scores = foreign.as_scores(foreign.load(tmp_path / name), tmp_path, LABELS, N, SIZE, "")
        assert (scores.cam == CAM.astype("f2")).all()
    grey = (FULL[0] * 255).round().astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    scores = foreign.as_scores(foreign.load(tmp_path / "a.png"), tmp_path, [2], N, SIZE, "")
    assert np.abs(scores.cam[0] - CAM[0]).mean() < 5e-3
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(grey).convert("RGBA").save(tmp_path / "grey.png")
    for name in ("deep.png", "grey.png"):
        np.testing.assert_allclose(foreign.load(tmp_path / name), grey / 255, atol=1e-6)
    coloured = Image.fromarray(np.stack([grey, 255 - grey, grey], 2))
    for mode in ("RGB", "P"):
        coloured.convert(mode).save(tmp_path / "a.png")
        with pytest.raises(InputError, match=r"a\.png: has colours, .* save the scores"):
            foreign.load(tmp_path / "a.png")


@pytest.mark.parametrize("turned", [CAM.transpose(0, 2, 1), FULL.transpose(0, 2, 1)])
def test_maps_of_the_image_before_it_was_turned_are_refused(tmp_path, turned):
    exif = Image.Exif()
    exif[0x112] = 6
    picture = tmp_path / "a.jpg"
    Image.new("RGB", SIZE).save(picture, exif=exif)
    how = tmp_path / "a.npy", LABELS, N, SIZE, "", picture
    with pytest.raises(InputError, match=r"image of \(48, 64\) .* before its EXIF turned it"):
        foreign.as_scores(turned, *how)
    Image.new("RGB", SIZE[::-1]).save(picture)  # else they may be of a size that all maps have
    assert foreign.as_scores(turned, *how).cam.shape[1:] == CAM.shape[1:]


@pytest.mark.parametrize("form", ["irn", "puzzlecam", "seam"])
def test_an_image_without_classes(tmp_path, form):
    none = Scores(np.zeros(0, np.uint8), np.zeros((0, *strided_size(SIZE)), np.float16), SIZE)
    path = saved(tmp_path / "a.npy", foreign.to_form(none, form))
    scores = foreign.as_scores(foreign.load(path), path, [], N, SIZE, "")
    assert scores.classes.shape == (0,) and scores.cam.shape == none.cam.shape


@pytest.mark.parametrize("value", [{"keys": torch.tensor([]).long()}, {"keys": [], "cam": []}])
def test_an_image_without_classes_and_maps(tmp_path, value):
    """As IRN's descendants write those of COCO."""
    path = saved(tmp_path / "a.npy", value)
    scores = foreign.as_scores(foreign.load(path), path, [], N, SIZE, "")
    assert scores.cam.shape == (0, *strided_size(SIZE))
    with pytest.raises(InputError, match=r"the classes \[\], but the image has \[2, 3\]"):
        foreign.as_scores(foreign.load(path), path, LABELS, N, SIZE, "")


@pytest.mark.parametrize("maps", [CAM, FULL, CAM[:, ::2, ::2]], ids=["strided", "full", "other"])
def test_logits_below_zero_become_zero(tmp_path, maps):
    """Of every size: the walk would spread them."""
    scores = foreign.as_scores(20 * maps - 10, tmp_path, LABELS, N, SIZE, "")
    assert scores.cam.min() == 0 and scores.cam.max() > 0.9


def test_maps_above_one_and_of_another_stride(tmp_path):
    value = {"keys": np.array([1, 2]), "cam": 7 * CAM[:, ::2, ::2]}
    scores = foreign.as_scores(value, tmp_path, LABELS, N, SIZE, "")
    assert scores.cam.shape == CAM.shape
    np.testing.assert_allclose(scores.cam.max((1, 2)), 1, atol=1e-3)


class Hostile:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


BYTES = pickle.dumps(Hostile(eval, ("1",)), 2)


def rebuilt(storage, *how):
    return Hostile(torch._utils._rebuild_tensor_v2, (storage, *how, False, {}))


@pytest.mark.parametrize(
    "value",
    [
        {"keys": Hostile(os.system, ("touch {}",))},
        {"keys": Hostile(eval, ("1",))},
        {"keys": Hostile(np.ndarray, ((1 << 40,),))},
        {"keys": Hostile(np.fromfile, ("/etc/passwd", "u1"))},
        {"keys": Hostile(np.dtype, ("V9999999999",))},
        {"keys": torch.zeros(1).expand(1 << 40)},
        {"keys": rebuilt(torch.zeros(2).untyped_storage(), 0, (2,), (1,))},
        {"keys": rebuilt(torch.zeros(2)._typed_storage(), 1, (2,), (1,))},
        {"keys": rebuilt(torch.zeros(2)._typed_storage(), 0, (-1,), (1,))},
        {"keys": Hostile(torch.storage._load_from_bytes, (BYTES,))},
        {"keys": torch.nn.Linear(1, 1)},
    ],
    ids=[
        "system",
        "eval",
        "memory",
        "file",
        "type",
        "expanded",
        "untyped",
        "outside",
        "negative",
        "storage",
        "module",
    ],
)
def test_hostile_pickles_are_refused(tmp_path, value):
    path = saved(tmp_path / "a.npy", value, 2)
    with pytest.raises(InputError, match=r"a\.npy: (refused, its pickle|damaged)") as error:
        foreign.load(path)
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"keys": np.array([2, 3]), "cam": CAM}, r"classes \[3, 4\], but the image has \[2, 3\]"),
        ({"keys": np.array([1, 2]), "maps": CAM}, r"no map 'cam'; it has maps: give --map"),
        ({"keys": np.array([1, 2]), "cam": CAM[:1]}, r"shape \(1, 12, 16\) for 2 classes"),
        ({"a": CAM}, "a dict of a without `keys`"),
        ({1: CAM[0], 2: CAM[0, :4]}, "maps of several shapes"),
        (np.float32(1), r"an array of shape \(\); maps are"),
        ({"keys": np.array([1, 2]), "cam": CAM * np.nan}, "holds NaN"),
        (np.zeros((5, 4, 4)), r"shape \(5, 4, 4\) for 2 classes"),
        ({"keys": ["cat", "dog"], "cam": CAM}, "keys or maps are no arrays of numbers; save one"),
        ({"keys": None, "cam": CAM}, "keys or maps are no arrays of numbers"),
        ({"keys": 1, "cam": CAM}, "keys or maps are no arrays of numbers"),
        ({"keys": [1, 2], "cam": [CAM[0], FULL[1]]}, "keys or maps are no arrays of numbers"),
        ({"keys": [1, 2], "cam": {1: CAM[0]}}, "keys or maps are no arrays of numbers"),
        ({1: CAM[0, :0], 2: CAM[0, :0]}, r"maps of shape \(2, 0, 16\) for 2 classes"),
    ],
)
def test_wrong_forms_say_what_was_seen(tmp_path, value, message):
    path = saved(tmp_path / "a.npy", value)
    with pytest.raises(InputError, match=rf"a\.npy: .*{message}"):
        foreign.as_scores(foreign.load(path), path, LABELS, N, SIZE, "")
    path.write_bytes(path.read_bytes()[:90])
    with pytest.raises(InputError, match=r"a\.npy: "):
        foreign.load(path)


@pytest.mark.parametrize("form", ["seam", "all classes", "own classes"])
def test_a_map_that_files_without_names_cannot_have(tmp_path, form):
    with pytest.raises(InputError, match="maps have no names, as 'hr_cam'; leave out --map"):
        foreign.as_scores(FORMS[form], tmp_path, LABELS, N, SIZE, "hr_cam")
    assert not len(foreign.as_scores({}, tmp_path, [], N, SIZE, "hr_cam").cam)


@pytest.mark.parametrize("form", ["irn", "puzzlecam", "seam"])
def test_out_and_in_again(inputs, tmp_path, form):
    """Our CAMs through another project's form: the same scores, the same labels."""
    theirs, ours = tmp_path / "theirs", tmp_path / "cam"
    export_scores.main([str(inputs / "cam"), "--form", form, "--out", str(theirs)])
    if form != "seam":  # whose walk calls .cuda() on it
        for path in theirs.iterdir():
            assert isinstance(np.load(path, allow_pickle=True).item()["cam"], torch.Tensor)
    more = ["--data", str(inputs / "data"), "--split", "train", "--out", str(ours)]
    import_scores.main([str(theirs), *more])
    made = artefacts.read(ours, "scores", DataRoot(inputs / "data").classes)
    assert made["stage"] == "import_scores"
    for path in sorted(ours.glob("*.npz")):
        one, two = (Scores.load(folder / path.name, 3) for folder in (ours, inputs / "cam"))
        assert one.classes.tolist() == two.classes.tolist() and one.size == two.size
        if form == "seam":  # which has them at the image's size alone
            assert np.abs(one.cam - two.cam).mean() < 0.01
        else:
            assert (one.cam == two.cam).all()
    STAGES["affinity_labels"].run(inputs, tmp_path, "--scores", ours)
    STAGES["rw"].run(inputs, tmp_path, "--scores", ours)
    STAGES["pseudo"].run(inputs, tmp_path, "--scores", tmp_path / "rw")
    if form != "seam":
        for folder in ("affinity_labels", "rw", "pseudo"):
            results = [p for p in (tmp_path / folder).iterdir() if p.suffix in (".png", ".npz")]
            assert len(results) == 8
            for path in results:
                assert path.read_bytes() == (inputs / folder / path.name).read_bytes()


def test_walked_scores_out_and_in_again(inputs, tmp_path):
    """Their samples may exceed 1; one class is not scaled for it, another not."""
    folder = tmp_path / "rw"
    shutil.copytree(inputs / "rw", folder)
    maps = torch.full((2, *strided_size((48, 64))), 0.1)
    maps[:, 5, 7] = torch.tensor([1.0, 0.7])  # between whose pixels it is highest
    walked = rescale(maps, (48, 64))
    assert walked.max() > 1
    Scores(np.array([1, 3], np.uint8), walked.half().numpy(), (48, 64)).save(folder / "train0.npz")
    scores = Scores.load(folder / "train0.npz", 3)
    for form in ("irn", "puzzlecam"):
        value = foreign.to_form(scores, form)
        again = foreign.as_scores(value, tmp_path, [1, 3], 3, (48, 64), "")
        assert (again.cam == scores.cam).all()


def test_half_an_export_is_none(inputs, tmp_path):
    """Where a file fails nothing is left that looks whole, nor in the way of the next try."""
    folder, out = tmp_path / "cam", tmp_path / "out"
    shutil.copytree(inputs / "cam", folder)
    save = np.save

    def stopped(path: Path, value: np.ndarray) -> None:
        if path.stem == "train1":
            raise KeyboardInterrupt
        save(path, value)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(np, "save", stopped)
        export_scores.main([str(folder), "--out", str(out)])
    assert [p.name for p in tmp_path.iterdir()] == ["cam"]
    export_scores.main([str(folder), "--out", str(out)])
    assert len(list(out.iterdir())) == len(list(folder.glob("*.npz")))


def test_a_run_json_without_classes(inputs, tmp_path):
    folder = tmp_path / "cam"
    shutil.copytree(inputs / "cam", folder)
    made = json.loads((folder / "run.json").read_text())
    for classes in (None, 5, [1, 2, 3], {"disc": 1}):
        (folder / "run.json").write_text(json.dumps(made | {"classes": classes}))
        with pytest.raises(InputError, match=r"run\.json: no `classes`, a list of names; add it"):
            export_scores.main([str(folder), "--out", str(tmp_path / "out")])


def test_big_endian_numbers_are_refused_in_pickles(tmp_path):
    """NumPy would take them for little-endian ones; plain files say which they are."""
    path = tmp_path / "a.npy"
    for name, kind in (("cam", ">f4"), ("keys", ">i8")):
        value = dict(FORMS["irn"])
        value[name] = np.asarray(value[name]).astype(kind)
        with pytest.raises(InputError, match=r"a\.npy: big-endian numbers; save them by \.astype"):
            foreign.load(saved(path, value))
    plain = foreign.load(saved(path, CAM.astype(">f4")))
    assert (plain == CAM).all()


def test_a_file_that_is_missing(data_root, tmp_path):
    write_cams(data_root, tmp_path / "cams")
    export_scores.main([str(tmp_path / "cams"), "--out", str(tmp_path / "theirs")])
    (tmp_path / "theirs/train1.npy").unlink()
    more = ["--data", str(data_root), "--split", "train", "--out", str(tmp_path / "ours")]
    with pytest.raises(InputError, match=r"train1\.npy: no such file, nor with \.npz"):
        import_scores.main([str(tmp_path / "theirs"), *more])
    assert not (tmp_path / "ours").exists()
    with pytest.raises(InputError, match="theirs: not empty; choose a new folder"):
        export_scores.main([str(tmp_path / "cams"), "--out", str(tmp_path / "theirs")])
