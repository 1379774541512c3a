"""The fast paths equal the plain ones, and the benchmark measures what it claims."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.orchestrator import ROOT, environment
from torch import Tensor

from benchmarks import results
from benchmarks.timing import Group, Ratio, Row, timed
from jigclu import resample
from jigclu.data.loader import Batch
from jigclu.montage import assemble, cut
from jigclu.training.prefetch import prefetched
from jigclu.training.usage import peak_memory_mb

CPU = torch.device("cpu")


@pytest.mark.parametrize(("side", "size", "patches"), [(40, 16, 4), (33, 48, 3), (64, 20, 1)])
def test_gathered_rows_equal_the_dense_product(side: int, size: int, patches: int) -> None:
    """A GPU multiplies matrices and a CPU gathers rows: the pixels are the same."""
    generator = torch.Generator().manual_seed(side)
    canvases = torch.randint(0, 256, (5, 3, side, side), dtype=torch.uint8, generator=generator)
    extent = torch.randint(1, side + 1, (5 * patches, 2), generator=generator)
    start = (torch.rand(5 * patches, 2, generator=generator) * (side - extent + 1)).long()
    rows, columns = (resample.triangle(start[:, axis], extent[:, axis], side, size) for axis in (0, 1))
    rows, columns = resample._by_image(rows, 5), resample._by_image(columns, 5)
    flat = [resample.Taps(*(part.flatten(0, 1) for part in taps)) for taps in (rows, columns)]
    picked, product = (resample._resample(canvases, *flat, dense=dense) for dense in (False, True))
    assert picked.shape == (5 * patches, size, 3, size)
    torch.testing.assert_close(picked, product, rtol=0, atol=2e-3)  # of 255


def test_the_number_of_images_processed_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    canvases = torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    crop = torch.tensor([[3, 1, 20, 25]]).repeat(18, 1)
    together = resample.crop_resize(canvases, crop, 12)
    monkeypatch.setattr(resample, "_CPU_BYTES", 1)  # one image at a time
    torch.testing.assert_close(resample.crop_resize(canvases, crop, 12), together, rtol=0, atol=1e-6)


def plain_triangle(start: int, length: int, source: int, size: int, low: int, high: int) -> Tensor:
    """(source, size): every pixel's weight in every output, by the formula in PIL's manual."""
    scale = length / size
    reach = max(scale, 1.0)
    weights = torch.zeros(source, size, dtype=torch.float64)
    for out in range(size):
        middle = start + (out + 0.5) * scale
        for pixel in range(low, high):
            weights[pixel, out] = max(0.0, 1 - abs(pixel + 0.5 - middle) / reach)
    return weights / weights.sum(0)


@pytest.mark.parametrize("whole", [False, True], ids=["sees its crop", "sees the whole image"])
def test_taps_are_the_whole_triangle_filter(whole: bool) -> None:
    """No pixel that the filter reaches is left out, at any length, flipped or not."""
    starts, lengths = [3] * 56, list(range(1, 57))
    limit = torch.full((56,), 60) if whole else None
    for flip in (False, True):
        taps = resample.triangle(torch.tensor(starts), torch.tensor(lengths), 64, 7, torch.full((56,), flip), limit)
        for seen, start, length in zip(taps.matrix(64).double(), starts, lengths, strict=True):
            expected = plain_triangle(start, length, 64, 7, *((0, 60) if whole else (start, start + length)))
            torch.testing.assert_close(seen, expected.flip(1) if flip else expected, rtol=0, atol=1e-5)


def test_a_montage_is_written_in_the_networks_memory_format() -> None:
    ordered = torch.randn(4 * 3, 3, 5, 5)
    montages = assemble(ordered, 2)
    assert montages.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(cut(montages, 2), ordered, rtol=0, atol=0)


def numbered(count: int) -> Iterator[Batch]:
    for number in range(count):
        yield Batch(*(torch.tensor([number]) for _ in range(4)))


def test_batches_are_prepared_in_order_and_counted_from_the_current_step() -> None:
    def prepare(batch: Batch, step: int) -> tuple[Tensor, ...]:
        return batch.canvas * 10, torch.tensor(step)

    seen = [
        (step, int(batch.canvas), int(prepared[0]), int(prepared[1]))
        for step, batch, prepared in prefetched(numbered(3), prepare, CPU, 5)
    ]
    assert seen == [(5, 0, 0, 5), (6, 1, 10, 6), (7, 2, 20, 7)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_prefetched_batches_equal_those_prepared_in_sequence() -> None:
    device = torch.device("cuda")

    def prepare(batch: Batch, step: int) -> tuple[Tensor, ...]:
        prepared = torch.full((1 << 22,), float(step), device=device)
        for _ in range(50):
            prepared = prepared + 1
        return (prepared,)

    sums = [float(prepared[0].double().mean()) for _, _, prepared in prefetched(numbered(6), prepare, device, 0)]
    assert sums == [step + 50.0 for step in range(6)]


def test_peak_memory_is_of_this_process_only() -> None:
    """A process started by a large one does not inherit its peak, as Linux's ru_maxrss does."""
    ballast = torch.ones(100 << 20)  # 400 MiB
    code = "import torch; from jigclu.training.usage import peak_memory_mb; print(peak_memory_mb(torch.device('cpu')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(done.stdout) < peak_memory_mb(CPU) - 300
    assert ballast[0] == 1


