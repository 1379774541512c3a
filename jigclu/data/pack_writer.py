"""Writing packs (packed.py describes their files): in a temporary folder, renamed when it is complete. No torch."""

from __future__ import annotations

import contextlib
import hashlib
import io
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from PIL import Image

from jigclu.config import ConfigError, DataConfig, dataset_spec, packable_names
from jigclu.data.catalog import collection
from jigclu.data.sources.base import MOST_UNREADABLE, SPLITS, Source, Split
from jigclu.data.sources.folder_index import digest
from jigclu.data.sources.folders import FolderCollection, FolderSource
from jigclu.data.sources.packed import (
    FACTS,
    FileFacts,
    PackFacts,
    SplitFacts,
    data_name,
    folder_of,
    index_name,
    pack_facts,
)
from jigclu.files import fsync_dir, locked, write_json

SUBSAMPLING = "4:2:0"  # Pillow's default, and that of nearly all photographs
UNREADABLE = (0, 0)
Progress = Callable[[str], None]
PROGRESS_SECONDS = 10.0  # between two progress lines
_SPAN_BYTES = 1 << 23  # of canvases that one worker encodes at a time; bounds the memory of what waits to be written


class PackError(RuntimeError):
    """Nothing was changed; one line says why."""


def collection_of(data: DataConfig) -> FolderCollection:
    """Raises ConfigError (one line) if the data set is unknown or is not packed."""
    if not dataset_spec(data.name).packable:
        raise ConfigError(f"{data.name} is not packed; data sets that are: {', '.join(packable_names())}")
    images = collection(data.name)
    assert isinstance(images, FolderCollection), data.name
    return images


def pack(data: DataConfig, root: Path, workers: int, force: bool = False, on_progress: Progress = print) -> str:
    """Pack both splits for the config's canvas and quality, or verify the existing pack; returns one line to print.

    `workers` processes decode (0: this one). `force`: replace the existing pack. `on_progress` gets a line every
    PROGRESS_SECONDS. Raises ConfigError if the folders are incomplete, PackError if packing fails; nothing changes then.
    """
    images = collection_of(data)
    folder = folder_of(data, root)
    data = DataConfig(name=data.name, canvas=data.canvas, quality=data.quality)  # a pack holds every image
    with contextlib.suppress(OSError):  # a root that cannot be written to has nothing to recover
        _recover(folder)
    if os.path.lexists(folder) and not force:
        return _already_packed(data, root)
    sources = {split: images.from_files(data, split, root, fresh=True) for split in SPLITS}
    try:
        folder.parent.mkdir(exist_ok=True)
        with locked(_lock(folder), wait=False) as acquired:
            if not acquired:
                raise PackError(f"{folder} is being written by another process")
            if os.path.lexists(folder) and not force:  # written by another process in between
                return _already_packed(data, root)
            return _replace(data, sources, folder, workers, on_progress)
    except OSError as error:
        raise PackError(f"{folder}: {error.strerror or error}; nothing was kept") from None
    except BrokenExecutor:
        raise PackError(f"{folder}: a decoding process was killed (out of memory?); nothing was kept") from None


def _already_packed(data: DataConfig, root: Path) -> str:
    facts = pack_facts(data, root)
    if difference := outdated(data, root, facts):
        raise PackError(f"{difference}; --force makes it again")
    return f"{data.name} is already packed and complete: {folder_of(data, root)}; {usage(data)}"


def outdated(data: DataConfig, root: Path, facts: PackFacts) -> str:
    """How the current folders differ from those that were packed; "" if they do not, or are incomplete."""
    for split in SPLITS:
        try:
            whole = data.model_copy(update={"subset": None})
            now = collection_of(data).from_files(whole, split, root, fresh=True).fingerprint
        except ConfigError:
            continue
        if now != facts.splits[split].fingerprint:
            return (
                f"the pack {folder_of(data, root)} was made from different {split} images than {data.name}'s folders "
                f"now contain (fingerprint {facts.splits[split].fingerprint}, now {now})"
            )
    return ""


def usage(data: DataConfig) -> str:
    """Which jobs read the pack."""
    if data.quality is None:  # the same pixels as the folders, so it needs no setting
        return f"jobs with data.canvas {data.canvas} read it"
    return (
        f"jobs with data.canvas {data.canvas} and data.quality {data.quality} read it "
        f"(--set pretrain.data.quality={data.quality}: different pixels, so different jobs)"
    )


