"""What the three trainings share: parameter groups, the poly schedule, the step, exact resume."""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from core.errors import InputError
from core.run import checkpoint, distributed, precision
from core.run.parallel import ignore_interrupts, signals_held
from core.run.record import Log, Run, model_digest
from core.run.sampling import GlobalBatches

Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]


def poly_lr(step: int, max_step: int, base: float, power: float = 0.9) -> float:
    """base * (1 - step / max_step) ** power; from the last step on it stays as it is."""
    return base * (1 - min(step, max_step - 1) / max_step) ** power


def parameter_groups(network: nn.Module, weight_decay: float, pretrained: bool) -> list[dict]:
    """The recipe's four groups: pretrained x1, biases x2, new layers x10, their biases x20.

    "weight" and "bias" go by parameter name, BatchNorm included; the backbone is what is
    pretrained, and without pretrained weights every layer is new. Biases have no weight decay.
    Each group carries its factor as `scale`.
    """
    groups = {
        (new, bias): {
            "params": [],
            "scale": (10 if new else 1) * (2 if bias else 1),
            "weight_decay": 0.0 if bias else weight_decay,
        }
        for new in (False, True)
        for bias in (False, True)
    }
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            new = not (pretrained and name.startswith("backbone."))
            key = (new, name.endswith("bias"))
            groups[key]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def one_group(network: nn.Module, weight_decay: float) -> list[dict]:
    """All that is trained in one group at the base rate: the affinity network's recipe."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    return [{"params": parameters, "scale": 1, "weight_decay": weight_decay}]


def weights_digest(args: argparse.Namespace) -> str:
    """What --weights stands for: its keyword, or the digest of the file."""
    keyword = args.weights in ("none", "imagenet")
    return args.weights if keyword else model_digest(Path(args.weights))


def resolved(args: argparse.Namespace, device: torch.device) -> dict[str, int | str]:
    """What run.json records beside the options: the AMP type and how many images a BN sees."""
    parts = args.accumulate * (1 if args.sync_bn else distributed.world_size())
    return {"amp": precision.amp_type(args.amp, device), "bn_batch": args.batch_size // parts}


class Trainer:
    """SGD on one of the three networks; goes on from `OUT/last.pt` where there is one.

        trainer = Trainer(run, network, groups, args, max_step)
        for batch in trainer.batches(dataset):
            trainer.update(batch, loss)          # loss(*part) -> (scalar, terms to log)
        trainer.finish(classes)

    `warn` looks at the means of each log row; what it returns goes into the row as `warning`, and
    to stderr once.

    Attributes:
        step: updates done. amp: the resolved autocast type. model: what `loss` must call
            (the network, perhaps compiled or wrapped for several processes).
    """

    def __init__(
        self,
        run: Run,
        network: nn.Module,
        groups: list[dict],
        args: argparse.Namespace,
        max_step: int,
        warn: Callable[[dict[str, float]], str | None] | None = None,
    ):
        self.run, self.args, self.max_step, self.device = run, args, max_step, run.device
        self.warn, self.warned = warn, False
        self.amp = precision.amp_type(args.amp, self.device)
        self.world = distributed.world_size()
        if args.sync_bn:
            if self.device.type != "cuda":
                raise InputError("--sync-bn needs GPUs")
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        self.network = network.to(self.device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            groups,
            lr=args.lr,
            momentum=args.momentum,
            nesterov=args.momentum > 0,
            fused=self.device.type == "cuda" or None,
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp == "fp16")
        self.step, self.pending, log_bytes = 0, [], 0
        self.names: list[str] = []
        last = run.out / "last.pt"
        if last.exists():
            log_bytes = self._resume(last)
        self.log = Log(run.out / "log.jsonl", log_bytes) if distributed.is_main() else None
        self.model = self._wrap(self.network)

    def _wrap(self, network: nn.Module) -> nn.Module:
        if self.args.compile:
            network = torch.compile(network)
        if self.world > 1:
            # Each process keeps its own BatchNorm statistics (rank 0's are saved), as with the
            # DataParallel of the released code; broadcasting would rewrite them between forwards.
            devices = [self.device] if self.device.type == "cuda" else None
            with warnings.catch_warnings():  # torch >= 2.13 has another name for the option
                warnings.simplefilter("ignore", FutureWarning)
                network = DistributedDataParallel(network, devices, broadcast_buffers=False)
        return network

    def _resume(self, path: Path) -> int:
        state = checkpoint.load(path)
        try:
            checkpoint.load_weights(self.network, state["network"], str(path))
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.step, self.names = state["step"], state["names"]
            self.pending = list(state["pending"].to(self.device))
            return state["log_bytes"]
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError):
            raise InputError(
                f"{path}: not the last.pt of this training; remove it to start anew"
            ) from None

    def batches(self, dataset: Dataset) -> Iterator[list[Tensor]]:
        """Batches on the device from the current step to the last, behind a progress bar.

        Raises:
            InputError: a bad image or label map, or a loader process that was killed.
        """
        args = self.args
        sampler = GlobalBatches(len(dataset), args.batch_size, args.seed, self.step, self.max_step)
        loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            num_workers=args.workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=ignore_interrupts,
            prefetch_factor=4 if args.workers else None,
        )
        self.bar = distributed.progress(self.max_step, self.run.stage, "step", self.step)
        self.network.train()
        with self.bar:
            try:
                ahead: list[Tensor] | None = None
                with signals_held():
                    loading = iter(loader)
                for batch in loading:  # one batch is copied while the one before is computed
                    batch = [t.to(self.device, non_blocking=True) for t in batch]
                    if ahead is not None:
                        yield ahead
                    ahead = batch
                if ahead is not None:
                    yield ahead
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise InputError(
                    "a loader process was killed (out of memory or /dev/shm?); lower --workers and "
                    "start again: the run goes on from its last checkpoint"
                ) from None

    def update(self, batch: list[Tensor], loss: Loss, counts: Tensor | None = None) -> None:
        """One SGD step: forward and backward over the parts of the batch, then the update.

        Args:
            loss: called as loss(*part), or loss(*part, counts) where counts are given.
            counts: what this process's batch holds of the things the loss is a mean over (valid
                pixels, pairs). The loss gets their average per part over all processes, to divide
                its sums by: the update is then that of one process on the whole global batch.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = poly_lr(self.step, self.max_step, self.args.lr) * group["scale"]
        # Dropout's randomness is a function of the step too: nothing to save, nothing to restore.
        torch.manual_seed((self.args.seed * 1_000_003 + self.step) * 4099 + distributed.rank())
        parts = self.args.accumulate
        rows, extra = [], ()
        if counts is not None:
            extra = (distributed.total(counts.float()) / (self.world * parts),)
        for number, part in enumerate(zip(*(t.chunk(parts) for t in batch), strict=True)):
            together = self.world == 1 or number == parts - 1
            with contextlib.nullcontext() if together else self.model.no_sync():
                with precision.autocast(self.amp, self.device):
                    value, terms = loss(*part, *extra)
                self.scaler.scale(value / parts).backward()
            terms = {"loss": value.detach(), **terms}
            rows.append(
                torch.stack(
                    [torch.as_tensor(t).detach().float().to(self.device) for t in terms.values()]
                )
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.names = list(terms)
        self.pending.append(torch.stack(rows).mean(0))
        self.step += 1
        self.bar.update()
        every = self.args.save_every or max(1, self.max_step // self.args.epochs)
        if self.step % self.args.log_every == 0 or self.step == self.max_step:
            self._write_row()
        if self.step % every == 0 or self.step == self.max_step:
            self.save()

    def _check_finite(self) -> np.ndarray:
        """The terms since the last row, (steps, terms), averaged over the processes.

        This is the only place that waits for the GPU.

        Raises:
            InputError: NaN or inf, naming the step, the terms and the last good checkpoint.
        """
        # Averaged in place: what a checkpoint holds is then the same on every process.
        self.pending = list(distributed.total(torch.stack(self.pending)).div_(self.world))
        rows = torch.stack(self.pending).cpu().double().numpy()
        bad = ~np.isfinite(rows).all(1)
        if bad.any():
            first = int(np.argmax(bad))
            step = self.step - len(rows) + first
            terms = ", ".join(f"{n} {v:.4g}" for n, v in zip(self.names, rows[first], strict=True))
            self._stop(f"the loss is not finite at step {step} ({terms})")
        return rows

    def _stop(self, what: str) -> None:
        last = self.run.out / "last.pt"
        good = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint yet"
        raise InputError(f"{what}; {good}; lower --lr or try --amp off")

    def _write_row(self) -> None:
        rows = self._check_finite()
        means = dict(zip(self.names, rows.mean(0).tolist(), strict=True))
        self.pending = []
        if self.log is not None:
            lr = poly_lr(self.step - 1, self.max_step, self.args.lr)
            epoch = self.step * self.args.epochs / self.max_step
            row = {"step": self.step, "epoch": round(epoch, 4), "lr": lr, **means}
            warning = self.warn(means) if self.warn is not None else None
            if warning:
                row["warning"] = warning
                if not self.warned:
                    self.bar.write(f"warning: step {self.step}: {warning}", file=sys.stderr)
                self.warned = True
            self.log.write(row)
            self.bar.set_postfix({k: f"{v:.3f}" for k, v in means.items()}, refresh=False)

    def save(self) -> None:
        """Write `last.pt`, everything a later start needs."""
        if self.pending:
            self._check_finite()
        sums = torch.stack([p.detach().sum() for p in self.network.parameters()])
        if not sums.isfinite().all():
            self._stop(f"the weights are not finite after step {self.step - 1}")
        if not distributed.is_main():
            return
        pending = torch.stack(self.pending) if self.pending else torch.zeros(0)
        checkpoint.save(
            self.run.out / "last.pt",
            {
                "step": self.step,
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "pending": pending.cpu(),
                "names": self.names,
                "log_bytes": self.log.bytes(),
            },
        )

    def finish(self, classes: list[str]) -> Path:
        """Write `model.pt` and return its path."""
        path = self.run.out / "model.pt"
        if distributed.is_main():
            checkpoint.save_model(path, self.network, classes)
        distributed.barrier()
        return path
