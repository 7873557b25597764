"""--track: the rows of the log elsewhere too, and the same bytes here as without it."""

from __future__ import annotations

import json
import sys
import types

from core.errors import InputError
from core.run import tracking

import pytest
from faults.stages import STAGES, contents


@pytest.fixture(params=["wandb", "trackio"])
def service(request, monkeypatch):
    """A package of that name that notes what it is told."""
    calls: list = []
    module = types.ModuleType(request.param)
    module.init = lambda **how: calls.append(("init", how))
    module.log = lambda numbers, step: calls.append(("log", step, numbers))
    module.finish = lambda: calls.append(("finish",))
    monkeypatch.setitem(sys.modules, request.param, module)
    monkeypatch.setattr(
        tracking.importlib.util, "find_spec", lambda name: types.SimpleNamespace(origin="here")
    )
    return request.param, calls


def test_a_service_gets_the_rows_of_the_log(inputs, tmp_path, service):
    kind, calls = service
    stage = STAGES["classification"]
    tmp_path = tmp_path / "tom's,run"  # of which wandb takes no quote or comma
    stage.run(inputs, tmp_path, "--track", kind)
    rows = [json.loads(s) for s in (tmp_path / "classification/log.jsonl").read_text().splitlines()]
    (_, how), *logged, last = calls
    assert how["project"] == "puzzle-cam" and how["resume"] == "allow"
    assert how["name"].endswith("classification") and ("id" in how) == (kind == "wandb")
    assert not set(how.get("id", "") + how["name"]) & set(":;,#?/' ")
    assert last == ("finish",)
    assert logged == [("log", r["step"], {k: v for k, v in r.items() if k != "step"}) for r in rows]
    left = contents(tmp_path, stage)
    assert left == contents(inputs, stage)  # the undisturbed run's


def test_tensorboard_writes_event_files_beside_the_log(inputs, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    STAGES["classification"].run(inputs, tmp_path, "--track", "tensorboard")
    out = tmp_path / "classification"
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    for name in ("loss", "cls", "alpha", "lr"):
        found = [(e.step, e.value) for e in events.Scalars(name)]
        assert found == [(r["step"], pytest.approx(r[name], rel=1e-6)) for r in rows]


def test_what_is_not_installed_is_said_before_the_work(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install trackio"):
        STAGES["classification"].run(inputs, tmp_path, "--track", "trackio")
    assert not (tmp_path / "classification").exists()


def test_a_folder_of_its_name_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "trackio").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    with pytest.raises(InputError, match="not installed"):
        tracking.check("trackio")