# -- the folder -------------------------------------------------------------------------------------------------------
def _replace(
    data: DataConfig, sources: dict[Split, FolderSource], folder: Path, workers: int, on_progress: Progress
) -> str:
    """Write to a temporary folder and rename it. The lock is held, so what is there was left by a killed process."""
    aside, replaced = _aside(folder), _replaced(folder)
    start = time.monotonic()
    try:
        _clear(aside, replaced)
        _check_space(data, sources, folder.parent)
        aside.mkdir()
        facts = write(data, sources, aside, workers, on_progress)
        fsync_dir(aside)
        if os.path.lexists(folder):
            os.rename(folder, replaced)
        os.rename(aside, folder)
        fsync_dir(folder.parent)
    finally:
        _restore(folder)
        _clear(aside, replaced)
    seconds = time.monotonic() - start
    images = sum(split.images for split in facts.splits.values())
    written = sum(file.bytes for split in facts.splits.values() for file in split.files.values())
    unreadable = sum(split.unreadable for split in facts.splits.values())
    return (
        f"{data.name}: {images} images{f' ({unreadable} of them unreadable)' if unreadable else ''}, "
        f"{written / 1e9:.2f} GB, at {images / seconds:.0f} images/s in {folder}; {usage(data)}"
    )


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.packing")


def _replaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def _recover(folder: Path) -> None:
    """Clean up after a killed process. This comes before the folders are read: a root may contain only packs."""
    left = _aside(folder), _replaced(folder)
    if any(map(os.path.lexists, left)):
        with locked(_lock(folder), wait=False) as acquired:
            if acquired:
                _restore(folder)
                _clear(*left)


def _lock(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _restore(folder: Path) -> None:
    """Give the old pack its name back if a replacement was stopped between the two renames."""
    if os.path.lexists(_replaced(folder)) and not os.path.lexists(folder):
        os.rename(_replaced(folder), folder)


def _clear(*folders: Path) -> None:
    for folder in folders:
        if folder.is_symlink():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)


def _check_space(data: DataConfig, sources: dict[Split, FolderSource], folder: Path) -> None:
    """Raises PackError if the disk has too little space. JPEGs are assumed to take as much as the original files."""
    needed = sum(
        len(source.paths) * 3 * data.canvas**2 if data.quality is None else int(source.sizes.sum())
        for source in sources.values()
    )
    if (free := shutil.disk_usage(folder).free) < needed:
        raise PackError(f"{folder} has {free / 1e9:.3g} GB free; the pack takes {needed / 1e9:.3g} GB")


def write(
    data: DataConfig, sources: dict[Split, FolderSource], aside: Path, workers: int, on_progress: Progress
) -> PackFacts:
    """Write every file of a pack of these sources to the empty folder `aside`, pack.json last."""
    splits = {
        split: _write_split(Encoder(source, data.canvas, data.quality), split, aside, workers, on_progress)
        for split, source in sources.items()
    }
    facts = PackFacts(
        name=data.name,
        version=data.version,
        canvas=data.canvas,
        quality=data.quality,
        subsampling=None if data.quality is None else SUBSAMPLING,
        classes=sources["train"].classes,
        splits=splits,
        pillow=PIL.__version__,
        made=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
    )
    write_json(aside / FACTS, facts.model_dump(mode="json"))
    return facts


# -- one split --------------------------------------------------------------------------------------------------------
class Part(NamedTuple):
    """Consecutive images. `shapes`: [height, width] each, (0, 0) if unreadable; `lengths`: bytes of each in `data`."""

    data: bytes
    shapes: list[tuple[int, int]]
    lengths: list[int]


@dataclass(frozen=True)
class Encoder:
    """Encodes images of a source as they are stored in a pack."""

    source: Source
    canvas: int
    quality: int | None

    def __call__(self, start: int, stop: int) -> Part:
        images = [self._encode(index) for index in range(start, stop)]
        data = [content for content, _ in images]
        return Part(b"".join(data), [shape for _, shape in images], [len(content) for content in data])

    def _encode(self, index: int) -> tuple[bytes, tuple[int, int]]:
        canvas = np.zeros((3, self.canvas, self.canvas) if self.quality is None else 0, dtype=np.uint8)
        try:
            pixels = self.source.pixels(index, self.canvas)
        except MemoryError:
            raise
        except Exception as error:  # whatever a decoder raises on a broken file, as in CanvasDataset
            # An error of the disk may be temporary: that is no reason to leave the image out for good.
            if isinstance(error, OSError) and error.errno is not None:
                raise PackError(
                    f"{self.source.paths[index]} cannot be read ({error.strerror}); nothing was kept"
                ) from None
            return canvas.tobytes(), UNREADABLE
        height, width = pixels.shape[1:]
        if self.quality is None:
            canvas[:, :height, :width] = pixels
            return canvas.tobytes(), (height, width)
        file = io.BytesIO()
        image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        image.save(file, "JPEG", quality=self.quality, subsampling=SUBSAMPLING)
        return file.getvalue(), (height, width)


