"""The exchange of patches between ranks: how many it moves, and its time compared with gathering all patches on all ranks."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.timing import Group, Ratio, Row, timed
from benchmarks.workload import Workload
from jigclu import counter_rng
from jigclu.montage import exchange, stitch

RANKS, M = 2, 2
COLLECTIVES = ("all_to_all_single", "all_to_all", "all_gather", "all_gather_into_tensor", "all_reduce", "broadcast")


def measure(workload: Workload, rounds: int) -> Group:
    """Two processes with gloo on this machine's loopback, on any device: the counts are the same with NCCL."""
    local, size = workload.batch_size // RANKS, workload.image_size // M
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with tempfile.TemporaryDirectory(prefix="jigclu-bench-") as folder:
        out = Path(folder) / "rank0.json"
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.exchange", str(local), str(size), str(rounds), str(out)],
                cwd=Path(__file__).parent.parent,
                env={
                    **os.environ,
                    "RANK": str(rank),
                    "WORLD_SIZE": str(RANKS),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                },
            )
            for rank in range(RANKS)
        ]
        codes = [process.wait() for process in started]
        if any(codes):
            raise RuntimeError("a rank of the exchange failed; its output is above")
        result = json.loads(out.read_text())
    images = local * RANKS
    rows = [
        Row("exchange", tuple(result["exchange"]), images),
        Row("gather everywhere", tuple(result["gather"]), images),
    ]
    group = Group("exchange", f"{RANKS} ranks, gloo, {images} images, 4 patches of {size} px each, float32", rows)
    group.ratios = [
        Ratio("patches sent and received / patches shown: each once", result["moved"], ("==", 1.0)),
        Ratio("exchange / gathering everywhere, seconds", rows[0].median / rows[1].median),
    ]
    return group


def run_rank(local: int, size: int, rounds: int, out: str) -> None:
    """One of the RANKS processes; rank 0 writes the timings to `out`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    patches = torch.randn(M * M * local, 3, size, size)
    permutation = counter_rng.permutation(0, counter_rng.MONTAGE, 0, 0, M * M * local * RANKS)
    moved = counted(lambda: exchange(patches, permutation, M))

    def gathered() -> torch.Tensor:
        by_rank = [torch.empty_like(patches) for _ in range(RANKS)]
        dist.all_gather(by_rank, patches)
        all_patches = torch.stack(by_rank).unflatten(1, (M * M, local)).transpose(0, 1).flatten(0, 2)
        return stitch(all_patches, permutation, M)[rank * local : (rank + 1) * local]

    assert torch.equal(gathered(), exchange(patches, permutation, M))
    rows = timed("", {"exchange": lambda: exchange(patches, permutation, M), "gather": gathered}, rounds)
    if rank == 0:
        result = {row.name: row.seconds for row in rows} | {"moved": moved / len(patches)}
        Path(out).write_text(json.dumps(result))
    dist.destroy_process_group()


def counted(work: Any) -> int:
    """Patches that this rank receives during `work`, including from itself: the rows of every tensor that a collective fills."""
    plain = {name: getattr(dist, name) for name in COLLECTIVES}
    seen: list[int] = []

    def counting(name: str) -> Any:
        def call(received: Any, *arguments: Any, **named: Any) -> Any:
            seen.extend(map(len, received if isinstance(received, list) else [received]))
            return plain[name](received, *arguments, **named)

        return call

    try:
        for name in COLLECTIVES:
            setattr(dist, name, counting(name))
        work()
    finally:
        for name, collective in plain.items():
            setattr(dist, name, collective)
    return sum(seen)


if __name__ == "__main__":
    run_rank(*map(int, sys.argv[1:4]), sys.argv[4])
