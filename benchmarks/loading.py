"""Loading: files against packs, cold and warm; and training end to end from each, compared with the bare backbone."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.step import bare_step
from benchmarks.timing import Group, Ratio, Row, timed, wait
from benchmarks.workload import Workload, one_batch, photographs
from jigclu import methods
from jigclu.config import DataConfig
from jigclu.data import pack_writer
from jigclu.data.canvases import CanvasDataset
from jigclu.data.loader import Unreadable, batches
from jigclu.data.sources.folders import FolderSource
from jigclu.data.sources.packed import folder_of, open_pack
from jigclu.stages.pretrain import Trainer
from jigclu.training.session import Session

FILES, JPEG, RAW = "files", "packed, JPEG quality 90", "packed, raw"
BATCHES = {"cuda": 32, "cpu": 6}  # per epoch


def measure(workload: Workload, rounds: int) -> Group:
    images = 4 * workload.batch_size
    with photographs(workload, images) as files, packed(workload, files) as packs:
        sets = {FILES: files, **packs}
        reading = {name: reader(workload, dataset) for name, dataset in sets.items()}
        rows = [
            row_named(row, f"{row.name}, warm, one core")
            for row in timed("", reading, max(3, rounds // 2), items=images)
        ]
        rows += [cold(name, dataset, reading[name], images) for name, dataset in sets.items()]
        bare = bare_of(workload, files)
        trained, waits = end_to_end(workload, sets, bare, max(3, rounds // 3))
    group = Group(
        "loading", f"{workload.words}; JPEG files of {workload.photo[0]} x {workload.photo[1]}", rows + trained
    )
    median = {row.name: row.median / row.items for row in group.rows}
    group.ratios = [
        Ratio(
            f"{name}: images/s on one core against files, warm",
            median[f"{FILES}, warm, one core"] / median[f"{name}, warm, one core"],
        )
        for name in packs
    ]
    limit = median["bare backbone"]
    for name in sets:
        target = (">=", 0.9) if name == RAW else None
        group.ratios.append(
            Ratio(f"end to end from {name} / bare backbone, images/s", limit / median[f"end to end, {name}"], target)
        )
    group.ratios += [Ratio(f"share of the time that the loop waits for {name}", waits[name]) for name in sets]
    return group


def row_named(row: Row, name: str) -> Row:
    return Row(name, row.seconds, row.items, row.unit, row.facts)


@contextmanager
def packed(workload: Workload, files: CanvasDataset) -> Iterator[dict[str, CanvasDataset]]:
    """The same images as a JPEG pack and as a raw one, written by the suite's own writer."""
    assert isinstance(files.source, FolderSource)
    packs = {}
    with tempfile.TemporaryDirectory(prefix="jigclu-bench-") as root:
        for name, quality in ((JPEG, 90), (RAW, None)):
            data = DataConfig(name="imagenette", canvas=workload.canvas, quality=quality)
            folder = folder_of(data, Path(root))
            folder.mkdir(parents=True)
            pack_writer.write(data, {"train": files.source, "val": files.source}, folder, 0, lambda line: None)
            source = open_pack(data, "train", Path(root))
            assert source is not None
            packs[name] = CanvasDataset(source, workload.canvas)
        yield packs


def reader(workload: Workload, dataset: CanvasDataset) -> Callable[[], None]:
    """All images in this process, as batches on the CPU."""
    groups = np.array_split(np.arange(len(dataset)), len(dataset) // workload.batch_size)

    def read() -> None:
        for _ in batches(dataset, [group.tolist() for group in groups], 0, Unreadable(), substitute=True):
            pass

    return read


def cold(name: str, dataset: CanvasDataset, read: Callable[[], None], items: int) -> Row:
    """Three readings, each after asking the system to drop the files' pages from its cache."""
    seconds = []
    for _ in range(3):
        forget(dataset)
        start = time.perf_counter()
        read()
        seconds.append(time.perf_counter() - start)
    return Row(f"{name}, cold, one core", tuple(seconds), items)


def forget(dataset: CanvasDataset) -> None:
    source = dataset.source
    if isinstance(source, FolderSource):
        paths = [source.folder / str(path) for path in source.paths]
    else:
        mapped = source.file  # type: ignore[attr-defined]
        mapped._array = None  # unmap it: mapped pages stay in the cache
        paths = [mapped.path]
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)  # only pages that are written to disk can be dropped
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def bare_of(workload: Workload, dataset: CanvasDataset) -> Callable[[], None]:
    method = methods.build(workload.config(), 0, workload.rank_info, len(dataset.classes))
    step = bare_step(workload, method.prepare(one_batch(workload, dataset), 0, 0)[0])

    def steps() -> None:
        for _ in range(BATCHES[workload.device.type]):
            step()

    return steps


def end_to_end(
    workload: Workload, sets: dict[str, CanvasDataset], bare: Callable[[], None], rounds: int
) -> tuple[list[Row], dict[str, float]]:
    """Epochs of the stage's own trainer, including worker start; and the loop's waiting share, as in a job's result."""
    images = BATCHES[workload.device.type] * workload.batch_size
    with tempfile.TemporaryDirectory(prefix="jigclu-bench-") as store:
        trainers = {}
        for number, (name, dataset) in enumerate(sets.items()):
            config = workload.config(images, epochs=rounds + 1)
            session = Session(Path(store) / "pretrain" / str(number), config.runtime)
            trainers[name] = Trainer(config, session, repeated(dataset, images))
        works = {"bare backbone": bare} | {
            f"end to end, {name}": trainer.train_epoch for name, trainer in trainers.items()
        }
        rows = timed("", works, rounds, items=images, warm=1)
        wait()
        spent = {row.name: sum(row.seconds) for row in rows}
        # The session's clock runs during the other trainers' turns, so a trainer's share is computed from its own time.
        shares = {
            name: trainer.waited / (spent[f"end to end, {name}"] * (rounds + 1) / rounds)
            for name, trainer in trainers.items()
        }
    return rows, shares


def repeated(dataset: CanvasDataset, count: int) -> CanvasDataset:
    """`count` images: the data set's own, repeated."""
    return CanvasDataset(dataset.source.take(np.arange(count) % len(dataset)), dataset.canvas)
