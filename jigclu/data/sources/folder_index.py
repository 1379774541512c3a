"""The images in the class folders of a split. Cached: a million stat calls take minutes on a cluster's file system."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jigclu.files import write_atomic

Files = list[tuple[str, int]]  # (file name, size in bytes), sorted
# What changed in the last 2 s may change again within one tick of the file system's clock: do not trust its mtime yet.
SETTLED_NS = 2_000_000_000
SUFFIXES = (".jpeg", ".jpg", ".png")


def scan(folder: Path, wnids: Iterable[str] | None = None) -> dict[str, Files]:
    """Files of every class folder (or only those of `wnids` that exist), classes and files sorted by name.

    A class folder is read again only if its mtime changed, so an image overwritten in place is not noticed.
    """
    with os.scandir(folder) as entries:
        stamps = {entry.name: entry.stat().st_mtime_ns for entry in entries if entry.is_dir() and entry.name[0] != "."}
    wanted = sorted(stamps if wnids is None else stamps.keys() & set(wnids))
    cached = _read_cache(folder)
    stale = [wnid for wnid in wanted if wnid not in cached or cached[wnid][0] != stamps[wnid]]
    if stale:
        now = time.time_ns()
        with ThreadPoolExecutor(16) as pool:  # so that the latencies of a network file system overlap
            for wnid, files in zip(stale, pool.map(_list_images, [folder / wnid for wnid in stale]), strict=True):
                settled = now - stamps[wnid] > SETTLED_NS
                stamp = stamps[wnid] if settled else -1
                cached[wnid] = (stamp, [name for name, _ in files], [size for _, size in files])
        keep("scan", folder, cached)
    return {wnid: list(zip(cached[wnid][1], cached[wnid][2], strict=True)) for wnid in wanted}


def _list_images(folder: Path) -> Files:
    with os.scandir(folder) as entries:
        return sorted(
            (entry.name, entry.stat().st_size)
            for entry in entries
            if entry.name.lower().endswith(SUFFIXES) and entry.name[0] != "." and entry.is_file()
        )


def cache_path(kind: str, about: Path) -> Path:
    """Where facts about a file or folder are cached for this user. Raises RuntimeError if there is no home folder."""
    base = os.environ.get("JIGCLU_CACHE")
    home = Path(base) if base else Path.home() / ".cache" / "jigclu"
    return home / f"{kind}-{hashlib.sha256(str(about.resolve()).encode()).hexdigest()[:16]}.json"


def keep(kind: str, about: Path, values: Any) -> None:
    """Cache the values as JSON; a cache that cannot be written only costs time."""
    with contextlib.suppress(OSError, RuntimeError):
        path = cache_path(kind, about)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(values).encode())


def digest(path: Path) -> str:
    """The file's sha256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_state(path: Path) -> list[int]:
    """Size in bytes, mtime, ctime and inode. The ctime shows that a file was altered and then given its old mtime."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def settled(state: list[int]) -> bool:
    """Whether a file of that state changed long enough ago for its times to show the next change."""
    return time.time_ns() - max(state[1:3]) > SETTLED_NS


def cached_digest(path: Path) -> str:
    """The file's sha256, read again only if the file's state changed. Raises OSError."""
    state = file_state(path)
    try:
        before, found = json.loads(cache_path("digest", path).read_bytes())
        if before == state:
            return str(found)
    except (OSError, RuntimeError, ValueError, TypeError):
        pass  # no cache yet, or not one of this program
    found = digest(path)
    if settled(state) and file_state(path) == state:
        keep("digest", path, [state, found])
    return found


def _read_cache(folder: Path) -> dict[str, tuple[int, list[str], list[int]]]:
    try:
        values = json.loads(cache_path("scan", folder).read_bytes())
        return {str(wnid): (int(stamp), list(names), list(sizes)) for wnid, (stamp, names, sizes) in values.items()}
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError):
        return {}  # no cache yet, or not one of this program: scan again
