"""Experiments -> jobs: resolve the overlays, name each job by its content, share equal jobs. No data, no torch."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jigclu.config import ConfigError, PretrainConfig, identity, nearest
from jigclu.job_folder import JobFolder
from orchestrate.planning.experiments import Cell, Experiment, find_or_none, load_all
from orchestrate.planning.overlays import overlay
from orchestrate.planning.resolve import ENCODER_STAGE, StageConfig, dataset_name, resolve, variant_of
from orchestrate.planning.settings import Overlay, undot

DEFAULT_PROTOCOL = "official"
MOST_RESULTS = 20_000  # cells times seeds of one command


@dataclass(frozen=True)
class Use:
    """A cell whose value is this job's result."""

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
    config: StageConfig
    upstream: tuple[str, ...]
    seed: int
    label: str  # the encoder: `m=2`, or `random init`
    scale: str
    protocol: str
    experiments: set[str] = field(default_factory=set)
    uses: set[Use] = field(default_factory=set)
    demand: int = 0  # how many cells (times seeds) need it: a suite without sharing would run it that often

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
        """`pretrain resnet50 imagenet100 m=2 seed 0`, as shown in squeue and MLflow."""
        config = self.config
        data = " ".join(filter(None, (config.data.name, getattr(config.data, "subset", None))))
        head_lr = getattr(config, "head_lr", None)
        head = f" head_lr={head_lr:g}" if head_lr else ""
        return f"{self.stage} {config.backbone} {data} {self.label}{head} seed {self.seed}"

    def folder(self, store: Path) -> JobFolder:
        return JobFolder(store / self.stage / self.id)


@dataclass
class Plan:
    """Jobs, each after its upstream jobs."""

    jobs: dict[str, Job]
    experiments: list[Experiment]
    scale: str
    protocol: str
    variant: str
    seeds: int
    settings: tuple[str, ...] = ()  # the values of --set, for the command that recomputes
    only: tuple[str, ...] = ()  # the values of --cells
    first_seed: int = 0

    @property
    def naive(self) -> int:
        return sum(job.demand for job in self.jobs.values())

    def downstream(self) -> dict[str, list[Job]]:
        """The direct downstream jobs of each job."""
        found: defaultdict[str, list[Job]] = defaultdict(list)  # an upstream job may have been left out already
        for job in self.jobs.values():
            for upstream_id in job.upstream:
                found[upstream_id].append(job)
        return found

    def leave_out(self, job_ids: Iterable[str]) -> None:
        """Remove these jobs, and their upstream jobs that no other job or cell needs."""
        for job_id in job_ids:
            removed = self.jobs.pop(job_id)
            downstream = self.downstream()
            self.leave_out([up for up in removed.upstream if not self.jobs[up].uses and not downstream[up]])

    @property
    def command(self) -> str:
        """The command line that computes the plan's cells (in a store that lacks them)."""
        names = [experiment.name for experiment in self.experiments]
        return command_line(names, self.scale, self.protocol, self.seeds, self.settings, self.only, self.first_seed)


def command_line(
    experiments: Iterable[str],
    scale: str,
    protocol: str,
    seeds: int = 1,
    settings: Iterable[str] = (),
    cells: Iterable[str] = (),
    first_seed: int = 0,
) -> str:
    """The `jigclu run` command line that computes these cells. The default protocol is not written."""
    words = ["jigclu", "run", *experiments, "--scale", scale]
    words += ["--protocol", protocol] if protocol != DEFAULT_PROTOCOL else []
    words += ["--seeds", str(seeds)] if seeds > 1 else []
    words += ["--first-seed", str(first_seed)] if first_seed else []
    words += [word for setting in settings for word in ("--set", setting)]
    cells = list(cells)
    return shlex.join([*words, "--cells", *cells] if cells else words)


def _check_sets(settings: Overlay, experiments: list[Experiment]) -> None:
    """A setting must belong to a stage of the experiments, and must not be what their cells differ in."""
    stages = sorted({stage for experiment in experiments for stage in experiment.recipe})
    for key in settings:
        stage = key.split(".")[0]
        if stage not in stages:
            names = ", ".join(experiment.name for experiment in experiments)
            raise ConfigError(f"--set {key}: no stage {stage!r} in {names}; {nearest(stage, stages)}")
        if key in (f"{ENCODER_STAGE}.method", f"{ENCODER_STAGE}.method.name"):
            raise ConfigError(
                f"--set cannot change {key}: the method belongs to the cell (--dry-run lists cells; choose with --cells)"
            )
        for experiment in experiments:
            own = {name for cell in experiment.all_cells for name in _own_keys(cell)}
            if any(key == name or key.startswith(f"{name}.") or name.startswith(f"{key}.") for name in own):
                raise ConfigError(
                    f"--set cannot change {key}: the cells of {experiment.name} differ in this value; "
                    "choose cells with --cells"
                )


