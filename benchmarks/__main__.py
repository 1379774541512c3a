"""`python -m benchmarks`: the training step beside the bare backbone, augmentation beside PIL. Medians, ratios, one table.

Each row is timed after two warm-up rounds; n rounds, median and spread (quartiles) are printed and written as JSON to
benchmarks/results/<device>.json with `--save`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from PIL import ImageFilter
from torchvision import transforms

from jigclu import augment, methods
from jigclu.config import PretrainConfig, parse
from jigclu.data.datasets import open_dataset
from jigclu.data.loader import Batch, Unreadable, batches
from jigclu.network import Backbone
from jigclu.training.distributed import place
from jigclu.training.session import device_name


def timed(work: Callable[[], Any], rounds: int, device: torch.device) -> tuple[float, float, float]:
    """Median, lower and upper quartile of seconds a round."""

    def once() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for _ in range(2):
        once()
    low, median, high = statistics.quantiles([once() for _ in range(rounds)], n=4)
    return median, low, high


def train_step(
    network: torch.nn.Module,
    inputs: Callable[[], Any],
    loss: Callable[[Any], torch.Tensor],
    config: PretrainConfig,
    device: torch.device,
) -> Callable[[], None]:
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)

    def step() -> None:
        prepared = inputs()  # in float32, as in training
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            value = loss(prepared)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()

    return step


def pil_path(batch: Batch, size: int) -> Callable[[], None]:
    """The released recipe's list, one patch at a time (protocols.md §1.2), on the same canvases."""
    blur = transforms.Lambda(lambda image: image.filter(ImageFilter.GaussianBlur(1.0)))
    recipe = transforms.Compose([
        transforms.RandomResizedCrop(size, scale=(0.2, 1.0)),
        transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        transforms.RandomGrayscale(0.2),
        transforms.RandomApply([blur], p=0.5),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(augment.MEAN, augment.STD),
    ])  # fmt: skip
    images = [transforms.functional.to_pil_image(canvas) for canvas in batch.canvas]
    return lambda: [recipe(image) for image in images for _ in range(4)] and None


def main() -> None:
    command = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    command.add_argument("--rounds", type=int, default=9)
    command.add_argument("--save", action="store_true", help="write benchmarks/results/<device>.json")
    args = command.parse_args()
    where = place()
    gpu = where.device.type == "cuda"
    config = parse("pretrain", {
        "data": {"name": "scenes", "canvas": 256 if gpu else 128, "train_images": 256 if gpu else 128},
        "backbone": "resnet50" if gpu else "resnet18", "image_size": 224 if gpu else 64,
        "batch_size": 256 if gpu else 128, "precision": "bfloat16",
    })  # fmt: skip
    dataset = open_dataset(config.data, "train")
    batch = next(batches(dataset, [list(range(config.batch_size))], 0, Unreadable(), substitute=True))
    method = methods.build(config, 0, where, len(dataset.classes))
    network = method.network.to(where.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    prepared = method.prepare(batch, 0, 0)
    bare = Backbone(config.backbone).to(where.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    backbone = train_step(bare, lambda: prepared[0], lambda x: bare(x).float().square().mean(), config, where.device)
    full = train_step(
        network, lambda: method.prepare(batch, 0, 0), lambda made: method.loss(network, made)[0], config, where.device
    )
    patch = config.image_size // 2
    rows = {
        f"bare {config.backbone} step, {config.image_size} px": timed(backbone, args.rounds, where.device),
        "full JigClu step (augment, montage, train)": timed(full, args.rounds, where.device),
        f"augment 4 patches of {patch} px, batched": timed(
            lambda: method.prepare(batch, 0, 0), args.rounds, where.device
        ),
        f"augment 4 patches of {patch} px, PIL, one core": timed(
            pil_path(batch, patch), max(3, args.rounds // 3), where.device
        ),
    }
    names = list(rows)
    print(
        f"{device_name(where.device)}, torch {torch.__version__}, batch {config.batch_size}, bfloat16, n = {args.rounds}"
    )
    for name, (median, low, high) in rows.items():
        print(
            f"{name:48s} {config.batch_size / median:9.1f} images/s  {1e3 * median:8.1f} ms [{1e3 * low:.1f}, {1e3 * high:.1f}]"
        )
    ratios = {
        "full step / bare backbone": rows[names[0]][0] / rows[names[1]][0],
        "batched augmentation / PIL": rows[names[3]][0] / rows[names[2]][0],
    }
    for name, ratio in ratios.items():
        print(f"{name:48s} {ratio:9.2f}")
    if args.save:
        path = (
            Path(__file__).parent / "results" / f"{device_name(where.device).replace(' ', '-').replace(',', '')}.json"
        )
        path.parent.mkdir(exist_ok=True)
        measured = {name: dict(zip(("median_s", "low_s", "high_s"), row, strict=True)) for name, row in rows.items()}
        about = {"device": device_name(where.device), "python": platform.python_version(), "torch": torch.__version__}
        about |= {"date": f"{datetime.now(UTC):%Y-%m-%d}", "n": args.rounds, "batch": config.batch_size}
        path.write_text(json.dumps({**about, "rows": measured, "ratios": ratios}, indent=1) + "\n")
        print(path.relative_to(Path.cwd()))


if __name__ == "__main__":
    main()
