"""Getting a data set, as far as it may be downloaded: into a folder aside, checked, then moved to where it belongs."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from jigclu.config import ConfigError, DataConfig
from jigclu.data.catalog import catalogue, check
from jigclu.data.sources import coco
from jigclu.data.sources.cifar import CIFAR10, CIFAR100
from jigclu.data.sources.folders import HOW, IMAGENETTE_SHA256, SIMCLR_SHA256, with_wnid
from jigclu.data.sources.subsets import IncompleteDatasetError, read_list
from jigclu.files import write_atomic

Fetch = Callable[[Path], None]  # leaves the data set in the given folder, laid out as below a data root
FOLDERS = {"imagenette": "imagenette", "cifar10": CIFAR10.folder, "cifar100": CIFAR100.folder}
BY_HAND = {
    "scenes": "scenes are drawn when they are read: there is nothing to get",
    "imagenet100": HOW["imagenet100"],
    "imagenet1k": HOW["imagenet1k"],
    **coco.HOW,
    "coco_scenes": "scenes are drawn when they are needed: there is nothing to get",
}


class DownloadError(RuntimeError):
    """Nothing was changed; one line says why."""


def get(data: DataConfig, root: Path, fetch: Fetch | None = None) -> str:
    """Download the data set below `root`, or see that it is there already; returns what to tell, one line each.

    `fetch` takes the place of the download. Raises DownloadError, which leaves `root` as it was.
    """
    target = root / FOLDERS[data.name]
    if target.exists():
        try:
            check(data, root)
        except ConfigError as error:
            raise DownloadError(f"{target} is there, but not whole; move it away first ({error})") from None
        told = f"{data.name} is there already, whole: {target}"
    else:
        made = [folder for folder in (root, *root.parents) if not folder.exists()]
        try:
            _install(data, root, fetch or FETCH[data.name])
        except BaseException:
            with contextlib.suppress(OSError):
                for folder in made:
                    folder.rmdir()
            raise
        told = f"{data.name} is in {target}, verified"
        if data.name == "imagenette":
            told += "\nits images have their original size; decoding scales them to the config's canvas"
    return f"{told}\n{write_subset_lists(data, root)}".strip()


def _install(data: DataConfig, root: Path, fetch: Fetch) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{data.name}-", dir=root) as aside:
            fetch(Path(aside))
            check(data, Path(aside))
            os.replace(Path(aside) / FOLDERS[data.name], root / FOLDERS[data.name])
    except Exception as error:  # a server, a proxy, a tar file, a disk: each raises its own
        why = " ".join(str(error).split()) or "no reason given"
        raise DownloadError(f"{data.name} could not be got: {type(error).__name__}: {why}; nothing was kept") from None


def _imagenette(aside: Path) -> None:
    from torchvision.datasets import Imagenette

    Imagenette(str(aside), size="full", download=True)
    (aside / "imagenette2").rename(aside / "imagenette")


def _cifar(reader: str) -> Fetch:
    def fetch(aside: Path) -> None:
        from torchvision import datasets

        getattr(datasets, reader)(str(aside), download=True)

    return fetch


FETCH: dict[str, Fetch] = {
    "imagenette": _imagenette,
    "cifar10": _cifar(CIFAR10.reader),
    "cifar100": _cifar(CIFAR100.reader),
}


def write_subset_lists(data: DataConfig, root: Path) -> str:
    """imagenette/splits/simclr_*.txt from SimCLR's own lists in <root>/lists: their lines that are in Imagenette's train split."""
    told = []
    for subset in IMAGENETTE_SHA256 if data.name == "imagenette" else ():
        path = root / "imagenette" / "splits" / f"simclr_{subset}.txt"
        if path.exists():
            continue
        try:
            lines = read_list(root / "lists" / f"{subset}.txt", SIMCLR_SHA256[subset])
        except IncompleteDatasetError as error:
            told.append(f"no {path}: {error.where}: {error}")
            continue
        there = set(catalogue(data, "train", root).paths.tolist())
        kept = [name for line in lines if (name := with_wnid(line)) in there]
        try:
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, "".join(f"{name}\n" for name in kept).encode())
            told.append(f"wrote {path}: {len(kept)} images")
        except OSError as error:
            told.append(f"no {path}: {error.strerror}")
    return "\n".join(told)
