"""The linear probe: k learning rates in one pass over the images, compared with one pass each."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.timing import Group, Ratio, Row
from benchmarks.workload import Workload
from jigclu.config import parse
from jigclu.job_folder import JobFolder
from jigclu.stages import linear

RATES = (1.0, 0.1, 10.0, 30.0, 3.0)


def measure(workload: Workload, rounds: int) -> Group:
    """Run the stage in a job folder, `rounds` // 3 times each; new crops every epoch, as in the protocol."""
    single, several = [], []
    for _ in range(max(3, rounds // 3)):
        single.append(probe(workload, RATES[:1]))
        several.append(probe(workload, RATES))
    images = 4 * workload.batch_size
    rows = [
        Row("1 learning rate", tuple(single), images),
        Row(f"{len(RATES)} learning rates, one pass", tuple(several), images),
    ]
    group = Group(
        "probe", f"linear stage, {images} images, 2 epochs, {workload.backbone}, {workload.image_size} px", rows
    )
    passes = len(RATES) * rows[0].median
    group.ratios.append(
        Ratio(f"{len(RATES)} rates on one pass / {len(RATES)} passes, seconds", rows[1].median / passes, ("<=", 0.3))
    )
    return group


def probe(workload: Workload, rates: tuple[float, ...]) -> float:
    """Seconds of a linear stage with these learning rates on a random encoder."""
    data = {
        "name": "scenes",
        "canvas": workload.canvas,
        "train_images": 4 * workload.batch_size,
        "val_images": workload.batch_size,
    }
    config = parse("linear", {
        "data": data, "backbone": workload.backbone, "image_size": workload.image_size, "resize": workload.image_size * 8 // 7,
        "batch_size": workload.batch_size, "epochs": 2, "lr": rates[0], "other_lrs": list(rates[1:]), "precision": "bfloat16",
        "runtime": {"workers": 0},
    })  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="jigclu-bench-") as store:
        folder = JobFolder(Path(store) / "linear" / "bench")
        folder.create()
        start = time.perf_counter()
        linear.run(config, folder.path)
        return time.perf_counter() - start
