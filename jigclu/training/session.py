"""The step boundary of every training stage: log, report progress, save, stop on request, reject non-finite losses."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import torch
import torchvision
from torch import Tensor

from jigclu.config import ConfigError, RuntimeConfig, Strict, identity
from jigclu.job_folder import JobFolder, duration
from jigclu.training import interrupt
from jigclu.training.checkpoint import Checkpoints, first_not_finite
from jigclu.training.distributed import RankInfo, agree, join_ranks
from jigclu.training.usage import Usage

log = logging.getLogger("jigclu")
_STOP, _SAVE = 1, 2
T = TypeVar("T")


class Stateful(Protocol):
    """A module, optimiser or schedule."""

    def state_dict(self) -> Mapping[str, Any]: ...
    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class TrainingError(RuntimeError):
    """Training cannot continue; the message gives the step and the values."""


class Session:
    """One attempt at one job: `tick` after every step, `finish` once.

    `state()` returns the content of a checkpoint; `restored` is the content of the newest intact one (None: a fresh start).
    """

    def __init__(self, folder: str | Path, runtime: RuntimeConfig):
        self.folder, self.runtime = JobFolder(folder), runtime
        self.rank_info: RankInfo = join_ranks(runtime.device, runtime.threads)
        if self.rank_info.is_main:
            self.folder.create()
        self.checkpoints = Checkpoints(self.folder.path / "checkpoint")
        self.restored = self.checkpoints.latest()
        self.step: int = self.restored["step"] if self.restored else 0
        self._seconds_before = self.restored_value("seconds", 0.0)
        self._started = self._saved = self._printed = time.monotonic()
        self._window: list[tuple[int, float, dict[str, Tensor | float], bool]] = []
        self._rate_from = (time.monotonic(), 0)
        self._images = 0
        self._usage = Usage(self.rank_info.device)
        self._inputs: dict[str, str] = {}
        self.state: Callable[[], dict[str, Any]] = dict
        if self.rank_info.is_main:
            self.folder.cut_metrics(self.step)
            self.folder.set_status("running", step=self.step, message="")
            if self.step:
                log.info("resuming from step %d", self.step)

    @property
    def seconds(self) -> float:
        """Wall time in training over all attempts, without the time lost after each attempt's last checkpoint."""
        return self._seconds_before + time.monotonic() - self._started

    def restore(self, **parts: Stateful) -> None:
        """Load the checkpoint into these parts, each under its name in `state()`. A fresh start loads nothing.

        Raises:
            ConfigError: the checkpoint lacks one, or has it with other tensors.
        """
        for name, part in parts.items() if self.restored else ():
            values = self.restored_value(name, dict[str, Any]())
            own = part.state_dict()
            if other := [key for key, value in values.items() if _other_type(value, own.get(key))]:
                self._unusable(f"{name} has {other[0]} as {values[other[0]].dtype}, not {own[other[0]].dtype}")
            try:
                part.load_state_dict(values)
            except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
                self._unusable(f"its {name} does not fit: {' '.join(str(error).split())[:200]}")

    def restored_value(self, name: str, start: T) -> T:
        """The checkpoint's value of that name; `start` at a fresh start.

        Raises:
            ConfigError: the checkpoint lacks it, or has a value of another type than `start`.
        """
        if not self.restored:
            return start
        if not isinstance(value := self.restored.get(name), type(start)):
            self._unusable(f"its {name} is missing or of another type")
        return value

    def _unusable(self, what: str) -> NoReturn:
        raise ConfigError(
            f"{self.folder.path.parent.name} {self.folder.id}: the checkpoint of step {self.step} cannot be used: {what}; "
            f"remove {self.checkpoints.folder} to start from the beginning"
        )

    def read_data(self, *fingerprints: str) -> None:
        """Record the data that this attempt reads: the fingerprint of each split.

        Raises:
            ConfigError: the checkpoint was trained on other data.
        """
        self._read("data_fingerprint", "+".join(fingerprints), "other data", "put the data back")

    def read_encoder(self, digest: str) -> None:
        """Record the upstream encoder that this attempt reads, by the sha256 of its file.

        Raises:
            ConfigError: the checkpoint was trained on another one.
        """
        self._read("encoder_digest", digest[:16], "another upstream encoder", "put the encoder back")

    def read_config(self, config: Strict) -> None:
        """Record what makes this job: its config without `runtime`, seed and upstream jobs, as a digest.

        Raises:
            ConfigError: the checkpoint is another job's, or job.json was edited since it was saved.
        """
        job = {"config": identity(config), "seed": self.folder.seed, "upstream": self.folder.job.get("upstream", [])}
        digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:16]
        before = (self.restored or {}).get("job_digest", digest)  # older checkpoints lack it
        if before != digest:
            raise ConfigError(
                f"{self.folder.path.parent.name} {self.folder.id}: the checkpoint of step {self.step} is of a job with "
                f"another config, seed or upstream job; put job.json back, or remove {self.checkpoints.folder} to start "
                "from the beginning"
            )
        self._inputs["job_digest"] = digest

    def _read(self, key: str, now: str, other: str, remedy: str) -> None:
        # Before job.json is written: a refused attempt must leave the record of what the checkpoint was trained on.
        name = f"{self.folder.path.parent.name} {self.folder.id}"
        if self.restored and not (before := self.restored.get(key)):
            log.warning("%s: the checkpoint is of an older version, without %s: not compared with %s", name, key, now)
        elif self.restored and before != now:
            raise ConfigError(
                f"{name}: the checkpoint of step {self.step} was trained on {other} than is there now ({key} {before}, "
                f"now {now}); {remedy}, or remove {self.checkpoints.folder} to start from the beginning"
            )
        self._inputs[key] = now
        if self.rank_info.is_main:
            self.folder.update_job(**{key: now})

    def require_finite(self) -> None:
        """Check the weights, their statistics and the optimiser's state; every rank must call this.

        Raises:
            TrainingError: a value is not finite: losses before the last step cannot show that.
        """
        name = first_not_finite(self.state())
        if agree(int(bool(name)), self.rank_info):
            self._refuse(name or "on another rank")

    def _refuse(self, name: str) -> None:
        if name:
            raise TrainingError(f"weights not finite after step {self.step} (the first: {name}): they were not saved")

    def begin(self, epochs: int, steps: int, state: Callable[[], dict[str, Any]]) -> None:
        """Start the loop of `steps` steps in all; `state()` returns the content of a checkpoint."""
        self.epochs, self.steps, self.state = epochs, steps, state
        self._rate_from = (time.monotonic(), 0)

    def tick(self, epoch: float, images: int, metrics: dict[str, Tensor | float], due: bool = False) -> None:
        """Finish a step. Metrics are logged every `runtime.log_every` steps, at the last step, and if `due`.

        `metrics` may be on the device: they are read only when the next line is logged.

        Raises:
            Interrupted: a stop was requested; the state is saved.
            TrainingError: a metric is not finite.
        """
        self.step += 1
        self._images += images
        last = self.step == self.steps
        due = due or last or self.step % self.runtime.log_every == 0
        self._window.append((self.step, epoch, metrics, due))
        flags = (_STOP if interrupt.requested() else 0) | (_SAVE if self._save_due() else 0)
        flags = agree(flags, self.rank_info)
        if due or flags:
            self._flush()
        if flags and not last:
            self.save()
        if flags & _STOP and not last:
            if self.rank_info.is_main:
                self.folder.set_status("interrupted", message=f"stopped at step {self.step} of {self.steps}")
            raise interrupt.Interrupted(f"stopped at step {self.step} of {self.steps}, saved")

    def save(self) -> None:
        """Save a checkpoint (rank 0). Raises TrainingError if the weights are not finite; every rank must call this."""
        self.require_finite()
        if self.rank_info.is_main:
            self.folder.sync_metrics()  # a checkpoint's curve must not be less safe than the checkpoint
            self.checkpoints.save(self.step, {**self.state(), **self._inputs, "seconds": self.seconds})
        self._saved = time.monotonic()

    def _save_due(self) -> bool:
        return self.rank_info.is_main and time.monotonic() - self._saved >= 60 * self.runtime.checkpoint_minutes

    def _flush(self) -> None:
        """Read the window's metrics from the device, reject non-finite ones, log the steps that are due."""
        for step, epoch, metrics, due in self._window:
            values = {name: float(value) for name, value in metrics.items()}
            if not all(map(math.isfinite, values.values())):
                listing = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
                raise TrainingError(f"non-finite loss at step {step} (epoch {epoch:.2f}): {listing}")
            if self.rank_info.is_main and due:
                self._report(step, epoch, values)
        self._window.clear()

    def _report(self, step: int, epoch: float, values: dict[str, float]) -> None:
        since, images = self._rate_from
        now = time.monotonic()
        rate = (self._images - images) / max(now - since, 1e-9)
        steps_here = self.step - (self.restored["step"] if self.restored else 0)
        left = (self.steps - step) * self._images / steps_here / max(rate, 1e-9)
        if now - since > 60:  # a moving rate: forget what is older than about a minute
            self._rate_from = (now, self._images)
        self.folder.log(step, round(epoch, 4), **values, images_per_second=round(rate, 1), **self._usage())
        progress = {
            "epoch": math.ceil(epoch), "epochs": self.epochs, "step": step, "steps": self.steps,
            "loss": values["loss"], "images_per_second": round(rate, 1), "seconds_left": round(left),
        }  # fmt: skip
        self.folder.set_status("running", force=False, **progress)
        terminal = sys.stdout.isatty()
        if terminal or now - self._printed >= 10 or step == self.steps:
            self._printed = now
            line = (
                f"epoch {math.ceil(epoch)}/{self.epochs}  {duration(left)} left  step {step}/{self.steps}  "
                f"loss {values['loss']:.4f}  {rate:.0f} images/s"
            )
            if terminal:
                line = line[: shutil.get_terminal_size().columns - 1]
            begin, end = ("\r", "\x1b[K" if step < self.steps else "\x1b[K\n") if terminal else ("", "\n")
            print(f"{begin}{line}", end=end, flush=True)

    def finish(self, metrics: dict[str, float], **details: Any) -> dict[str, Any]:
        """Write result.json (rank 0) and delete the checkpoints, which are no longer needed.

        Raises:
            TrainingError: the weights or a metric are not finite.
        """
        if not self.rank_info.is_main:
            return {"metrics": metrics}
        self._refuse(first_not_finite(self.state()))
        if broken := [f"{name} {value:g}" for name, value in metrics.items() if not math.isfinite(value)]:
            raise TrainingError(f"the result is not finite ({', '.join(broken)}): it was not written")
        details |= {
            "seconds": round(self.seconds, 2),
            "world": self.rank_info.world,
            "device": device_name(self.rank_info.device),
        }
        versions = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        }
        result = self.folder.write_result(metrics, versions=versions, **details)
        self.folder.set_status("done", step=self.step)
        self.checkpoints.clear()
        return result


def _other_type(value: Any, own: Any) -> bool:
    return isinstance(value, Tensor) and isinstance(own, Tensor) and value.dtype != own.dtype


def device_name(device: torch.device) -> str:
    """`NVIDIA H100 80GB HBM3`, or `AMD EPYC, 2 threads`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{model}, {torch.get_num_threads()} threads"
