"""Overlays -> configs: merge the layers of one cell in order, parse each stage by its schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

from jigclu.config import (
    STAGES,
    ConfigError,
    DenseConfig,
    DetectConfig,
    FinetuneConfig,
    KnnConfig,
    LinearConfig,
    PretrainConfig,
    nearest,
    parse,
)
from orchestrate.planning.experiments import Cell, Experiment
from orchestrate.planning.overlays import RANDOM, NotYaml, overlay, parse_yaml
from orchestrate.planning.settings import Overlay, check_apart, merge, undot

StageConfig = PretrainConfig | LinearConfig | FinetuneConfig | KnnConfig | DetectConfig | DenseConfig
# The stage that trains the encoder of the others, if the recipe has it.
ENCODER_STAGE = "pretrain"


def parse_sets(words: Iterable[str]) -> Overlay:
    """`--set pretrain.epochs=5` as dotted settings, values read as YAML. Raises ConfigError for a malformed one."""
    settings: Overlay = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or "." not in key:
            raise ConfigError(f"--set {word!r}: write stage.key=value, for example pretrain.epochs=5")
        if key.split(".", 1)[0] not in STAGES:
            raise ConfigError(
                f"--set {word!r}: unknown stage {key.split('.', 1)[0]!r}; {nearest(key.split('.', 1)[0], list(STAGES))}"
            )
        if not all(key.split(".")):
            raise ConfigError(f"--set {word!r}: an empty name in {key!r}; write stage.key=value")
        read = _read_value(word, value)
        if key in settings and json.dumps(settings[key]) != json.dumps(read):
            raise ConfigError(f"--set {key} is given twice, with different values; give it once")
        settings[key] = read
    check_apart("--set", settings)
    return settings


def _read_value(word: str, value: str) -> Any:
    """The value of a `--set` word. Raises ConfigError."""
    if not value.strip():
        raise ConfigError(f"--set {word!r}: no value after the =; write null for none")
    try:
        read = parse_yaml(value)
        json.dumps(read)  # YAML knows dates, configs do not
    except TypeError:
        kind = type(read).__name__
        raise ConfigError(f"--set {word!r}: {value!r} is a {kind}; write a number, a text or a list") from None
    except (NotYaml, ValueError, RecursionError) as error:  # a list that contains itself
        raise ConfigError(f"--set {word!r}: not a YAML value: {error}") from None
    return read


def variant_of(settings: Overlay) -> str:
    """The overrides that change results, as one line; "" without any. Runtime settings change no result."""
    return " ".join(f"{key}={json.dumps(value)}" for key, value in sorted(settings.items()) if ".runtime." not in key)


def resolve(
    experiment: Experiment, cell: Cell, scale: Overlay, protocol: Overlay, settings: Overlay
) -> dict[str, StageConfig | None]:
    """The configs of one cell's stages; None for the pretraining of a cell without a method.

    Schema defaults <- recipe <- method <- scale <- protocol <- --set <- cell. A scale may also replace the recipe's
    data set and backbone (`datasets`, `backbones`; those under `detection` if the recipe has the stage detect). Method,
    scale and protocol may hold values `for_data` one of the recipe's data sets, scale and protocol also values for one
    method (`methods`); each goes over the rest of its own layer. An evaluation uses the data and backbone of the
    pretraining, as resolved, unless its own layers name others.

    Raises ConfigError, with experiment and cell, for values that do not fit a stage's schema.
    """

    def values_of(stage: str) -> Overlay:
        return apply_layers(stage, experiment, cell, scale, protocol, settings)

    try:
        encoder = values_of(ENCODER_STAGE) if ENCODER_STAGE in experiment.recipe else {}
        stages = {ENCODER_STAGE: encoder if cell.method else {}}
        if cell.stage != ENCODER_STAGE:
            stages[cell.stage] = inherit_encoder(values_of(cell.stage), encoder)
        return {stage: parse(stage, values) if values else None for stage, values in stages.items()}
    except ConfigError as error:
        which = f" ({experiment.name} {cell.key}, {cell.method or 'random weights'})" if experiment.name else ""
        raise ConfigError(f"{error}{which}") from None


def apply_layers(
    stage: str, experiment: Experiment, cell: Cell, scale: Overlay, protocol: Overlay, settings: Overlay
) -> Overlay:
    """The values of one stage: the recipe's, the layers' over them, the cell's own last."""
    recipe, own = _split_cell(stage, experiment, cell)
    values = _stand_in(recipe, scale | scale.get("detection", {}) if "detect" in experiment.recipe else scale)
    for layer in layers_for(stage, _data_key(stage, experiment, cell), cell, scale, protocol, settings):
        values = merge(values, layer)
    return _apply_cell(values, own, stage)


