"""Verifying every file of a data set by the SHA256SUMS beside it: altered bytes in a JPEG still decode, to other pixels."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jigclu.config import ConfigError
from jigclu.data.sources.folder_index import digest, read_sums

NAMED = 5  # files in a message


def verify(name: str, folder: Path, sums: Path, images: Iterable[str]) -> str:
    """Read every file that `sums` lists; returns one line. `images`: names below `folder` that must be listed.

    Raises:
        ConfigError: there is no such list, or a file is missing, differs or is not listed; one line with their names.
    """
    listed = read_sums(sums)
    if not listed:
        raise ConfigError(f"data set {name}: it has no {sums.absolute()}, so there are no digests to compare with")
    with ThreadPoolExecutor() as pool:  # hashing releases the lock
        found = dict(zip(listed, pool.map(_digest, [folder / path for path in listed]), strict=True))
    faults = {
        "differ": [path for path, sha256 in listed.items() if found[path] not in ("", sha256)],
        "cannot be read": [path for path, sha256 in found.items() if not sha256],
        "are not listed": sorted(set(images) - set(listed)),
    }
    if any(faults.values()):
        what = "; ".join(f"{len(paths)} {fault}: {_some(paths)}" for fault, paths in faults.items() if paths)
        raise ConfigError(f"data set {name}: of {len(listed)} files in {sums.absolute()}, {what}")
    return f"digests: {len(listed)} files are as {sums.name} lists them"


def _digest(path: Path) -> str:
    try:
        return digest(path)
    except OSError:
        return ""


def _some(paths: list[str]) -> str:
    return ", ".join(paths[:NAMED]) + (", ..." if len(paths) > NAMED else "")
