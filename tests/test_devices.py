"""Which device a process computes on, and how processes share a machine's GPUs and cores."""

from __future__ import annotations

import os
import threading
import types

from core.errors import InputError
from core.run import distributed, options, parallel
from core.run.main import run_main

import pytest
import torch
import torch.distributed as dist


@pytest.fixture
def machine(monkeypatch):
    """A function that pretends a number of GPUs and processes; what was called is in its list."""

    def pretend(gpus: int, processes: int = 1, local_rank: int = 0) -> list:
        called = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "set_device", lambda device: called.append(device))
        monkeypatch.setattr(
            dist, "init_process_group", lambda backend, **more: called.append((backend, more))
        )
        if processes > 1:
            values = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes,
                      "RANK": local_rank, "LOCAL_RANK": local_rank,
                      "MASTER_ADDR": "localhost", "MASTER_PORT": 1}  # fmt: skip
            for name, value in values.items():
                monkeypatch.setenv(name, str(value))
        return called

    return pretend


@pytest.mark.parametrize(
    ("asked", "gpus", "chosen"),
    [("auto", 0, "cpu"), ("cpu", 2, "cpu"), ("auto", 2, "cuda:0"), ("cuda", 2, "cuda:0"),
     ("cuda:1", 2, "cuda:1")],
)  # fmt: skip
def test_one_process(machine, asked, gpus, chosen):
    """A GPU always has its number: torch's own set_device refuses one without."""
    called = machine(gpus)
    assert distributed.start(asked) == torch.device(chosen)
    assert called == ([torch.device(chosen)] if "cuda" in chosen else [])


def test_a_cpu_asks_for_no_gpu(monkeypatch):
    """Neither CUDA's memory nor its warnings, of a driver too old, say, are for `--device cpu`."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("asked"))
    assert distributed.start("cpu") == torch.device("cpu")


@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_each_process_takes_the_gpu_of_its_number(machine, asked):
    called = machine(4, processes=4, local_rank=3)
    device = torch.device("cuda:3")
    assert distributed.start(asked) == device
    assert called[0] == device  # before the group, whose first collective would take GPU 0
    backend, more = called[1]
    assert backend == "nccl" and more["device_id"] == device


def test_tasks_that_are_not_told_how_many_a_machine_has(machine, monkeypatch):
    """As srun starts 16 on two machines of 8 GPUs, with what torch asks for in the environment."""
    called = machine(8, processes=16, local_rank=7)
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert distributed.start("auto") == torch.device("cuda:7") == called[0]
    monkeypatch.setenv("LOCAL_RANK", "8")
    with pytest.raises(InputError, match="this machine has 8 GPUs; the last is cuda:7"):
        distributed.start("auto")
    called = machine(1, processes=4, local_rank=3)  # with --gpus-per-task=1
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert distributed.start("auto") == torch.device("cuda:0") == called[0]


def test_processes_without_gpus_use_gloo(machine):
    called = machine(0, processes=2)
    assert distributed.start("auto") == torch.device("cpu")
    ((backend, more),) = called
    assert backend == "gloo" and "device_id" not in more


@pytest.mark.parametrize(
    ("asked", "gpus", "processes", "message"),
    [
        *((name, 1, 1, "give auto, cpu, cuda or cuda:N")
          for name in ("foo", "mps", "cuda:-1", "cuda:x", "cuda:", "CUDA", "cpu:0", "")),
        ("cuda", 0, 1, "sees no GPU; try --device cpu"),
        ("cuda:0", 0, 1, "sees no GPU; try --device cpu"),
        ("cuda:9", 1, 1, "this machine has 1 GPU; the last is cuda:0"),
        ("cuda:2", 2, 1, "this machine has 2 GPUs; the last is cuda:1"),
        ("cuda:1", 2, 2, "one GPU for 2 processes; give --device cuda, .*CUDA_VISIBLE_DEVICES"),
        ("auto", 1, 2, "2 processes on this machine, which has 1 GPU; start 1 .*--device cpu"),
        ("cuda", 2, 4, "4 processes on this machine, which has 2 GPUs; start 2 .*GPUS=2"),
    ],
)  # fmt: skip
def test_refused_in_one_line(machine, asked, gpus, processes, message):
    called = machine(gpus, processes)
    with pytest.raises(InputError, match=f"--device '?{asked}'?: .*{message}"):
        distributed.start(asked)
    assert called == []  # neither a device nor a group


def test_a_gpu_that_does_not_work(machine, monkeypatch):
    machine(1)

    def busy(_: torch.device) -> None:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy\nCompile with ...")

    monkeypatch.setattr(torch.cuda, "set_device", busy)
    with pytest.raises(InputError, match=r"--device cuda:0: .* busy; look at nvidia-smi"):
        distributed.start("auto")


def test_a_world_size_that_nobody_launched(machine, monkeypatch):
    """Batch systems set WORLD_SIZE for uses of their own."""
    machine(0)
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(InputError, match=r"RANK is not set; start with .*or unset WORLD_SIZE"):
        distributed.start("cpu")


def test_a_rank_that_nobody_launched(monkeypatch):
    """Alone a process does all of the work and writes the run's own files."""
    monkeypatch.setenv("RANK", "3")
    assert distributed.is_main() and distributed.share([1, 2]) == [1, 2]


def test_the_group_is_left_by_every_script(monkeypatch):
    """Also where a stage returned early, as one that finds its run finished."""
    left = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: left.append(True))
    run_main(lambda: None)
    assert left == [True]


def test_processes_share_the_cores(monkeypatch):
    def shares() -> tuple[int, int]:
        """Cores, and what --workers is by default."""
        parser = options.Parser(None)
        options.add_machine(parser)
        return parallel.cpu_count(), parser.get_default("workers")

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    assert shares() == (64, 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert shares() == (8, 8)
    assert parallel.Pool(0).jobs == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100")
    assert shares() == (1, 1)
    monkeypatch.delenv("LOCAL_WORLD_SIZE")  # tasks of srun
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12")
    assert shares() == (12, 8)


def where() -> tuple[int, str, int, str | None]:
    """Process, thread and numbers of threads of a task."""
    name = threading.current_thread().name
    return os.getpid(), name, torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")


def test_pool_goes_by_where_the_work_runs(monkeypatch):
    """Processes of one thread for a CPU's work, threads of this process for a GPU's."""
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with parallel.Pool(2, torch.device("cpu")) as pool:
        places = list(pool.map(where, [()] * 8))
    assert os.getpid() not in {pid for pid, *_ in places}
    assert all(place[2:] == (1, "1") for place in places)
    assert os.environ["OMP_NUM_THREADS"] == "7"
    monkeypatch.setattr(parallel, "_start_stream", lambda _: None)
    waits: list[int] = []  # their streams would not wait for what this one computes for a task
    stream = types.SimpleNamespace(wait_stream=lambda _: waits.append(1))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: stream)
    gpu = torch.device("cuda", 0)
    with parallel.Pool(4, gpu) as pool:
        places = list(pool.map(where, [()] * 8))
    assert len(waits) == 8
    assert {place[0] for place in places} == {os.getpid()}
    assert "MainThread" not in {place[1] for place in places}
    for alone in (parallel.Pool(1), parallel.Pool(0, gpu)):
        with alone as pool:
            assert next(pool.map(where, [()]))[:2] == (os.getpid(), "MainThread")
