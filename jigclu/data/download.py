"""Downloading a data set: into a temporary folder, verified there, then renamed to its final place."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from jigclu.config import DATASETS, ConfigError, DataConfig, DatasetSpec, dataset_spec
from jigclu.data.catalog import catalogue, check
from jigclu.data.sources.folders import with_wnid
from jigclu.data.sources.subsets import IncompleteDatasetError, read_list
from jigclu.files import write_atomic

Fetch = Callable[[Path], None]  # leaves the data set in the given folder, laid out as below a data root


class DownloadError(RuntimeError):
    """Nothing was changed; one line says why."""


def get(data: DataConfig, root: Path, fetch: Fetch | None = None) -> str:
    """Download the data set below `root`, or verify the one that is there; returns the lines to print.

    `fetch` replaces the download. Raises DownloadError, which leaves `root` as it was; ConfigError on an unknown name.
    """
    spec = dataset_spec(data.name)
    if not fetch and not spec.fetcher:
        raise DownloadError(f"{data.name} cannot be downloaded: {spec.how_to_get}")
    target = root / spec.folder
    if target.exists():
        try:
            check(data, root)
        except ConfigError as error:
            raise DownloadError(f"{target} exists but is incomplete; move it away first ({error})") from None
        message = f"{data.name} is already there and complete: {target}"
    else:
        created = [folder for folder in (root, *root.parents) if not folder.exists()]
        try:
            _install(data, spec, root, fetch or (lambda aside: FETCHERS[spec.fetcher](spec, aside)))
        except BaseException:
            with contextlib.suppress(OSError):
                for folder in created:
                    folder.rmdir()
            raise
        message = f"{data.name} is in {target}, verified"
        if spec.layout == "folders" and not spec.square:
            message += "\nits images have their original size; decoding scales them to the config's canvas"
    return f"{message}\n{write_subset_lists(data, root)}".strip()


def _install(data: DataConfig, spec: DatasetSpec, root: Path, fetch: Fetch) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{data.name}-", dir=root) as aside:
            fetch(Path(aside))
            check(data, Path(aside))
            os.replace(Path(aside) / spec.folder, root / spec.folder)
    except Exception as error:  # a server, a proxy, a tar file, a disk: each raises its own type
        reason = " ".join(str(error).split()) or "no reason given"
        raise DownloadError(
            f"{data.name} could not be downloaded: {type(error).__name__}: {reason}; nothing was kept"
        ) from None


def _imagenette_full(spec: DatasetSpec, aside: Path) -> None:
    from torchvision.datasets import Imagenette

    Imagenette(str(aside), size="full", download=True)  # leaves it in imagenette2


def _imagenette(spec: DatasetSpec, aside: Path) -> None:
    """Download the published images and squash each to `spec.square` pixels on both sides, JPEG quality 80."""
    full = dataset_spec(spec.twin)
    _imagenette_full(full, aside)
    for path in (aside / full.folder).glob("*/*/*.JPEG"):
        target = aside / spec.folder / path.relative_to(aside / full.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            size = (spec.square, spec.square)
            image.convert("RGB").resize(size, Image.Resampling.BILINEAR).save(target, "JPEG", quality=80)


def _cifar(spec: DatasetSpec, aside: Path) -> None:
    from torchvision import datasets

    assert spec.cifar, spec.name
    getattr(datasets, spec.cifar.reader)(str(aside), download=True)


FETCHERS: dict[str, Callable[[DatasetSpec, Path], None]] = {
    "imagenette": _imagenette,
    "imagenette_full": _imagenette_full,
    "cifar": _cifar,
}


def write_subset_lists(data: DataConfig, root: Path) -> str:
    """Write the label lists that belong inside the data set's folder, from SimCLR's own lists in <root>/lists.

    They are the lines of SimCLR's lists that are in the train split (<folder>/splits/simclr_*.txt). Returns the lines
    to print.
    """
    messages, spec = [], dataset_spec(data.name)
    own = {subset: part for subset, part in spec.subsets.items() if part.path.startswith(f"{spec.folder}/")}
    for subset, part in own.items():
        path, simclr = root / part.path, DATASETS["imagenet1k"].subsets[subset]
        if path.exists():
            continue
        try:
            lines = read_list(root / simclr.path, simclr.sha256)
        except IncompleteDatasetError as error:
            messages.append(f"{path} was not written: {error.path}: {error}")
            continue
        train = set(catalogue(data, "train", root).paths.tolist())
        kept = [name for line in lines if (name := with_wnid(line)) in train]
        try:
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, "".join(f"{name}\n" for name in kept).encode())
            messages.append(f"wrote {path}: {len(kept)} images")
        except OSError as error:
            messages.append(f"{path} was not written: {error.strerror}")
    return "\n".join(messages)
