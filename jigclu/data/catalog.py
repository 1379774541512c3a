"""What lies in a data set: classes, files, sizes, and whether it is whole. No torch: the preflight asks here.

<root>/imagenette/{train,val}/<wnid>/*.JPEG    <root>/imagenet1k/{train,val}/<wnid>/*    <root>/lists/imagenet100.txt
ImageNet-100 is imagenet1k's folders of the listed wnids, nothing copied. `scenes` is drawn on the fly (scenes.py).
The scan is cached, since a million stats take minutes on a cluster's file system.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from jigclu.config import ConfigError, DataConfig
from jigclu.data.scenes import KINDS
from jigclu.training.folder import write_atomic

Split = Literal["train", "val"]
Files = list[tuple[str, int]]  # (file name, size in bytes), sorted

SPLITS: tuple[Split, Split] = ("train", "val")
SUFFIXES = (".jpeg", ".jpg", ".png")
SCENES_IMAGES: dict[str, int] = {"train": 2000, "val": 500}
# HobbitLong/CMC's list, the one that the paper cites (protocols.md §2.2).
IMAGENET100_SHA256 = "79f3f1552ccc478ce24bd934b4573625db584ddc1f4643ae23c994a94cb11397"
IMAGENET_MIN_TRAIN, IMAGENET_VAL = 732, 50  # ILSVRC2012: train classes hold 732 to 1300 images, val classes 50
IMAGENETTE_IMAGES: dict[str, int] = {"train": 9469, "val": 3925}
CLASSES = {"imagenette": 10, "imagenet100": 100, "imagenet1k": 1000}

_IMAGENET = "get ILSVRC2012 from image-net.org as imagenet1k/{train,val}/<wnid>/*.JPEG (val sorted by wnid)"
_ROOT = "then set JIGCLU_DATA to the folder around it"
_HOW = {
    "imagenette": "get Imagenette v2 (github.com/fastai/imagenette) as imagenette/{train,val}/<wnid>/*.JPEG, " + _ROOT,
    "imagenet1k": f"{_IMAGENET}, {_ROOT}",
    "imagenet100": f"{_IMAGENET} and imagenet100.txt of github.com/HobbitLong/CMC in lists/, {_ROOT}",
}


@dataclass(frozen=True)
class Catalogue:
    """One split as it will be read. `folder` is None for scenes; `paths` are relative to it, in class order."""

    folder: Path | None
    classes: list[str]
    paths: np.ndarray  # (n,) str: an array, not a list, so that forked workers share its pages
    sizes: list[int]
    labels: np.ndarray  # (n,) int64
    version: str

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hex of sha256 over names and sizes (for scenes: over version, split and count)."""
        lines = [f"scenes {self.version} {self.paths[0].split('/')[0]} {len(self.paths)}"]
        if self.folder is not None:
            lines = [f"{path} {size}" for path, size in zip(self.paths.tolist(), self.sizes, strict=True)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def data_root(root: Path | None = None) -> Path:
    return Path(root if root is not None else os.environ.get("JIGCLU_DATA") or "data")


def catalogue(data: DataConfig, split: Split, root: Path | None = None) -> Catalogue:
    """The files of one split, in the order (wnid, file name). Raises ConfigError where the data set is not whole."""
    if data.name == "scenes":
        count = _wanted(data, split) or SCENES_IMAGES[split]
        names = np.array([f"{split}/{i}" for i in range(count)])
        return Catalogue(None, list(KINDS), names, [], np.arange(count, dtype=np.int64) % len(KINDS), data.version)
    folder, classes = _whole_split(data, split, data_root(root))
    counts = _quota(data, split, classes)
    chosen = {wnid: _draw(files, count) for (wnid, files), count in zip(classes.items(), counts, strict=True)}
    return Catalogue(
        folder=folder,
        classes=list(chosen),
        paths=np.array([f"{wnid}/{name}" for wnid, files in chosen.items() for name, _ in files]),
        sizes=[size for files in chosen.values() for _, size in files],
        labels=np.repeat(np.arange(len(chosen), dtype=np.int64), counts),
        version=data.version,
    )


def check(data: DataConfig, root: Path | None = None) -> None:
    """Raises ConfigError (one line: which folder was looked in, how to get it) unless both splits are whole."""
    for split in SPLITS if data.name != "scenes" else ():
        _quota(data, split, _whole_split(data, split, data_root(root))[1])


# -- is it whole ------------------------------------------------------------------------------------------------------
def _whole_split(data: DataConfig, split: Split, root: Path) -> tuple[Path, dict[str, Files]]:
    folder = root / ("imagenette" if data.name == "imagenette" else "imagenet1k") / split
    if not folder.is_dir():
        raise _broken(data, folder, "there is no such folder")
    wnids = _imagenet100(data, root) if data.name == "imagenet100" else None
    classes = scan(folder, wnids)
    if missing := sorted(set(wnids or ()) - set(classes)):
        raise _broken(data, folder, f"{len(missing)} of 100 class folders are missing, the first is {missing[0]}")
    if len(classes) != CLASSES[data.name]:
        raise _broken(data, folder, f"{len(classes)} class folders, not {CLASSES[data.name]}")
    for wnid, files in classes.items():
        if not files:
            raise _broken(data, folder, f"class folder {wnid} is empty")
        if data.name != "imagenette" and split == "train" and len(files) < IMAGENET_MIN_TRAIN:
            raise _broken(data, folder, f"class {wnid} has {len(files)} images, not at least {IMAGENET_MIN_TRAIN}")
        if data.name != "imagenette" and split == "val" and len(files) != IMAGENET_VAL:
            raise _broken(data, folder, f"class {wnid} has {len(files)} images, not {IMAGENET_VAL}")
    found = sum(map(len, classes.values()))
    if data.name == "imagenette" and found != IMAGENETTE_IMAGES[split]:
        raise _broken(data, folder, f"{found} images, not {IMAGENETTE_IMAGES[split]}")
    return folder, classes


def _imagenet100(data: DataConfig, root: Path) -> list[str]:
    path = root / "lists" / "imagenet100.txt"
    try:
        text = path.read_bytes()
    except OSError:
        raise _broken(data, path, "there is no such file") from None
    if hashlib.sha256(text).hexdigest() != IMAGENET100_SHA256:
        raise _broken(data, path, f"this is another list (sha256 is not {IMAGENET100_SHA256[:12]}...)")
    return text.decode().split()


def _broken(data: DataConfig, where: Path, what: str) -> ConfigError:
    return ConfigError(f"data set {data.name}: looked in {where.absolute()}: {what}; {_HOW[data.name]}")


# -- a class-balanced part --------------------------------------------------------------------------------------------
def _wanted(data: DataConfig, split: Split) -> int | None:
    return data.train_images if split == "train" else data.val_images


def _quota(data: DataConfig, split: Split, classes: dict[str, Files]) -> list[int]:
    """Images to take of each class; the first classes get one more where it doesn't divide."""
    wanted = _wanted(data, split)
    if wanted is None:
        return [len(files) for files in classes.values()]
    share, rest = divmod(wanted, len(classes))
    counts = [share + (i < rest) for i in range(len(classes))]
    for (wnid, files), count in zip(classes.items(), counts, strict=True):
        if count > len(files):
            raise ConfigError(
                f"data.{split}_images={wanted}: {data.name} would need {count} images of class {wnid}, which has "
                f"{len(files)} ({sum(map(len, classes.values()))} in all; leave {split}_images out to use every one)"
            )
    return counts


def _draw(files: Files, count: int) -> Files:
    """`count` files, the first by the hash of their names: a larger part holds every smaller one. Sorted by name."""
    if count == len(files):
        return files
    return sorted(sorted(files, key=lambda file: hashlib.sha256(file[0].encode()).digest())[:count])


# -- the scan ---------------------------------------------------------------------------------------------------------
def scan(folder: Path, wnids: Iterable[str] | None = None) -> dict[str, Files]:
    """Files of every class folder (or only those of `wnids` that exist), classes and files sorted by name.

    A class folder is read anew only when its mtime changed; an image overwritten in place is therefore not noticed.
    """
    with os.scandir(folder) as entries:
        stamps = {entry.name: entry.stat().st_mtime_ns for entry in entries if entry.is_dir() and entry.name[0] != "."}
    wanted = sorted(stamps if wnids is None else stamps.keys() & set(wnids))
    cached = _read_cache(folder)
    stale = [wnid for wnid in wanted if wnid not in cached or cached[wnid][0] != stamps[wnid]]
    if stale:
        now = time.time_ns()
        with ThreadPoolExecutor(16) as pool:  # the waits of a network file system overlap
            for wnid, files in zip(stale, pool.map(_list_images, [folder / wnid for wnid in stale]), strict=True):
                # A folder touched in the last 2 s may change again within one tick of its clock: don't trust its mtime.
                settled = now - stamps[wnid] > 2_000_000_000
                stamp = stamps[wnid] if settled else -1
                cached[wnid] = (stamp, [name for name, _ in files], [size for _, size in files])
        with contextlib.suppress(OSError, RuntimeError):  # a cache that can't be written only costs time
            path = _cache_path(folder)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(cached).encode())
    return {wnid: list(zip(cached[wnid][1], cached[wnid][2], strict=True)) for wnid in wanted}


def _list_images(folder: Path) -> Files:
    with os.scandir(folder) as entries:
        return sorted(
            (entry.name, entry.stat().st_size)
            for entry in entries
            if entry.name.lower().endswith(SUFFIXES) and entry.name[0] != "." and entry.is_file()
        )


def _cache_path(folder: Path) -> Path:
    base = os.environ.get("JIGCLU_CACHE")
    home = Path(base) if base else Path.home() / ".cache" / "jigclu"
    return home / f"scan-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}.json"


def _read_cache(folder: Path) -> dict[str, tuple[int, list[str], list[int]]]:
    try:
        values = json.loads(_cache_path(folder).read_bytes())
        return {str(wnid): (int(stamp), list(names), list(sizes)) for wnid, (stamp, names, sizes) in values.items()}
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError):
        return {}  # none yet, or not ours: scan again
