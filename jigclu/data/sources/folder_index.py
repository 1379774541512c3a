"""The images in the class folders of a split. Cached: a million stat calls take minutes on a cluster's file system."""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from jigclu.data.sources.subsets import IncompleteDatasetError
from jigclu.files import write_atomic

Files = list[tuple[str, int]]  # (file name, size in bytes), sorted
# What changed in the last 2 s may change again within one tick of the file system's clock: do not trust its mtime yet.
SETTLED_NS = 2_000_000_000
SUMS = "SHA256SUMS"  # beside the folders of a data set
SUFFIXES = (".jpeg", ".jpg", ".png")
# Folders that file systems, Macs and Synology's NAS put beside the class folders: no class, unless images are in them.
SYSTEM = {"lost+found", "@eaDir", "#recycle", "#snapshot", "__MACOSX", "System Volume Information", "$RECYCLE.BIN"}
MOST_COMMON = 0.05  # share of val that train may contain by name and size
COMPARED = 3  # of those, how many are read: small drawn images may have the same size and differ
SAMPLED = 8  # images of a class folder (or 1 %) whose size and ctime are compared with the cached listing


def is_folder(folder: Path) -> bool:
    """Path.is_dir. Raises IncompleteDatasetError if another user's permissions hide it."""
    with _readable(folder):
        return folder.is_dir()


def require_folder(folder: Path) -> None:
    """Raises IncompleteDatasetError."""
    if not is_folder(folder):
        raise IncompleteDatasetError(folder, "there is no such folder")


def class_folders(folder: Path) -> list[str]:
    """Names of the class folders, sorted: all folders but hidden ones, and those of SYSTEM that contain no images.

    Raises IncompleteDatasetError if the folder or a link in it cannot be read.
    """
    with _readable(folder), os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())
    for name in names:
        _require_utf8(folder, name)
    return [name for name in names if name not in SYSTEM or _has_images(folder / name)]


def _has_images(folder: Path) -> bool:
    try:
        return any(name.lower().endswith(SUFFIXES) for name in os.listdir(folder))
    except OSError:  # lost+found belongs to root
        return False


def require_two_folders(train: Path, val: Path) -> None:
    """Raises IncompleteDatasetError if both names lead to one folder."""
    with contextlib.suppress(OSError):  # one of them is missing or unreadable: what needs it says so
        if train.samefile(val):
            raise IncompleteDatasetError(train.parent, f"{train.name} and {val.name} are one folder, by a link")


def require_separate(train: Path, train_sizes: dict[str, int], val: Path, val_sizes: dict[str, int]) -> None:
    """Raises IncompleteDatasetError if val is measured on what was learned: the same names, sizes and, of a few, bytes.

    `train_sizes` and `val_sizes`: bytes by name below the folders `train` and `val`.
    """
    require_two_folders(train, val)
    common = sorted(name for name, size in val_sizes.items() if size and train_sizes.get(name) == size)
    if len(common) > MOST_COMMON * len(val_sizes) and all(
        same_bytes(train / name, val / name) for name in common[:COMPARED]
    ):
        what = f"{len(common)} of {len(val_sizes)} val images are in train too, the first is {common[0]}"
        raise IncompleteDatasetError(train.parent, what)


