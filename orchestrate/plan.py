"""Experiments -> jobs: overlays resolved, jobs named by content, shared ones found, cost estimated. Touches no data, no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from jigclu.config import STAGES, ConfigError, Strict, identity, nearest, parse
from jigclu.training.folder import JobFolder
from orchestrate.experiments import Cell, Experiment, Overlay, overlay

# The stage whose encoder the others look at, where the recipe has it.
ENCODER_STAGE = "pretrain"


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
        return f"{self.stage} {config.backbone} {config.data.name} {self.label} seed {self.seed}"

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

    @property
    def naive(self) -> int:
        return sum(job.asked for job in self.jobs.values())

    def downstream(self, job_id: str) -> Iterator[Job]:
        for job in self.jobs.values():
            if job_id in job.upstream:
                yield job


def merge(base: Overlay, over: Overlay) -> Overlay:
    """`over` laid on `base`: mappings merge, everything else replaces. Neither is changed."""
    merged = deepcopy(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = deepcopy(value)
    return merged


def undot(settings: Overlay) -> Overlay:
    """{"pretrain.method.m": 3} -> {"pretrain": {"method": {"m": 3}}}."""
    tree: Overlay = {}
    for dotted, value in settings.items():
        *parents, last = dotted.split(".")
        leaf: Overlay = {last: value}
        for parent in reversed(parents):
            leaf = {parent: leaf}
        tree = merge(tree, leaf)
    return tree


def parse_sets(words: Iterable[str]) -> Overlay:
    """`--set pretrain.epochs=5` words as dotted settings, values read as YAML. ConfigError on a malformed one."""
    settings: Overlay = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or "." not in key:
            raise ConfigError(f"--set {word!r}: write stage.key=value, for example pretrain.epochs=5")
        if key.split(".", 1)[0] not in STAGES:
            raise ConfigError(
                f"--set {word!r}: unknown stage {key.split('.', 1)[0]!r}; {nearest(key.split('.', 1)[0], list(STAGES))}"
            )
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {word!r}: not a YAML value: {getattr(error, 'problem', error)}") from None
    return settings


def variant_of(settings: Overlay) -> str:
    """The overrides that change results, as one line; "" where there are none. Runtime settings change none."""
    return " ".join(f"{key}={json.dumps(value)}" for key, value in sorted(settings.items()) if ".runtime." not in key)


def resolve(
    experiment: Experiment, cell: Cell, scale: Overlay, protocol: Overlay, settings: Overlay
) -> dict[str, Strict | None]:
    """The stages of one cell's recipe with their schemas filled; None for a stage that the cell takes out.

    Schema defaults <- recipe <- scale <- protocol <- cell <- --set. A scale may also say which data set and backbone stand
    in for the recipe's (`datasets`, `backbones`). An evaluation looks at the data and backbone of the pretraining, as
    resolved, unless its own layers say otherwise.
    """
    cell_layer = undot(cell.set)
    layers = (scale, protocol, cell_layer, undot(settings))

    def laid(stage: str) -> Overlay:
        values = _stand_in(experiment.recipe[stage], scale)
        for layer in layers:
            values = merge(values, layer.get(stage) or {})
        return values

    encoder = laid(ENCODER_STAGE) if ENCODER_STAGE in experiment.recipe else {}
    shared: Overlay = {key: encoder[key] for key in ("data", "backbone") if key in encoder}
    taken_out = {stage for stage, values in cell_layer.items() if values is None}
    return {
        stage: None
        if stage in taken_out
        else parse(stage, encoder if stage == ENCODER_STAGE else merge(shared, laid(stage)))
        for stage in experiment.recipe
    }


def _stand_in(recipe: Overlay, scale: Overlay) -> Overlay:
    """The recipe with the scale's data set and backbone in place of its own."""
    data = scale.get("datasets", {}).get(recipe.get("data", {}).get("name"))
    backbone = scale.get("backbones", {}).get(recipe.get("backbone"))
    return merge(recipe, {**({"data": data} if data else {}), **({"backbone": backbone} if backbone else {})})


def _check_sets(settings: Overlay, experiments: list[Experiment]) -> None:
    """A setting must reach a stage, and must not be what tells an experiment's cells apart."""
    stages = sorted({stage for experiment in experiments for stage in experiment.recipe})
    for key in settings:
        stage = key.split(".")[0]
        if stage not in stages:
            named = ", ".join(experiment.name for experiment in experiments)
            raise ConfigError(f"--set {key}: no stage {stage!r} in {named}; {nearest(stage, stages)}")
        for experiment in experiments:
            own = {name for cell in experiment.all_cells for name, value in cell.set.items() if value is not None}
            if any(key == name or key.startswith(f"{name}.") or name.startswith(f"{key}.") for name in own):
                raise ConfigError(f"--set {key}: this is what the cells of {experiment.name} differ in")


def make_plan(
    experiments: list[Experiment], scale: str, protocol: str, seeds: int = 1, settings: Overlay | None = None
) -> Plan:
    """All jobs of the experiments' cells, each once. ConfigError on anything that does not fit the schemas."""
    settings = settings or {}
    _check_sets(settings, experiments)
    scale_layer, protocol_layer = overlay("scales", scale), overlay("protocols", protocol)
    words = tuple(f"{key}={json.dumps(value)}" for key, value in sorted(settings.items()))
    plan = Plan({}, experiments, scale, protocol, variant_of(settings), seeds, words)
    for experiment in experiments:
        for cell in experiment.all_cells:
            stages = resolve(experiment, cell, scale_layer, protocol_layer, settings)
            for seed in range(seeds):
                _add_chain(plan, experiment, cell, stages, seed)
    return plan


def _add_chain(plan: Plan, experiment: Experiment, cell: Cell, stages: dict[str, Strict | None], seed: int) -> None:
    """The cell's jobs for one seed: the pretraining, if any, and the stage that the cell reports."""
    upstream: tuple[str, ...] = ()
    encoder: Any = stages.get(ENCODER_STAGE)
    label = f"m={encoder.method.m}" if encoder else "random init"
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
