"""Writing packs (pack.py says what lies in one): into a folder aside, which gets its name when it is whole. No torch."""

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

from jigclu.config import ConfigError, DataConfig
from jigclu.data.catalog import COLLECTIONS
from jigclu.data.sources.base import MOST_UNREADABLE, SPLITS, Source, Split
from jigclu.data.sources.folders import FolderCollection, FolderSource
from jigclu.data.sources.packed import (
    FACTS,
    FileFacts,
    PackFacts,
    SplitFacts,
    data_name,
    digest,
    folder_of,
    index_name,
    pack_facts,
)
from jigclu.files import fsync_dir, locked, write_json

SUBSAMPLING = "4:2:0"  # Pillow's default, and how nearly all photographs come
UNREADABLE = (0, 0)
TELL_SECONDS = 10.0
_SPAN_BYTES = 1 << 23  # of canvases that one worker makes at a time: bounds what waits to be written


class PackError(RuntimeError):
    """Nothing was changed; one line says why."""


def collection_of(data: DataConfig) -> FolderCollection:
    collection = COLLECTIONS[data.name]
    assert isinstance(collection, FolderCollection), data.name  # config.PACKABLE
    return collection


def pack(data: DataConfig, root: Path, workers: int, force: bool = False, tell: Callable[[str], None] = print) -> str:
    """Pack both splits of the data set for the config's canvas and quality, or see that they are; returns what to say, one line.

    `workers` processes decode (0: this one). `force`: in place of what is there. Raises ConfigError where the folders are not
    whole, PackError where it cannot be done; either leaves everything as it was.
    """
    folder = folder_of(data, root)
    data = DataConfig(name=data.name, canvas=data.canvas, quality=data.quality)  # of every image
    with contextlib.suppress(OSError):  # a root that cannot be written to has nothing to be recovered
        _recover(folder)
    if os.path.lexists(folder) and not force:
        return _is_there(data, root)
    sources = {split: collection_of(data).from_files(data, split, root) for split in SPLITS}
    try:
        folder.parent.mkdir(exist_ok=True)
        with locked(_lock(folder), wait=False) as ours:
            if not ours:
                raise PackError(f"{folder} is being written by another process")
            if os.path.lexists(folder) and not force:  # since we looked
                return _is_there(data, root)
            return _replace(data, sources, folder, workers, tell)
    except OSError as error:
        raise PackError(f"{folder}: {error.strerror or error}; nothing was kept") from None
    except BrokenExecutor:
        raise PackError(f"{folder}: a process that decoded was killed (out of memory?); nothing was kept") from None


def _is_there(data: DataConfig, root: Path) -> str:
    facts = pack_facts(data, root)
    if old := outdated(data, root, facts):
        raise PackError(f"{old}; --force makes it again")
    return f"{data.name} is packed already, whole: {folder_of(data, root)}; {reading(data)}"


def outdated(data: DataConfig, root: Path, facts: PackFacts) -> str:
    """What differs between a pack and the folders as they are now; "" where nothing does, or they are not (all) there."""
    for split in SPLITS:
        try:
            now = collection_of(data).from_files(data.model_copy(update={"subset": None}), split, root).fingerprint
        except ConfigError:
            continue
        if now != facts.splits[split].fingerprint:
            made = (
                f"the pack {folder_of(data, root)} was made from other {split} images than {data.name}'s folders hold"
            )
            return f"{made} (fingerprint {facts.splits[split].fingerprint}, now {now})"
    return ""


def reading(data: DataConfig) -> str:
    """How a job gets to read the pack."""
    if data.quality is None:  # the pixels are the folders', so nobody has to ask
        return f"jobs with data.canvas {data.canvas} read it"
    return (
        f"jobs with data.canvas {data.canvas} and data.quality {data.quality} read it "
        f"(--set pretrain.data.quality={data.quality}: other pixels, so other jobs)"
    )


# -- the folder -------------------------------------------------------------------------------------------------------
def _replace(
    data: DataConfig, sources: dict[Split, FolderSource], folder: Path, workers: int, tell: Callable[[str], None]
) -> str:
    """Write aside and rename. The lock is held: whatever lies aside was left by one that was killed."""
    aside, replaced = _aside(folder), _replaced(folder)
    start = time.monotonic()
    try:
        _clear(aside, replaced)
        _fits(data, sources, folder.parent)
        aside.mkdir()
        facts = write(data, sources, aside, workers, tell)
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
    lost = sum(split.unreadable for split in facts.splits.values())
    return (
        f"{data.name}: {images} images{f' ({lost} of them unreadable)' if lost else ''}, {written / 1e9:.2f} GB, at "
        f"{images / seconds:.0f} images/s in {folder}; {reading(data)}"
    )


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.packing")


def _replaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


def _recover(folder: Path) -> None:
    """What one that was killed left. Before the folders are looked at: a root may hold nothing but packs."""
    left = _aside(folder), _replaced(folder)
    if any(map(os.path.lexists, left)):
        with locked(_lock(folder), wait=False) as ours:
            if ours:
                _restore(folder)
                _clear(*left)


def _lock(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _restore(folder: Path) -> None:
    """Give the pack its name back where a replacement was stopped between the two renames."""
    if os.path.lexists(_replaced(folder)) and not os.path.lexists(folder):
        os.rename(_replaced(folder), folder)


def _clear(*folders: Path) -> None:
    for folder in folders:
        if folder.is_symlink():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)


