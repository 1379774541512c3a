"""Reading packs: folders of images as a few large memory-mapped files; their format and verification. No torch.

<root>/packed/<name>-<version>-<canvas>px/         the pixels as they are: canvases, (n, 3, canvas, canvas) uint8
<root>/packed/<name>-<version>-<canvas>px-q<n>/    the images scaled to the canvas, re-encoded as consecutive JPEGs
    pack.json    {train,val}.index.npz    {train,val}.npy

The first contains exactly what decoding the folders gives, so it is used whenever it exists and is not part of a job's
id. The second contains different pixels: a config asks for it by `quality`. pack.json is written last. It and the index
are verified whenever a pack is opened, the digest of the large file once for every state of that file.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import mmap
import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from PIL import Image
from pydantic import ValidationError

from jigclu.config import ConfigError, DataConfig, Strict
from jigclu.data.sources.base import SPLITS, Source, Split, data_root, file_lines, fingerprint_of
from jigclu.data.sources.decoding import fit
from jigclu.data.sources.folder_index import cache_path, digest, file_state, keep, settled

FACTS = "pack.json"
log = logging.getLogger("jigclu")


# -- the files of a pack ----------------------------------------------------------------------------------------------
class FileFacts(Strict):
    bytes: int
    sha256: str


class SplitFacts(Strict):
    """`unreadable`: number of images that could not be read; each keeps its index. `fingerprint`: of the folders."""

    images: int
    unreadable: int
    fingerprint: str
    files: dict[str, FileFacts]


class PackFacts(Strict):
    """pack.json. `subsampling`: of the JPEG chroma."""

    format: Literal[1] = 1
    name: str
    version: str
    canvas: int
    quality: int | None
    subsampling: str | None
    classes: list[str]
    splits: dict[Split, SplitFacts]
    pillow: str
    made: str


def index_name(split: Split) -> str:
    return f"{split}.index.npz"


def data_name(split: Split) -> str:
    return f"{split}.npy"


def folder_of(data: DataConfig, root: Path) -> Path:
    """Where the pack for this config is, if it exists."""
    tail = "" if data.quality is None else f"-q{data.quality}"
    return (root / "packed" / f"{data.name}-{data.version}-{data.canvas}px{tail}").absolute()


def packs_of(data: DataConfig, root: Path) -> list[DataConfig]:
    """The config with the canvas and quality of every pack of its data set below the root, complete or not."""
    folders = (root / "packed").iterdir() if (root / "packed").is_dir() else ()
    name = re.compile(rf"{re.escape(f'{data.name}-{data.version}')}-([1-9]\d*)px(?:-q([1-9]\d?|100))?")
    found = [match.groups() for folder in folders if (match := name.fullmatch(folder.name))]
    shapes = sorted((int(canvas), int(quality or 0)) for canvas, quality in found)
    return [data.model_copy(update={"canvas": canvas, "quality": quality or None}) for canvas, quality in shapes]


def pack_command(data: DataConfig, root: Path) -> str:
    """The command that makes the pack."""
    quality = [] if data.quality is None else ["--quality", str(data.quality)]
    elsewhere = [] if root == data_root() else ["--root", str(root)]
    return shlex.join(
        ["python", "-m", "jigclu.data", "pack", data.name, "--canvas", str(data.canvas), *quality, *elsewhere]
    )


# -- opening ----------------------------------------------------------------------------------------------------------
class CorruptPackError(Exception):
    """Which file of a pack is damaged or missing, and how."""


def open_pack(data: DataConfig, split: Split, root: Path, thorough: bool = True) -> PackedSource | None:
    """The whole split from the config's pack; None if there is no pack and it is read from the folders.

    `thorough` off: only the size of the large file is checked. Raises ConfigError (one line) if the pack is incomplete, or
    if the config's quality needs a pack and there is none.
    """
    folder = folder_of(data, root)
    if not os.path.lexists(folder):
        if data.quality is None:
            return None
        raise ConfigError(
            f"data set {data.name}: quality {data.quality} is read from a pack, and {folder} does not exist; "
            f"make it with `{pack_command(data, root)}`"
        )
    facts, indices, states = _verified(data, root, (split,), thorough)
    if thorough:
        log.info("%s %s is read from the pack %s", data.name, split, folder)
    index = indices[split]
    shared: dict[str, Any] = {
        "classes": facts.classes,
        "paths": index["paths"],
        "labels": index["labels"],
        "folder": folder,
        "canvas": facts.canvas,
        "file": Mapped(folder / data_name(split), states[split]),
        "sizes": index["sizes"],
        "shapes": np.stack([index["heights"], index["widths"]], axis=1),
    }
    if facts.quality is None:
        return RawSource(**shared, starts=np.arange(len(index["paths"])))
    sha256 = facts.splits[split].files[data_name(split)].sha256
    return JpegSource(**shared, starts=index["offsets"][:-1], stops=index["offsets"][1:], sha256=sha256)


def pack_facts(data: DataConfig, root: Path, thorough: bool = True) -> PackFacts:
    """The contents of pack.json. Raises ConfigError (one line) unless both splits are complete.

    `thorough` off: only the sizes of the large files are checked.
    """
    return _verified(data, root, SPLITS, thorough)[0]


Index = dict[str, np.ndarray]
State = tuple[int, int, int]  # size in bytes, mtime in ns, inode of a verified file


def _verified(
    data: DataConfig, root: Path, splits: Iterable[Split], thorough: bool
) -> tuple[PackFacts, dict[Split, Index], dict[Split, State]]:
    folder = folder_of(data, root)
    try:
        facts, indices, states = _read_facts(folder, data), {}, {}
        for split in splits:
            indices[split] = _read_index(folder, split, facts)
            path = folder / data_name(split)
            states[split] = _check_data(path, facts.splits[split].files[path.name], thorough)
            _check_header(path, indices[split], facts)
            if thorough:
                _check_fingerprint(split, indices[split], facts)
    except (CorruptPackError, OSError) as error:
        what = _describe(error) if isinstance(error, OSError) else str(error)
        raise ConfigError(
            f"data set {data.name}: the pack {folder} is damaged: {what}; make it again with "
            f"`{pack_command(data, root)} --force`, or delete the folder"
        ) from None
    return facts, indices, states


def _describe(error: OSError) -> str:
    name = Path(str(error.filename)).name
    missing = isinstance(error, FileNotFoundError | NotADirectoryError)
    return f"there is no {name}" if missing else f"{name} cannot be read ({error.strerror})"


def _read_facts(folder: Path, data: DataConfig) -> PackFacts:
    try:
        facts = PackFacts.model_validate_json((folder / FACTS).read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise CorruptPackError(
            f"{FACTS} cannot be read by this version ({': '.join(filter(None, (key, first['msg'])))})"
        ) from None
    expected = data.name, data.version, data.canvas, data.quality
    if (found := (facts.name, facts.version, facts.canvas, facts.quality)) != expected:
        raise CorruptPackError(f"{FACTS} describes another pack ({' '.join(map(str, found))})")
    for split in SPLITS:
        listed = facts.splits[split].files if split in facts.splits else {}
        if missing := [name for name in (index_name(split), data_name(split)) if name not in listed]:
            raise CorruptPackError(f"{FACTS} does not list {missing[0]}")
    return facts


def _read_index(folder: Path, split: Split, facts: PackFacts) -> Index:
    """paths (n,) str; labels, heights, widths, sizes (n,) int64; for JPEGs also offsets (n + 1,) int64 in bytes."""
    name = index_name(split)
    content = (folder / name).read_bytes()
    expected = facts.splits[split].files[name]
    if len(content) != expected.bytes:
        raise CorruptPackError(f"{name} has {len(content)} bytes, not {expected.bytes}")
    if hashlib.sha256(content).hexdigest() != expected.sha256:
        raise CorruptPackError(f"{name} is altered (its sha256 is not the one in {FACTS})")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            index = dict(arrays)
    except Exception as error:  # whatever numpy and zipfile raise
        raise CorruptPackError(f"{name} is no index of a pack ({type(error).__name__})") from None
    needed, count = ("paths", "labels", "heights", "widths", "sizes"), facts.splits[split].images
    if wrong := [key for key in needed if index.get(key, np.empty(0)).shape != (count,)]:
        raise CorruptPackError(f"{name}: {wrong[0]} are not {count}, one per image as {FACTS} says")
    if facts.quality is not None and index.get("offsets", np.empty(0)).shape != (count + 1,):
        raise CorruptPackError(f"{name}: offsets are not {count + 1}, one more than images")
    for key, most in (("labels", len(facts.classes) - 1), ("heights", facts.canvas), ("widths", facts.canvas)):
        if count and not 0 <= index[key].min() <= index[key].max() <= most:
            raise CorruptPackError(f"{name}: {key} must be from 0 to {most}")
    if (broken := int((index["heights"] == 0).sum())) != (noted := facts.splits[split].unreadable):
        raise CorruptPackError(f"{name}: {broken} images are unreadable, not {noted} as {FACTS} says")
    for label, first in zip(*np.unique(index["labels"], return_index=True), strict=True):
        if (named := str(index["paths"][first]).partition("/")[0]) != facts.classes[label]:
            raise CorruptPackError(f"its {split} images of class {named} are labelled {facts.classes[label]}")
    return index


def _check_data(path: Path, expected: FileFacts, thorough: bool) -> State:
    size, mtime, _ctime, inode = state = file_state(path)
    if size != expected.bytes:
        raise CorruptPackError(f"{path.name} has {size} bytes, not {expected.bytes}")
    current = size, mtime, inode
    if not thorough or _recorded(path) == [*state, expected.sha256]:
        return current
    log.info("verifying %s, %.1f GB (done once)", path, size / 1e9)
    if digest(path) != expected.sha256:
        raise CorruptPackError(f"{path.name} is altered (its sha256 is not the one in {FACTS})")
    if settled(state):
        keep("verified", path, [*state, expected.sha256])
    return current


def _check_fingerprint(split: Split, index: Index, facts: PackFacts) -> None:
    if (found := fingerprint_of(file_lines(index["paths"], index["sizes"]))) != (
        noted := facts.splits[split].fingerprint
    ):
        raise CorruptPackError(f"the fingerprint of {index_name(split)} is {found}, not {noted} as {FACTS} says")


def _check_header(path: Path, index: Index, facts: PackFacts) -> None:
    count, side = len(index["paths"]), facts.canvas
    expected = (count, 3, side, side) if facts.quality is None else (int(index["offsets"][-1]),)
    try:
        array: Any = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError) as error:
        raise CorruptPackError(f"{path.name} is no array ({error})") from None
    if array.shape != expected or array.dtype != np.uint8:
        raise CorruptPackError(f"{path.name} is {array.dtype} of shape {array.shape}, not uint8 of {expected}")


def _recorded(path: Path) -> Any:
    try:
        return json.loads(cache_path("verified", path).read_bytes())
    except (OSError, RuntimeError, ValueError):
        return None


# -- reading ----------------------------------------------------------------------------------------------------------
class Mapped:
    """A .npy file that is mapped on first access, so that every process, forked or not, maps it for itself.

    `state`: of the file when it was verified. Mapping raises ConfigError if the file was replaced since then.
    """

    def __init__(self, path: Path, state: State):
        self.path, self.state = path, state
        self._array: np.ndarray | None = None
        self._map: mmap.mmap | None = None

    @property
    def array(self) -> np.ndarray:
        if self._array is None:
            try:
                array: Any = np.lib.format.open_memmap(self.path, mode="r")
                found = self.path.stat()
            except (OSError, ValueError) as error:
                raise ConfigError(
                    f"{self.path} was complete when the job started, but cannot be read now: {error}"
                ) from None
            if (found.st_size, found.st_mtime_ns, found.st_ino) != self.state:
                raise ConfigError(f"{self.path} was replaced while it was being read; restart the job")
            self._array, self._map = np.asarray(array), array._mmap
        return self._array

    def let_go(self) -> None:
        """Release its pages from this process (peak_memory_mb counts them); they stay in the system's cache."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def __reduce__(self) -> tuple[type[Mapped], tuple[Path, State]]:
        return Mapped, (self.path, self.state)