def same_bytes(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


class _Listing(NamedTuple):
    """A class folder as it was scanned: its [mtime, ctime] in ns, the newest ctime of its images, their names and bytes."""

    stamp: list[int]
    newest: int
    names: list[str]
    sizes: list[int]


def scan(folder: Path, wnids: Iterable[str] | None = None, fresh: bool = False) -> dict[str, Files]:
    """Files of every class folder (or only those of `wnids` that exist), classes and files sorted by name.

    A class folder is read again if its mtime or ctime changed, or if one of a few of its images did: an image overwritten
    in place does not change its folder. `fresh`: read everything again. Raises IncompleteDatasetError (which file or
    folder cannot be read, or has a name that is not UTF-8).
    """
    names = class_folders(folder)
    wanted = names if wnids is None else sorted(set(names) & set(wnids))
    cached = _read_cache(folder)
    with _readable(folder), ThreadPoolExecutor(16) as pool:  # so that the latencies of a network file system overlap
        known = pool.map(_unchanged, [folder / wnid for wnid in wanted], map(cached.get, wanted))
        stale = wanted if fresh else [wnid for wnid, same in zip(wanted, known, strict=True) if not same]
        cached |= dict(zip(stale, pool.map(_list_images, [folder / wnid for wnid in stale]), strict=True))
    if stale:
        now = time.time_ns()
        settled = {wnid: one for wnid, one in cached.items() if now - max(*one.stamp, one.newest) > SETTLED_NS}
        keep("scan", folder, settled)
    return {wnid: list(zip(cached[wnid].names, cached[wnid].sizes, strict=True)) for wnid in wanted}


def _unchanged(folder: Path, listing: _Listing | None) -> bool:
    if listing is None or _stamp(folder) != listing.stamp:
        return False
    count = len(listing.names)
    samples = min(count, max(SAMPLED, count // 100))
    for position in {count * part // samples for part in range(samples)}:
        try:
            found = (folder / listing.names[position]).stat()
        except FileNotFoundError:
            return False
        if found.st_size != listing.sizes[position] or found.st_ctime_ns > listing.newest:
            return False
    return True


def _stamp(folder: Path) -> list[int]:
    found = folder.stat()
    return [found.st_mtime_ns, found.st_ctime_ns]


def _list_images(folder: Path) -> _Listing:
    stamp = _stamp(folder)  # first, so that a change during the scan is seen by the next one
    with os.scandir(folder) as entries:
        images = [entry for entry in entries if entry.name.lower().endswith(SUFFIXES) and entry.name[0] != "."]
        found = sorted((entry.name, entry.stat()) for entry in images if entry.is_file())
    for name, _ in found:
        _require_utf8(folder, name)
    sizes = [stat.st_size for _, stat in found]
    return _Listing(stamp, max((stat.st_ctime_ns for _, stat in found), default=0), [name for name, _ in found], sizes)


def _require_utf8(folder: Path, name: str) -> None:
    """Such a name cannot be hashed, printed or sent to MLflow: better here than in the middle of a job."""
    try:
        name.encode()
        if len(name.splitlines()) > 1:
            raise IncompleteDatasetError(folder, f"the name {name!r} has a line break in it; rename it")
    except UnicodeEncodeError:
        shown = os.fsencode(name).decode(errors="backslashreplace")
        raise IncompleteDatasetError(folder, f"the file name {shown} is not valid UTF-8; rename it") from None


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise IncompleteDatasetError(Path(error.filename or folder), f"cannot be read ({error.strerror})") from None


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


def read_sums(path: Path) -> dict[str, str] | None:
    """{file name: sha256} of a SHA256SUMS file; None if there is none."""
    if not path.exists():
        return None
    if not path.is_file():
        raise IncompleteDatasetError(path, "it is no file")
    lines = [line.split(maxsplit=1) for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return {line[1].strip().removeprefix("*"): line[0].lower() for line in lines if len(line) == 2}


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


def _read_cache(folder: Path) -> dict[str, _Listing]:
    try:
        values = json.loads(cache_path("scan", folder).read_bytes())
        return {
            str(wnid): _Listing([int(time) for time in stamp], int(newest), [str(name) for name, _ in files], sizes)
            for wnid, (stamp, newest, names, sizes) in values.items()
            if (files := list(zip(names, sizes, strict=True))) and all(type(size) is int for size in sizes)
        }
    except (OSError, RuntimeError, ArithmeticError, ValueError, TypeError, AttributeError):
        return {}  # no cache yet, or not one of this program: scan again
