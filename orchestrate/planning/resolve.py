"""Overlays -> configs: the layers of one cell merged in order, each stage parsed by its schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from copy import deepcopy

import yaml

from jigclu.config import STAGES, ConfigError, Strict, nearest, parse
from orchestrate.planning.experiments import Cell, Experiment
from orchestrate.planning.overlays import Overlay, overlay

# The stage whose encoder the others look at, where the recipe has it.
ENCODER_STAGE = "pretrain"


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
            json.dumps(settings[key])  # YAML has dates, configs have none
        except TypeError:
            raise ConfigError(
                f"--set {word!r}: {value!r} is a {type(settings[key]).__name__}, no number, text or list"
            ) from None
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {word!r}: not a YAML value: {getattr(error, 'problem', error)}") from None
    return settings


def variant_of(settings: Overlay) -> str:
    """The overrides that change results, as one line; "" where there are none. Runtime settings change none."""
    return " ".join(f"{key}={json.dumps(value)}" for key, value in sorted(settings.items()) if ".runtime." not in key)


def resolve(
    experiment: Experiment, cell: Cell, scale: Overlay, protocol: Overlay, settings: Overlay
) -> dict[str, Strict | None]:
    """The stages of one cell's recipe with their schemas filled; None for the pretraining of a cell without a method.

    Schema defaults <- recipe <- method <- scale <- protocol <- --set <- cell. A scale may also say which data set and backbone
    stand in for the recipe's (`datasets`, `backbones`). Method, scale and protocol may say what they change `for_data` one of the
    recipe's data sets, scale and protocol also what for one method (`methods`); each over the rest of its own layer. An evaluation
    looks at the data and backbone of the pretraining, as resolved, unless its own layers say otherwise.
    """
    method = overlay("methods", cell.method) if cell.method else {}
    kind = method.get(ENCODER_STAGE, {}).get("method", {}).get("name", cell.method)
    own = undot(cell.set)

    def recipe_of(stage: str) -> tuple[Overlay, Overlay]:
        # What a cell says of data set and backbone is the recipe's word: a scale's stand-ins hold for it as well.
        told, rest = _take(own.get(stage) or {}, ("data", "name"), ("backbone",))
        return merge(experiment.recipe.get(stage, {}), told), rest

    def data_of(stage: str) -> str:
        """As `for_data` names it: imagenet1k, or imagenet1k/10percent."""
        data: Overlay = {}
        for one in dict.fromkeys((ENCODER_STAGE, stage)):
            recipe, rest = recipe_of(one)
            data = merge(data, merge(recipe.get("data") or {}, rest.get("data") or {}))
        return "/".join(filter(None, (data.get("name"), data.get("subset"))))

    def laid(stage: str) -> Overlay:
        recipe, rest = recipe_of(stage)
        values = _stand_in(recipe, scale)
        for layer in (method, scale, protocol):
            for part in (
                layer,
                layer.get("for_data", {}).get(data_of(stage), {}),
                layer.get("methods", {}).get(kind, {}),
            ):
                values = merge(values, part.get(stage) or {})
        return _lay_cell(merge(values, undot(settings).get(stage) or {}), rest, stage)

    encoder = laid(ENCODER_STAGE) if ENCODER_STAGE in experiment.recipe else {}
    shared: Overlay = {key: encoder[key] for key in ("data", "backbone") if key in encoder}
    stages: dict[str, Strict | None] = {}
    for stage in dict.fromkeys((ENCODER_STAGE, cell.stage)):
        values = encoder if stage == ENCODER_STAGE else merge(shared, laid(stage))
        if stage != ENCODER_STAGE and dataset_name(laid(stage)) not in ("", dataset_name(encoder)):
            values["data"] = laid(stage)["data"]  # another data set: nothing of the pretraining's holds for it
        try:
            stages[stage] = parse(stage, values) if values and (stage != ENCODER_STAGE or cell.method) else None
        except ConfigError as error:
            which = f" ({experiment.name} {cell.key}, {cell.method or 'random weights'})" if experiment.name else ""
            raise ConfigError(f"{error}{which}") from None
    return stages


def dataset_name(values: Overlay) -> str:
    """The data set that a stage's values name, "" where they name none."""
    data = values.get("data")
    return str(data.get("name", "")) if isinstance(data, dict) else ""


def _take(values: Overlay, *paths: tuple[str, ...]) -> tuple[Overlay, Overlay]:
    """(what stands at the paths, the rest)."""
    taken, rest = Overlay(), deepcopy(values)
    for *parents, last in paths:
        here = rest
        for parent in parents:
            here = here.get(parent) or {}
        if last in here:
            taken = merge(taken, undot({".".join((*parents, last)): here.pop(last)}))
    return taken, rest


def _lay_cell(values: Overlay, own: Overlay, path: str) -> Overlay:
    """merge(), where `40%` is that share of the value below, rounded, at least 1."""
    laid = merge(values, own)
    for key, value in own.items():
        if isinstance(value, dict):
            laid[key] = _lay_cell(values.get(key) or {}, value, f"{path}.{key}")
        elif isinstance(value, str) and re.fullmatch(r"\d+%", value):
            whole = values.get(key, STAGES[path].model_fields[key].default if path in STAGES else None)
            if not isinstance(whole, int):
                raise ConfigError(f"{path}.{key}: {value} of {whole!r}: a share is of a whole number")
            laid[key] = max(1, round(whole * int(value[:-1]) / 100))
    return laid


def _stand_in(recipe: Overlay, scale: Overlay) -> Overlay:
    """The recipe with the scale's data set and backbone in place of its own."""
    data = scale.get("datasets", {}).get(recipe.get("data", {}).get("name"))
    backbone = scale.get("backbones", {}).get(recipe.get("backbone"))
    return merge(recipe, {**({"data": data} if data else {}), **({"backbone": backbone} if backbone else {})})
