"""Experiments -> jobs: overlays resolved, jobs named by content, shared ones found, cost estimated. Touches no data, no torch."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jigclu.config import ConfigError, Strict, identity, nearest
from jigclu.job_folder import JobFolder
from orchestrate.planning.experiments import Cell, Experiment
from orchestrate.planning.overlays import Overlay, overlay
from orchestrate.planning.resolve import ENCODER_STAGE, dataset_name, resolve, undot, variant_of


@dataclass(frozen=True)
class Use:
    """A cell that a job's result fills directly."""

    experiment: str
    cell: str
    metric: str
    scale: str
    protocol: str
    variant: str


@dataclass
class Job:
    """One stage with a resolved config, its upstream jobs and a seed."""

    stage: str
    config: Strict
    upstream: tuple[str, ...]
    seed: int
    label: str  # which encoder: `m=2`, or `random init`
    scale: str
    protocol: str
    experiments: set[str] = field(default_factory=set)
    uses: set[Use] = field(default_factory=set)
    asked: int = 0  # how many cells (times seeds) need it: what a suite without sharing would run

    @cached_property
    def id(self) -> str:
        content = {
            "stage": self.stage,
            "config": identity(self.config),
            "upstream": list(self.upstream),
            "seed": self.seed,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """`pretrain resnet50 imagenet100 m=2 seed 0`: what people read in squeue and MLflow."""
        config: Any = self.config
        data = " ".join(filter(None, (config.data.name, getattr(config.data, "subset", None))))
        head = f" head_lr={config.head_lr:g}" if getattr(config, "head_lr", None) else ""
        return f"{self.stage} {config.backbone} {data} {self.label}{head} seed {self.seed}"

    def folder(self, store: Path) -> JobFolder:
        return JobFolder(store / self.stage / self.id)


@dataclass
class Plan:
    """Jobs in an order in which upstream comes first."""

    jobs: dict[str, Job]
    experiments: list[Experiment]
    scale: str
    protocol: str
    variant: str
    seeds: int
    settings: tuple[str, ...] = ()  # the --set words, for the command that recomputes
    only: tuple[str, ...] = ()  # the --cells words

    @property
    def naive(self) -> int:
        return sum(job.asked for job in self.jobs.values())

    def downstream(self) -> dict[str, list[Job]]:
        """For each job what builds on it directly, as the plan stands now."""
        found: defaultdict[str, list[Job]] = defaultdict(list)  # an upstream may have been left out already
        for job in self.jobs.values():
            for one in job.upstream:
                found[one].append(job)
        return found

    def leave_out(self, job_ids: Iterable[str]) -> None:
        """These jobs go, and upstream of them what no other job or cell needs."""
        for job_id in job_ids:
            gone = self.jobs.pop(job_id)
            downstream = self.downstream()
            self.leave_out([one for one in gone.upstream if not self.jobs[one].uses and not downstream[one]])


def _check_sets(settings: Overlay, experiments: list[Experiment]) -> None:
    """A setting must reach a stage, and must not be what tells an experiment's cells apart."""
    stages = sorted({stage for experiment in experiments for stage in experiment.recipe})
    for key in settings:
        stage = key.split(".")[0]
        if stage not in stages:
            named = ", ".join(experiment.name for experiment in experiments)
            raise ConfigError(f"--set {key}: no stage {stage!r} in {named}; {nearest(stage, stages)}")
        for experiment in experiments:
            own = {name for cell in experiment.all_cells for name in _told(cell)}
            if any(key == name or key.startswith(f"{name}.") or name.startswith(f"{key}.") for name in own):
                raise ConfigError(f"--set {key}: this is what the cells of {experiment.name} differ in")


def _told(cell: Cell) -> Iterator[str]:
    """The keys that the cell sets itself; a share of what lies below leaves that open."""
    for values in (cell.set, *cell.protocols.values()):
        yield from (
            key for key, value in (values.items() if isinstance(values, dict) else ()) if not str(value).endswith("%")
        )


def make_plan(
    experiments: list[Experiment],
    scale: str,
    protocol: str,
    seeds: int = 1,
    settings: Overlay | None = None,
    only: Iterable[str] = (),
) -> Plan:
    """All jobs of the experiments' cells (of those whose keys are in `only`, where it names any), each once.

    ConfigError on anything that does not fit the schemas, and on a cell that none of the experiments has.
    """
    settings, only = settings or {}, tuple(only)
    _check_sets(settings, experiments)
    keys = [cell.key for experiment in experiments for cell in experiment.all_cells]
    for key in only:
        if key not in keys:
            raise ConfigError(f"no cell {key!r} in {', '.join(one.name for one in experiments)}; {nearest(key, keys)}")
    layers = overlay("scales", scale), overlay("protocols", protocol), settings
    experiments = [experiment.under(protocol) for experiment in experiments]
    words = tuple(f"{key}={json.dumps(value)}" for key, value in sorted(settings.items()))
    plan = Plan({}, experiments, scale, protocol, variant_of(settings), seeds, words, only)
    label = Labels(*layers)
    for experiment in experiments:
        for cell in experiment.all_cells:
            if not cell.runs or (only and cell.key not in only):
                continue
            stages = resolve(experiment, cell, *layers)
            for seed in range(seeds):
                _add_chain(plan, experiment, cell, stages, seed, label(stages.get(ENCODER_STAGE), experiment, cell))
    return plan


class Labels:
    """An encoder in a few words: the method, and where its pretraining differs from what scale and protocol make of that method
    on that data."""

    def __init__(self, scale: Overlay, protocol: Overlay, settings: Overlay):
        self.layers = scale, protocol, settings
        self.usual: dict[tuple[str, str], dict[str, Any]] = {}

    def __call__(self, encoder: Any, experiment: Experiment, cell: Cell) -> str:
        if encoder is None or cell.method is None:
            return "random init"
        name = undot(cell.set).get(ENCODER_STAGE, {}).get("data", {}).get("name")
        usual = self._usual(cell.method, name or dataset_name(experiment.recipe[ENCODER_STAGE]))
        name = encoder.method.short_label or cell.method.replace("_", " ")
        differing = [
            f"{key.rpartition('.')[2]}={value}" for key, value in _leaves(identity(encoder)).items()
            if not key.startswith(("data.", "backbone")) and usual.get(key) != value
        ]  # fmt: skip
        return " ".join([name, *(word for word in differing if word != name)])

    def _usual(self, method: str, data: str) -> dict[str, Any]:
        if (method, data) not in self.usual:
            cell = Cell(key="", row="", column="", report=f"{ENCODER_STAGE}.loss", method=method)
            recipe = {ENCODER_STAGE: {"data": {"name": data}} if data else {}}
            bare = Experiment(name="", title="", source="", topic="", unit="", recipe=recipe, cells=(cell,))
            config = resolve(bare, cell, *self.layers)[ENCODER_STAGE]
            self.usual[method, data] = _leaves(identity(config)) if config else {}
        return self.usual[method, data]


def _leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _add_chain(
    plan: Plan, experiment: Experiment, cell: Cell, stages: dict[str, Strict | None], seed: int, label: str
) -> None:
    """The cell's jobs for one seed: the pretraining, if any, and the stage that the cell reports."""
    upstream: tuple[str, ...] = ()
    encoder: Any = stages.get(ENCODER_STAGE)
    for stage in dict.fromkeys((ENCODER_STAGE, cell.stage)):
        config: Any = stages.get(stage)
        if config is None:
            continue
        if encoder and config.backbone != encoder.backbone:
            raise ConfigError(
                f"{experiment.name} {cell.key}: {stage} evaluates a {config.backbone}, but {encoder.backbone} is pretrained"
            )
        job = Job(stage, config, upstream, seed, label, plan.scale, plan.protocol)
        job = plan.jobs.setdefault(job.id, job)
        job.asked += 1
        job.experiments.add(experiment.name)
        upstream = (job.id,)
    job.uses.add(Use(experiment.name, cell.key, cell.metric, plan.scale, plan.protocol, plan.variant))