def layers_for(
    stage: str, data: str, cell: Cell, scale: Overlay, protocol: Overlay, settings: Overlay
) -> Iterator[Overlay]:
    """What goes over the recipe of a stage, weakest first. Method, scale and protocol are each followed by their own
    values for the data set (`data`: as `for_data` names it) and for the method."""
    name = cell.method or RANDOM
    method = overlay("methods", name)
    kind = method.get(ENCODER_STAGE, {}).get("method", {}).get("name", name)
    for layer in (method, scale, protocol):
        for part in (layer, layer.get("for_data", {}).get(data, {}), layer.get("methods", {}).get(kind, {})):
            yield part.get(stage) or {}
    yield undot(settings).get(stage) or {}


def inherit_encoder(values: Overlay, encoder: Overlay) -> Overlay:
    """An evaluation's values, over the data and backbone of the pretraining. If it names another data set, none of the
    pretraining's data settings apply."""
    inherited: Overlay = {key: encoder[key] for key in ("data", "backbone") if key in encoder}
    if dataset_name(values) not in ("", dataset_name(encoder)):
        inherited.pop("data", None)
    return merge(inherited, values)


def _split_cell(stage: str, experiment: Experiment, cell: Cell) -> tuple[Overlay, Overlay]:
    """(the recipe's values of the stage, the cell's own). A cell's data set and backbone count as the recipe's, so that
    a scale can replace them as well."""
    named, own = _take(undot(cell.set).get(stage) or {}, ("data", "name"), ("backbone",))
    return merge(experiment.recipe.get(stage, {}), named), own


def _data_key(stage: str, experiment: Experiment, cell: Cell) -> str:
    """The stage's data as `for_data` names it: imagenet1k, or imagenet1k/10percent."""
    data: Overlay = {}
    for name in dict.fromkeys((ENCODER_STAGE, stage)):
        recipe, own = _split_cell(name, experiment, cell)
        data = merge(data, merge(recipe.get("data") or {}, own.get("data") or {}))
    return "/".join(filter(None, (data.get("name"), data.get("subset"))))


def dataset_name(values: Overlay) -> str:
    """The name of the data set in a stage's values, or ""."""
    data = values.get("data")
    return str(data.get("name", "")) if isinstance(data, dict) else ""


def _take(values: Overlay, *paths: tuple[str, ...]) -> tuple[Overlay, Overlay]:
    """(the values at the paths, the rest)."""
    taken, rest = Overlay(), deepcopy(values)
    for *parents, last in paths:
        node = rest
        for parent in parents:
            node = node.get(parent) or {}
        if last in node:
            taken = merge(taken, undot({".".join((*parents, last)): node.pop(last)}))
    return taken, rest


def _apply_cell(values: Overlay, own: Overlay, path: str) -> Overlay:
    """merge(), except that `40%` is that share of the value underneath, rounded, at least 1."""
    merged = merge(values, own)
    for key, value in own.items():
        if isinstance(value, dict):
            merged[key] = _apply_cell(values.get(key) or {}, value, f"{path}.{key}")
        elif isinstance(value, str) and re.fullmatch(r"\d{1,4}%", value):
            fields = STAGES[path].model_fields if path in STAGES else {}
            if path in STAGES and key not in fields:
                continue  # the schema names the valid keys
            whole = values.get(key, fields[key].default if key in fields else None)
            if not isinstance(whole, int):
                raise ConfigError(f"{path}.{key}: {value} of {whole!r}: only a whole number has shares")
            merged[key] = max(1, round(whole * int(value[:-1]) / 100))
    return merged


def _stand_in(recipe: Overlay, scale: Overlay) -> Overlay:
    """The recipe with the scale's data set and backbone instead of its own."""
    data = scale.get("datasets", {}).get(recipe.get("data", {}).get("name"))
    backbone = scale.get("backbones", {}).get(recipe.get("backbone"))
    return merge(recipe, {**({"data": data} if data else {}), **({"backbone": backbone} if backbone else {})})