def _fits(data: DataConfig, sources: dict[Split, FolderSource], where: Path) -> None:
    """Raises PackError where the disk has too little. What JPEGs will take is not known: no more than the files do, mostly."""
    needed = sum(
        len(source.paths) * 3 * data.canvas**2 if data.quality is None else int(source.sizes.sum())
        for source in sources.values()
    )
    if (free := shutil.disk_usage(where).free) < needed:
        raise PackError(f"{where} has {free / 1e9:.1f} GB free; the pack takes {needed / 1e9:.1f} GB")


def write(
    data: DataConfig, sources: dict[Split, FolderSource], aside: Path, workers: int, tell: Callable[[str], None]
) -> PackFacts:
    """Every file of a pack of these sources into the empty folder `aside`, pack.json last."""
    splits = {
        split: _write_split(Encoder(source, data.canvas, data.quality), split, aside, workers, tell)
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
    """Consecutive images. `shapes`: [height, width] each, (0, 0) of an unreadable one; `lengths`: bytes each in `data`."""

    data: bytes
    shapes: list[tuple[int, int]]
    lengths: list[int]


@dataclass(frozen=True)
class Encoder:
    """Images of a source as they stand in a pack."""

    source: Source
    canvas: int
    quality: int | None

    def __call__(self, start: int, stop: int) -> Part:
        images = [self._one(index) for index in range(start, stop)]
        data = [content for content, _ in images]
        return Part(b"".join(data), [shape for _, shape in images], [len(content) for content in data])

    def _one(self, index: int) -> tuple[bytes, tuple[int, int]]:
        canvas = np.zeros((3, self.canvas, self.canvas) if self.quality is None else 0, dtype=np.uint8)
        try:
            pixels = self.source.pixels(index, self.canvas)
        except MemoryError:
            raise
        except Exception as error:  # whatever a decoder raises on a broken file, as in CanvasDataset
            if (
                isinstance(error, OSError) and error.errno is not None
            ):  # a disk that hiccuped: no reason to lack it for good
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
    """Parts of one split as they go by: what the index has to say, whether too much is unreadable, how far it is."""

    split: Split
    source: FolderSource
    tell: Callable[[str], None]
    shapes: list[tuple[int, int]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    told: float = field(default_factory=time.monotonic)

    def see(self, part: Part) -> None:
        total = len(self.source.paths)
        for place, shape in enumerate(part.shapes, len(self.shapes)):
            if shape == UNREADABLE:
                self.unreadable.append(str(self.source.paths[place]))
        self.shapes += part.shapes
        self.lengths += part.lengths
        if len(self.unreadable) > MOST_UNREADABLE * total:
            raise PackError(
                f"{len(self.unreadable)} of {total} {self.split} images are unreadable (over 0.1 %), the first is "
                f"{self.source.folder / self.unreadable[0]}; nothing was kept"
            )
        if time.monotonic() - self.told > TELL_SECONDS:
            self.told = time.monotonic()
            rate = len(self.shapes) / (self.told - self.began)
            self.tell(f"{self.split}: {len(self.shapes)} of {total} images, {rate:.0f} images/s")

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


def _write_split(encoder: Encoder, split: Split, aside: Path, workers: int, tell: Callable[[str], None]) -> SplitFacts:
    assert isinstance(encoder.source, FolderSource)
    seen = _Split(split, encoder.source, tell)
    count, side = len(encoder.source.paths), encoder.canvas
    shape = (count, 3, side, side) if encoder.quality is None else None
    with contextlib.closing(_parts(encoder, count, workers)) as parts:
        sha256 = _write_data(aside / data_name(split), parts, seen.see, shape)
    np.savez(aside / index_name(split), **seen.index(encoder.quality))
    with open(aside / index_name(split), "rb") as file:
        os.fsync(file.fileno())
    digests = {data_name(split): sha256, index_name(split): digest(aside / index_name(split))}
    return SplitFacts(
        images=count,
        unreadable=len(seen.unreadable),
        fingerprint=encoder.source.fingerprint,
        files={name: FileFacts(bytes=(aside / name).stat().st_size, sha256=sum_) for name, sum_ in digests.items()},
    )


def _write_data(path: Path, parts: Iterator[Part], see: Callable[[Part], None], shape: tuple[int, ...] | None) -> str:
    """All parts behind the header of an array of that shape (None: of bytes, as many as they are); the file's sha256."""
    head, total = npy_header(shape or (0,)), 0
    summed = hashlib.sha256(head)
    with open(path, "wb") as file:
        file.write(head)
        for part in parts:
            see(part)
            file.write(part.data)
            summed.update(part.data)
            total += len(part.data)
        if shape is None:
            file.seek(0)
            file.write(npy_header((total,)))
        file.flush()
        os.fsync(file.fileno())
    return summed.hexdigest() if shape else digest(path)


def npy_header(shape: tuple[int, ...]) -> bytes:
    """128 bytes that make what follows a .npy file of uint8, format 1.0: the same length for every shape, to be written last."""
    words = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + words.ljust(117).encode() + b"\n"


# -- the processes ----------------------------------------------------------------------------------------------------
def _parts(encoder: Encoder, count: int, workers: int) -> Generator[Part, None, None]:
    """In order, never more than two a worker ahead of who takes them."""
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


_encoder: Encoder | None = None  # of this process, where it is a worker


def _begin(encoder: Encoder) -> None:
    global _encoder
    _encoder = encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent ends us in order
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Where the parent is killed nothing else would end us, and we hold its lock."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _encode(start: int, stop: int) -> Part:
    assert _encoder
    return _encoder(start, stop)