def _own_keys(cell: Cell) -> Iterator[str]:
    """The keys that the cell sets itself. A share (40%) is left out: it scales a value that --set may still change."""
    for values in (cell.set, *cell.protocols.values()):
        yield from (
            key for key, value in (values.items() if isinstance(values, dict) else ()) if not str(value).endswith("%")
        )


def _unknown_cell(key: str, keys: list[str], experiments: list[Experiment], scale: str) -> ConfigError:
    names = ", ".join(experiment.name for experiment in experiments)
    parts = [part.strip() for part in key.split(",")]
    if len(parts) > 1 and all(part in keys for part in parts):
        return ConfigError(f"no cell {key!r}: separate cells by spaces, --cells {shlex.join(parts)}")
    others = [experiment for experiment in load_all().values() if key in [cell.key for cell in experiment.all_cells]]
    if lack := [experiment for experiment in experiments if experiment.name in {other.name for other in others}]:
        there = sorted({cell.key for experiment in lack for cell in experiment.all_cells})
        return ConfigError(f"no cell {key!r} in {lack[0].name} at scale {scale}; {nearest(key, there)}")
    if others:
        return ConfigError(f"no cell {key!r} in {names}; {', '.join(other.name for other in others)} has it")
    if find_or_none(key):
        return ConfigError(f"no cell {key!r} in {names}; it is an experiment: write experiments before the options")
    return ConfigError(f"no cell {key!r} in {names}; {nearest(key, sorted(set(keys)))}")


def make_plan(
    experiments: list[Experiment],
    scale: str,
    protocol: str,
    seeds: int = 1,
    settings: Overlay | None = None,
    only: Iterable[str] = (),
    first_seed: int = 0,
) -> Plan:
    """All jobs of the experiments' cells, each once, with seeds first_seed ... first_seed + seeds - 1; with `only`, of the
    cells with these keys.

    Raises ConfigError for values that do not fit the schemas, and for a cell key that no experiment has.
    """
    settings, only = settings or {}, tuple(only)
    _check_sets(settings, experiments)
    layers = overlay("scales", scale), overlay("protocols", protocol), settings
    for experiment in experiments:
        experiment.require_distinct(protocol)
    experiments = [experiment.under(protocol, scale) for experiment in experiments]
    keys = [cell.key for experiment in experiments for cell in experiment.all_cells]
    for key in only:
        if key not in keys:
            raise _unknown_cell(key, keys, experiments, scale)
    count = seeds * sum(cell.runs for experiment in experiments for cell in experiment.all_cells)
    if count > MOST_RESULTS:
        raise ConfigError(
            f"{count} results in one command, at most {MOST_RESULTS} are planned at once; choose fewer --seeds or experiments"
        )
    set_values = tuple(f"{key}={json.dumps(value)}" for key, value in sorted(settings.items()))
    plan = Plan({}, experiments, scale, protocol, variant_of(settings), seeds, set_values, only, first_seed)
    label = Labels(*layers)
    for experiment in experiments:
        for cell in experiment.all_cells:
            if not cell.runs or (only and cell.key not in only):
                continue
            stages = resolve(experiment, cell, *layers)
            for seed in range(first_seed, first_seed + seeds):
                _add_chain(plan, experiment, cell, stages, seed, label(stages.get(ENCODER_STAGE), experiment, cell))
    return plan


class Labels:
    """A short label of an encoder: its method, and the values in which its pretraining differs from the usual ones of
    that method and data set at this scale and protocol."""

    def __init__(self, scale: Overlay, protocol: Overlay, settings: Overlay):
        self.layers = scale, protocol, settings
        self.usual: dict[tuple[str, str], dict[str, Any]] = {}

    def __call__(self, encoder: StageConfig | None, experiment: Experiment, cell: Cell) -> str:
        if not isinstance(encoder, PretrainConfig) or cell.method is None:
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
    plan: Plan, experiment: Experiment, cell: Cell, stages: dict[str, StageConfig | None], seed: int, label: str
) -> None:
    """Add the cell's jobs for one seed: the pretraining, if any, and the stage that the cell reports."""
    upstream: tuple[str, ...] = ()
    encoder = stages.get(ENCODER_STAGE)
    for stage in dict.fromkeys((ENCODER_STAGE, cell.stage)):
        config = stages.get(stage)
        if config is None:
            continue
        if encoder and config.backbone != encoder.backbone:
            raise ConfigError(
                f"{experiment.name} {cell.key}: {stage} evaluates a {config.backbone}, "
                f"but the pretraining trains a {encoder.backbone}"
            )
        calibrated = " BN calibrated" if getattr(config, "calibrate_bn", False) else ""
        job = Job(stage, config, upstream, seed, label + calibrated, plan.scale, plan.protocol)
        job = plan.jobs.setdefault(job.id, job)
        job.demand += 1
        job.experiments.add(experiment.name)
        upstream = (job.id,)
    job.uses.add(Use(experiment.name, cell.key, cell.metric, plan.scale, plan.protocol, plan.variant))