@dataclass(frozen=True)
class PackedSource(Source):
    """Images in a file of a pack, image i starting at `starts[i]`."""

    folder: Path
    canvas: int
    file: Mapped = field(repr=False)
    sizes: np.ndarray = field(repr=False)  # (n,) int64, bytes of the files that were packed
    shapes: np.ndarray = field(repr=False)  # (n, 2) int64 [height, width]; (0, 0) if the file was unreadable
    starts: np.ndarray = field(repr=False)  # (n,) int64

    def facts(self) -> Iterable[str]:
        """The same lines as the folders give."""
        return file_lines(self.paths, self.sizes)

    def take(self, chosen: np.ndarray) -> Self:
        part = {"sizes": self.sizes[chosen], "shapes": self.shapes[chosen], "starts": self.starts[chosen]}
        return replace(super().take(chosen), **part)

    def shape(self, index: int) -> tuple[int, int]:
        height, width = self.shapes[index].tolist()
        if not height:
            raise OSError(f"{self.paths[index]} was unreadable when it was packed")
        return height, width


@dataclass(frozen=True)
class RawSource(PackedSource):
    """Canvases; `starts` are indices into the array."""

    def pixels(self, index: int, longest: int) -> np.ndarray:
        height, width = self.shape(index)
        image = self.file.array[self.starts[index], :, :height, :width]
        return (
            image.copy() if max(height, width) <= longest else fit(Image.fromarray(image.transpose(1, 2, 0)), longest)
        )

    def extents(self, canvas: int) -> np.ndarray | None:
        return self.shapes if canvas == self.canvas else None

    def copy_into(self, out: np.ndarray, indices: np.ndarray) -> None:
        np.take(self.file.array, self.starts[indices], axis=0, out=out, mode="clip")  # `raise` would copy twice
        self.file.let_go()


@dataclass(frozen=True)
class JpegSource(PackedSource):
    """Consecutive JPEGs; `starts` are byte offsets. `sha256`: of the file, as its pixels differ from the folders'."""

    stops: np.ndarray = field(repr=False)  # (n,) int64
    sha256: str

    def pixels(self, index: int, longest: int) -> np.ndarray:
        self.shape(index)
        content = self.file.array[self.starts[index] : self.stops[index]].tobytes()
        self.file.let_go()
        with Image.open(io.BytesIO(content)) as image:
            return fit(image, longest)

    def facts(self) -> Iterable[str]:
        return (f"pack {self.sha256}", *super().facts())

    def take(self, chosen: np.ndarray) -> Self:
        return replace(super().take(chosen), stops=self.stops[chosen])
