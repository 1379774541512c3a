"""Checkpoints that survive a kill at any moment: written to a temporary file, renamed, with a digest; the last two are kept."""

from __future__ import annotations

import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import torch

from jigclu.files import write_atomic

log = logging.getLogger("jigclu")
KEEP = 2


def save_atomic(path: Path, state: Any) -> str:
    """torch.save, all or nothing, with `<name>.sha256` beside it; returns the digest.

    The digest is written last: a file without a digest is incomplete.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    write_atomic(path, data)
    write_atomic(path.with_name(path.name + ".sha256"), f"{digest}  {path.name}\n".encode())
    return digest


def load_verified(path: Path) -> tuple[Any, str]:
    """torch.load (weights only, on the CPU) of a file that matches its digest, and the digest.

    Raises:
        ValueError: the digest is missing or does not match.
    """
    try:
        wanted = path.with_name(path.name + ".sha256").read_text().split()[0]
    except (FileNotFoundError, IndexError):
        raise ValueError(f"{path} has no digest beside it: it is incomplete") from None
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != wanted:
        raise ValueError(f"{path} does not match its digest: it is damaged")
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), wanted


def first_not_finite(state: Any, name: str = "") -> str:
    """The name of the first tensor (in dicts and lists, joined by dots) with a value that is not finite; "" if none."""
    if isinstance(state, torch.Tensor):
        return name if state.is_floating_point() and not bool(state.isfinite().all()) else ""
    pairs = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list | tuple) else ()
    found = (first_not_finite(value, f"{name}.{key}" if name else str(key)) for key, value in pairs)
    return next(filter(None, found), "")


class Checkpoints:
    """`checkpoint/step-*.pt` of one job folder."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"))

    def save(self, step: int, state: dict[str, Any]) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self.folder / f"step-{step:09d}.pt"
        save_atomic(path, {"step": step, **state})
        for old in self.paths()[:-KEEP]:
            old.unlink(missing_ok=True)
            old.with_name(old.name + ".sha256").unlink(missing_ok=True)
        return path

    def latest(self) -> dict[str, Any] | None:
        """The newest intact checkpoint; None if there is none yet.

        A damaged checkpoint is renamed with a warning, and the one before it is used. A disk error is raised as it is: starting
        from the beginning would throw the work away.

        Raises:
            ValueError: all checkpoints are damaged.
        """
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        damaged: list[Path] = []
        found: dict[str, Any] | None = None
        for path in reversed(self.paths()):
            if not path.with_name(path.name + ".sha256").exists():
                path.unlink()  # the job was killed while writing it
                continue
            try:
                found = dict(load_verified(path)[0])
                break
            except ValueError as error:
                log.warning("%s; going back to the checkpoint before it", error)
                damaged.append(path)
        if damaged and found is None:
            raise ValueError(
                f"every checkpoint in {self.folder} is damaged; remove the folder to start from the beginning"
            )
        for path in damaged:
            path.rename(path.with_name(f"damaged-{path.name}"))
        return found

    def clear(self) -> None:
        """Delete all: a finished job needs no checkpoint."""
        for path in self.folder.glob("*step-*"):
            path.unlink(missing_ok=True)