@dataclass
class _Split:
    """Collects, from the parts of one split, its index, its unreadable images and its progress."""

    split: Split
    source: FolderSource
    on_progress: Progress
    shapes: list[tuple[int, int]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    reported: float = field(default_factory=time.monotonic)

    def add(self, part: Part) -> None:
        total = len(self.source.paths)
        for index, shape in enumerate(part.shapes, len(self.shapes)):
            if shape == UNREADABLE:
                self.unreadable.append(str(self.source.paths[index]))
        self.shapes += part.shapes
        self.lengths += part.lengths
        if len(self.unreadable) > MOST_UNREADABLE * total:
            raise PackError(
                f"{len(self.unreadable)} of {total} {self.split} images are unreadable (over 0.1 %), the first is "
                f"{self.source.folder / self.unreadable[0]}; nothing was kept"
            )
        if time.monotonic() - self.reported > PROGRESS_SECONDS:
            self.reported = time.monotonic()
            rate = len(self.shapes) / (self.reported - self.started)
            self.on_progress(f"{self.split}: {len(self.shapes)} of {total} images, {rate:.0f} images/s")

    def index(self, quality: int | None) -> dict[str, Any]:
        shapes = np.array(self.shapes, dtype=np.int64).reshape(-1, 2)
        source, ends = self.source, np.cumsum([0, *self.lengths], dtype=np.int64)
        return {
            "paths": source.paths,
            "labels": source.labels,
            "heights": shapes[:, 0],
            "widths": shapes[:, 1],
            "sizes": source.sizes,
            **({} if quality is None else {"offsets": ends}),
        }


def _write_split(encoder: Encoder, split: Split, aside: Path, workers: int, on_progress: Progress) -> SplitFacts:
    assert isinstance(encoder.source, FolderSource)
    writing = _Split(split, encoder.source, on_progress)
    count, side = len(encoder.source.paths), encoder.canvas
    shape = (count, 3, side, side) if encoder.quality is None else None
    with contextlib.closing(_parts(encoder, count, workers)) as parts:
        sha256 = _write_data(aside / data_name(split), parts, writing.add, shape)
    np.savez(aside / index_name(split), **writing.index(encoder.quality))
    with open(aside / index_name(split), "rb") as file:
        os.fsync(file.fileno())
    digests = {data_name(split): sha256, index_name(split): digest(aside / index_name(split))}
    return SplitFacts(
        images=count,
        unreadable=len(writing.unreadable),
        fingerprint=encoder.source.fingerprint,
        files={name: FileFacts(bytes=(aside / name).stat().st_size, sha256=sum_) for name, sum_ in digests.items()},
    )


def _write_data(path: Path, parts: Iterator[Part], add: Callable[[Part], None], shape: tuple[int, ...] | None) -> str:
    """Write all parts after the header of an array of that shape (None: a byte array); returns the file's sha256."""
    head, total = _npy_header(shape or (0,)), 0
    summed = hashlib.sha256(head)
    with open(path, "wb") as file:
        file.write(head)
        for part in parts:
            add(part)
            file.write(part.data)
            summed.update(part.data)
            total += len(part.data)
        if shape is None:
            file.seek(0)
            file.write(_npy_header((total,)))
        file.flush()
        os.fsync(file.fileno())
    return summed.hexdigest() if shape else digest(path)


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """The header of a uint8 .npy file, format 1.0. Always 128 bytes for the shapes used here, so it can be written last."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


# -- the processes ----------------------------------------------------------------------------------------------------
def _parts(encoder: Encoder, count: int, workers: int) -> Generator[Part, None, None]:
    """The encoded parts in order, at most two per worker ahead of the consumer."""
    step = max(1, _SPAN_BYTES // (3 * encoder.canvas**2))
    spans = [(start, min(start + step, count)) for start in range(0, count, step)]
    if not workers:
        yield from (encoder(*span) for span in spans)
        return
    pool = ProcessPoolExecutor(workers, initializer=_begin, initargs=(encoder,))
    try:
        waiting: deque[Future[Part]] = deque()
        for span in spans:
            waiting.append(pool.submit(_encode, *span))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


_encoder: Encoder | None = None  # of this process, if it is a worker


def _begin(encoder: Encoder) -> None:
    global _encoder
    _encoder = encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker holds the parent's lock and would outlive a killed parent."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _encode(start: int, stop: int) -> Part:
    assert _encoder
    return _encoder(start, stop)