def test_timed_callables_alternate_and_every_round_counts() -> None:
    calls: list[str] = []
    rows = timed("", {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, warm=1)
    assert "".join(calls) == "abababab" and [len(row.seconds) for row in rows] == [3, 3]
    assert [row.name for row in rows] == ["a", "b"] and all(row.median > 0 for row in rows)


def test_saved_results_keep_the_groups_that_were_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    for name, value in (("step", 0.9), ("formats", 0.3), ("step", 0.8)):
        group = Group(name, "a setting", [Row("work", (1.0, 2.0, 3.0), 10)], [Ratio("r", value, (">=", 0.85))])
        path = results.save("Some CPU, 2 threads", {"date": "today"}, [group])
    assert path.name == "some-cpu-2-threads.json"
    saved = results.read("Some CPU, 2 threads")
    assert saved["step"]["ratios"]["r"] == {"value": 0.8, "target": ">= 0.85", "met": False}
    assert saved["formats"]["rows"]["work"] == {
        "median_s": 2.0, "quartiles_s": [1.5, 2.5], "n": 3, "images_a_second": 5.0
    }  # fmt: skip
    table = results.table(group, saved)
    assert "target >= 0.85: MISSED" in table and "committed 0.800" in table


def benchmark(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *words],
        cwd=ROOT,
        env=environment(tmp_path / "s"),
        capture_output=True,
        text=True,
    )


def test_the_benchmark_measures_and_an_unknown_group_is_one_line(tmp_path: Path) -> None:
    done = benchmark(tmp_path, "augmentation", "exchange", "--rounds", "3")
    assert done.returncode == 0, done.stderr
    assert "PIL / batched, seconds on one core" in done.stdout and "each once" in done.stdout
    refused = benchmark(tmp_path, "stp")
    assert refused.returncode == 2 and "step" in refused.stderr and refused.stderr.count("\n") == 1


def test_committed_results_record_device_versions_and_date() -> None:
    paths = sorted(results.FOLDER.glob("*.json"))
    assert paths
    for path in paths:
        for name, group in json.loads(path.read_bytes())["groups"].items():
            about: dict[str, Any] = group["about"]
            assert about["device"] and about["date"] and about["versions"]["torch"], (path, name)
            assert all(row["n"] >= 1 and row["median_s"] > 0 for row in group["rows"].values()), (path, name)
