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
        ValueError: the digest is missing or does not match, or the file holds anything but a dict of tensors and values
            (a pickle with code is refused, not run).
    """
    try:
        wanted = path.with_name(path.name + ".sha256").read_text(errors="replace").split()[0].lower()
    except (FileNotFoundError, IsADirectoryError, IndexError):
        raise ValueError(f"{path} has no digest beside it: it is incomplete") from None
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a file")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != wanted:
        raise ValueError(f"{path} does not match its digest: it is damaged")
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # torch's own message advises to load it without protection
        raise ValueError(
            f"{path} is no file of this program: it is damaged, or contains code, which is not run"
        ) from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dict of tensors")
    return content, wanted


def first_not_finite(state: Any, name: str = "") -> str:
    """The name of the first tensor (in dicts and lists, joined by dots) with a value that is not finite; "" if none."""
    if isinstance(state, torch.Tensor):
        return name if state.is_floating_point() and not bool(state.isfinite().all()) else ""
    pairs = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list | tuple) else ()
    found = (first_not_finite(value, f"{name}.{key}" if name else str(key)) for key, value in pairs)
    return next(filter(None, found), "")


def _name(step: Any) -> str:
    return f"step-{step:09d}.pt" if isinstance(step, int) and step >= 0 else ""


class Checkpoints:
    """`checkpoint/step-*.pt` of one job folder."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"))

    def save(self, step: int, state: dict[str, Any]) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self.folder / _name(step)
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
        damaged: dict[Path, str] = {}
        found: dict[str, Any] | None = None
        for path in reversed(self.paths()):
            if not path.with_name(path.name + ".sha256").exists():
                path.unlink()  # the job was killed while writing it
                continue
            try:
                found = load_verified(path)[0]
                if path.name != _name(found.get("step", -1)):
                    raise ValueError(f"{path} does not hold that step")
                break
            except ValueError as error:
                found = None
                log.warning("%s; going back to the checkpoint before it", error)
                damaged[path] = str(error).removeprefix(f"{path} ")
        if damaged and found is None:
            newest, why = next(iter(damaged.items()))
            raise ValueError(
                f"every checkpoint in {self.folder} is damaged ({newest.name} {why}); remove the folder to start from the "
                "beginning"
            )
        for path in damaged:
            path.rename(path.with_name(f"damaged-{path.name}"))
        return found

    def clear(self) -> None:
        """Delete all: a finished job needs no checkpoint."""
        for path in self.folder.glob("*step-*"):
            path.unlink(missing_ok=True)
