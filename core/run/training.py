"""What the three trainings share: the step, the log, exact resume."""

import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from core.data.datasets import DataRoot, TrainingViews
from core.data.transforms import normalize
from core.errors import InputError
from core.progress import Bar
from core.run import checkpoint, distributed, parallel, precision
from core.run.log import Log
from core.run.optimizer import sgd
from core.run.plan import Plan
from core.run.tracking import Tracker

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

LEAST_SCALE = 1e-4  # of the loss under fp16: thirty overflows in a row from GradScaler's first


def freeze_unreached(network: nn.Module, device: torch.device) -> None:
    """Take the parameters that the output doesn't depend on out of the training.

    Of a backbone whose last taps alone are used; DDP would wait for their gradients.
    """
    network.eval()(torch.zeros(1, 3, 64, 64, device=device)).sum().backward()
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None


def synchronise(network: nn.Module) -> nn.Module:
    """The network with BatchNorm statistics over all processes."""
    if timm := sys.modules.get("timm"):  # torch's would lose the activations in timm's BatchNorms
        return timm.layers.convert_sync_batchnorm(network)
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)


class Trainer:
    """SGD on one of the three networks; goes on from `OUT/last.pt` where there is one.

        trainer = Trainer(network, groups, plan, out, device)
        for batch in trainer.batches(views):                     # on the device, step by step
            for images, targets in trainer.microbatches(batch):  # normalised
                with trainer.autocast():
                    loss = ...trainer.network(images)...
                trainer.backward(loss, term=...)
            trainer.update()
        trainer.finish(data)

    `groups`: see `core.run.optimizer`. `out`: where `last.pt`, `log.jsonl` and `model.pt` go.
    `identity`: of the run, which alone goes on from its `last.pt`. `warn` looks at each log
    row and at the log so far; what it returns goes into the row as `warning`, and to stderr once.
    `look` sees the network, in evaluation mode, after every epoch, on all processes; the figures
    that it returns go into that step's row, the first to stderr too.

    `step`: updates done. `network`: what the loss must call: on the device, wrapped for several
    processes and compiled where the plan says so.
    """

    def __init__(
        self,
        network: nn.Module,
        groups: list[dict],
        plan: Plan,
        out: Path,
        device: torch.device,
        identity: str = "",
        warn: Callable[[dict[str, float], Log], str | None] | None = None,
        look: Callable[[nn.Module], dict[str, float]] | None = None,
    ):
        self.plan, self.out, self.device, self.identity = plan, out, device, identity
        self.warn, self.warned, self.look = warn, False, look
        if plan.sync_bn:
            network = synchronise(network)
        self.plain = network.to(self.device).to(memory_format=torch.channels_last)
        # Not fused under fp16: after a first step that the scaler skips, torch's fused SGD goes on
        # from a momentum buffer that was never written.
        fused = plan.amp != "fp16"
        self.optimizer = sgd(groups, plan.lr, plan.momentum, fused)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=plan.amp == "fp16")
        self.step = 0
        self.bar = Bar(disable=True)  # `batches` shows one
        self.rows: list[Tensor] = []  # of the microbatches since the last update
        self.pending: list[Tensor] = []  # of the updates since the last row of the log
        self.names: list[str] = []
        last = out / "last.pt"
        log_bytes = self._resume(last) if last.exists() else 0
        distributed.check_same(self.step, "the step to go on from")
        self.log = Log(out / "log.jsonl", log_bytes) if distributed.is_main() else None
        mirror = plan.track if distributed.is_main() else "none"
        self.tracker = Tracker(mirror, out, identity, self.step)
        self.ddp: DistributedDataParallel | None = None
        self.network: Callable[[Tensor], Tensor] = self.plain
        if distributed.world_size() > 1:
            freeze_unreached(self.plain, self.device)
            # Each process keeps its own BatchNorm statistics (rank 0's are saved), as with the
            # DataParallel of the released code; broadcasting would rewrite them between forwards.
            devices = [self.device] if self.device.type == "cuda" else None
            with warnings.catch_warnings():  # torch >= 2.13 has another name for the option
                warnings.simplefilter("ignore", FutureWarning)
                self.ddp = DistributedDataParallel(self.plain, devices, broadcast_buffers=False)
            self.network = self.ddp
        if plan.compile:  # after DDP, as torch's DDP notes have it; all batches are one size
            self.network = torch.compile(self.network, dynamic=False)

    def _resume(self, path: Path) -> int:
        state = checkpoint.load(path)
        if state.get("run") != self.identity:
            raise InputError(f"{path}: the last.pt of another run; remove it to start again")
        try:
            checkpoint.check_weights(self.plain, state["network"], str(path))
            self.plain.load_state_dict(state["network"], strict=False)
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.step, self.names, log_bytes = state["step"], state["names"], state["log_bytes"]
            self.pending = list(state["pending"].to(self.device))
            whole = type(self.step) is int and type(log_bytes) is int
            if not whole or not 0 <= self.step <= self.plan.max_step or log_bytes < 0:
                raise ValueError
            return log_bytes
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
            what = "not the last.pt of this training"
            raise InputError(f"{path}: {what}; remove it to start again") from None

    def batches(self, dataset: TrainingViews) -> Iterator[list[Tensor]]:
        """Batches on the device from this step to the last; a bad file is an InputError."""
        plan, on_gpu = self.plan, self.device.type == "cuda"
        order = plan.batches(len(dataset), self.step)
        how = {"batch_sampler": order, "collate_fn": dataset.collate, "pin_memory": on_gpu}
        read = parallel.read_ahead(dataset, plan.workers, **how)
        moved = ([t.to(self.device, non_blocking=True) for t in batch] for batch in read)
        self.bar = distributed.progress(plan.max_step, self.out.name, "step", self.step)
        self.plain.train()
        with self.bar:
            following = next(moved, None)
            while following is not None:  # one batch is copied while the one before is computed
                batch, following = following, next(moved, None)
                yield self.begin(batch)

    def begin(self, batch: list[Tensor]) -> list[Tensor]:
        """Set what an update depends on beside its batch; both are functions of the step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate(self.step) * group["scale"]
        # Dropout's randomness: nothing to save, nothing to restore.
        torch.manual_seed((self.plan.seed * 1_000_003 + self.step) * 4099 + distributed.rank())
        return batch

    def microbatches(self, batch: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batch in `accumulate` pieces: normalised images (n, 3, crop, crop), and targets."""
        count = self.plan.accumulate
        pieces = zip(*(t.chunk(count) for t in batch), strict=True)
        for i, (images, boxes, targets) in enumerate(pieces, 1):
            if self.ddp is not None:  # its no_sync(), in a loop: the last one sums over processes
                self.ddp.require_backward_grad_sync = i == count
            yield normalize(images, boxes), targets

    def autocast(self) -> torch.autocast:
        """The context in which the forward pass and the loss are computed."""
        return precision.autocast(self.plan.amp, self.device)

    def mean_count(self, counts: Tensor) -> Tensor:
        """The average over the microbatches of all processes of a count that is at least 1.

        For losses that are a mean over things of which images hold more or fewer (pixels, pairs):
        with their sums divided by this, the update is that of one process on the whole batch.
        Counts: what this process's batch holds, a tensor of any shape. Returns float32.
        """
        shares = distributed.world_size() * self.plan.accumulate
        return distributed.total(counts.float()).clamp(min=1) / shares

    def backward(self, loss: Tensor, **terms: Tensor | float) -> None:
        """Add the gradients of a microbatch; log its loss and terms."""
        self.scaler.scale(loss / self.plan.accumulate).backward()
        row = {"loss": loss, **terms}
        self.names = list(row)
        new = functools.partial(loss.new_full, (), dtype=torch.float)
        values = (t.detach().float() if isinstance(t, Tensor) else new(t) for t in row.values())
        self.rows.append(torch.stack(list(values)))

    def update(self) -> None:
        """The SGD step; then a row of the log and a checkpoint where they are due."""
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.pending.append(torch.stack(self.rows).mean(0))
        self.rows = []
        self.step += 1
        self.bar.update()
        last = self.step == self.plan.max_step
        looks = self.look is not None and self.step % self.plan.epoch_steps == 0
        if self.step % self.plan.log_every == 0 or looks or last:
            self._write_row(self._look() if looks else {})
        if self.step % self.plan.save_every == 0 or last:
            self.save()

    def _check_finite(self) -> np.ndarray:
        """The terms since the last row, (steps, terms), averaged over the processes.

        Rows and checkpoints are where a training waits for the GPU, and (GradScaler's look at the
        gradients under fp16 aside) nothing else is. NaN or inf is an InputError that names the
        step, the terms and the last good checkpoint; so is a scale that fell to nothing.
        """
        # Averaged in place: what a checkpoint holds is then the same on every process.
        mean = distributed.total(torch.stack(self.pending)).div_(distributed.world_size())
        self.pending = list(mean)
        rows = mean.cpu().double().numpy()
        bad = ~np.isfinite(rows).all(1)
        if bad.any():
            first = int(np.argmax(bad))
            step = self.step - len(rows) + first
            terms = ", ".join(f"{n} {v:.4g}" for n, v in zip(self.names, rows[first], strict=True))
            self._stop(f"the loss is not finite at step {step} ({terms})")
        if self.scaler.is_enabled() and self.scaler.get_scale() < LEAST_SCALE:
            self._stop(f"the gradients overflow fp16 step after step, up to step {self.step}")
        return rows

    def _stop(self, what: str) -> None:
        last = self.out / "last.pt"
        good = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint yet"
        raise InputError(f"{what}; {good}; lower --lr or try --amp off")

    def _look(self) -> dict[str, float]:
        """What `look` says of the network now; the training goes on as if it had not."""
        self.bar.clear()
        distributed.take_over(self.plain.buffers())  # the statistics that are saved
        # Pictures have many sizes: to try cuDNN's algorithms on each would take minutes.
        tries, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
        found = self.look(self.plain.eval()) if self.look is not None else {}
        torch.backends.cudnn.benchmark = tries
        self.plain.train()
        name, value = next(iter(found.items()))
        if distributed.is_main():
            self.bar.write(f"step {self.step}: {name} {value:.2f}", file=sys.stderr)
        return found

    def _write_row(self, looked: dict[str, float]) -> None:
        rows = self._check_finite()
        means = dict(zip(self.names, rows.mean(0).tolist(), strict=True))
        self.pending = []
        if self.log is None:
            return
        rate = self.plan.rate(self.step - 1)
        epoch = self.step * self.plan.epochs / self.plan.max_step
        row: dict[str, Any] = {"step": self.step, "epoch": round(epoch, 4), "lr": rate}
        row |= means | looked
        warning = self.warn(row, self.log) if self.warn is not None else None
        if warning:
            row["warning"] = warning
            if not self.warned:
                self.bar.write(f"warning: step {self.step}: {warning}", file=sys.stderr)
            self.warned = True
        self.log.write(row)
        self.tracker.write(row)
        self.bar.set_postfix({k: f"{v:.3f}" for k, v in means.items()}, refresh=False)

    def warnings(self) -> list[str]:
        """The warning of the log's last row, if it has one."""
        return self.log.last_warning() if self.log is not None else []

    def save(self) -> None:
        """Write `last.pt`, everything a later start needs."""
        if self.pending:
            self._check_finite()
        floats = (t for t in self.plain.state_dict().values() if t.is_floating_point())
        sums = torch.stack([t.sum(dtype=torch.float64) for t in floats])  # one wait for all
        if not sums.isfinite().all():
            what = "weights or BatchNorm's statistics"
            self._stop(f"{what} are not finite after step {self.step - 1}")
        if self.log is None:  # another process than the main one
            return
        pending = torch.stack(self.pending) if self.pending else torch.zeros(0)
        state = {
            "run": self.identity,
            "step": self.step,
            "network": self.plain.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "pending": pending.cpu(),
            "names": self.names,
            "log_bytes": self.log.bytes(),
        }
        checkpoint.save(self.out / "last.pt", state)

    def finish(self, data: DataRoot) -> None:
        """Write `model.pt`, with what there is to know of the labels."""
        self.tracker.finish()
        if distributed.is_main():
            known = data.classes, self.plan.crop, data.background
            checkpoint.save_model(self.out / "model.pt", self.plain, *known)
