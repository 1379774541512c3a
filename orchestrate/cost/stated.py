"""What a job costs before a similar one has run (then see measured.py): images through the backbone over a rate.

GPU: ResNet-50 at 224 px trains 938 images/s on one A100 80 GB in TF32, the published rate of NVIDIA's own recipe
(protocols.md §5).
CPU: 6 images/s on 2 cores of an AMD EPYC in bfloat16 (measured on 2026-11-28: 161 images/s of ResNet-18 at 64 px in
batches of 50, augmentation included, one job with both cores; batches of 128 reach 271, benchmarks/results).
Other backbones and sizes scale by their multiply-adds; a forward pass alone is a third of a training step. Starting a
job takes 3 to 4 s (same machine, from the process's start to the first line of the stage).
"""

from __future__ import annotations

from jigclu.config import DenseConfig, DetectConfig, FinetuneConfig, LinearConfig, PretrainConfig
from jigclu.config.stages import KNN_IMAGES
from jigclu.data.catalog import expected_images
from jigclu.data.sources import coco
from orchestrate.planning.resolve import StageConfig

RESNET50_224 = {"GPU": 938.0, "CPU": 6.0}  # images/s, training
# Faster R-CNN, images/s of training: R50-FPN at 800 px on one V100, from d2's model zoo: 16 images in 0.210 s on 8 of
# them, 1.32 times that with a 4conv1fc head and SyncBN (Mask R-CNN's 0.345 to 0.261; protocols.md §2.6, §5).
# CPU: R18, 64 channels at 256 px.
DETECTION = {"GPU": 16 / (8 * 0.210 * 0.345 / 0.261), "CPU": 8.0}
START_HOURS = {"GPU": 6 / 3600, "CPU": 4 / 3600}  # Python, torch and the stage's own packages
# Of a run on this machine: between its jobs (submitit's controller, polling), and once (planning, MLflow).
LOCAL_OVERHEAD_HOURS, LOCAL_ONCE_HOURS = 2 / 3600, 5 / 3600
BASIS = {"GPU": "that of an A100", "CPU": "that of 2 free cores of an AMD EPYC"}
MOST_SCHEDULED = 400  # jobs, of which wall_hours makes a schedule: its time grows with their square
GIGA_MULTIPLY_ADDS = {
    "resnet10": 0.9,
    "resnet18": 1.8,
    "resnet34": 3.7,
    "resnet50": 4.1,
    "resnet101": 7.8,
    "resnet152": 11.6,
}


def rate(stage: str, device: str) -> float:
    """The stated images/s behind the hours of a stage on a `GPU` or `CPU`: they are inversely proportional to it."""
    return (DETECTION if stage == "detect" else RESNET50_224)[device]


def _detection_hours(config: DetectConfig, device: str) -> float:
    """Training by images seen; the test and precise batch norm cost a third of a training step per image."""
    count = coco.expected_images(config.data, "train")
    seen = config.solver.iterations(count) * config.solver.batch_size
    tested = coco.expected_images(config.data, "val") + config.precise_bn * config.solver.batch_size
    size = (config.sizes.test / 800) ** 2 if device == "GPU" else (config.sizes.test / 256) ** 2
    return START_HOURS[device] + (seen + tested / 3) * size / DETECTION[device] / 3600


def hours(config: StageConfig, device: str) -> float:
    """Estimated hours of one `GPU` or (a whole machine's) `CPU`."""
    if isinstance(config, DetectConfig):
        return _detection_hours(config, device)
    images = (
        RESNET50_224[device]
        * GIGA_MULTIPLY_ADDS["resnet50"]
        / GIGA_MULTIPLY_ADDS[config.backbone]
        * (224 / config.image_size) ** 2
    )
    if isinstance(config, DenseConfig):
        seen = coco.expected_images(config.data, "train") + coco.expected_images(config.data, "val")
        return START_HOURS[device] + seen / (3 * images) / 3600
    train, val = expected_images(config.data, "train"), expected_images(config.data, "val")
    if isinstance(config, PretrainConfig):
        return START_HOURS[device] + train * config.epochs * config.method.passes / images / 3600
    if isinstance(config, FinetuneConfig):
        validations = -(-config.epochs // config.validate_every)
        return START_HOURS[device] + (train * config.epochs + val * validations / 3) / images / 3600
    forwarded = train + val
    if isinstance(config, LinearConfig):  # the encoder itself is measured beside the probe
        forwarded = train * min(config.views or config.epochs, config.epochs) + val + min(train, KNN_IMAGES)
    return START_HOURS[device] + forwarded / (3 * images) / 3600


def wall_hours(jobs: dict[str, tuple[float, int, tuple[str, ...]]], devices: int) -> float:
    """Hours until all jobs are done: each starts when its upstream jobs are done and its devices are free.

    `jobs`, upstream first: id -> (device-hours, devices used at the same time, upstream ids; those not in `jobs` are done).
    """
    if len(jobs) > MOST_SCHEDULED:  # so many jobs keep all devices busy
        return sum(hours for hours, _, _ in jobs.values()) / devices
    free = [0.0] * devices  # when each device is free
    ends: dict[str, float] = {}
    waiting = dict(jobs)
    while waiting:
        free.sort()
        ready = {
            job_id: max((ends[up] for up in upstream if up in jobs), default=0.0)
            for job_id, (_, _, upstream) in waiting.items()
            if all(up in ends for up in upstream if up in jobs)
        }
        job_id = min(ready, key=lambda key: max(ready[key], free[min(waiting[key][1], devices) - 1]))
        device_hours, ranks, _ = waiting.pop(job_id)
        ranks = min(ranks, devices)
        ends[job_id] = max(ready[job_id], free[ranks - 1]) + device_hours / ranks
        free[:ranks] = [ends[job_id]] * ranks
    return max(ends.values(), default=0.0)
