"""Nested settings of experiment files: dotted keys, merging, and whether they have a schema's shape.

A mapping where a single value belongs, or the reverse, must be named before layers are merged: afterwards nobody can say
which file it came from. Unknown keys and wrong values are named by the schema, once everything is merged.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from jigclu.config import STAGES, ConfigError, nearest

Overlay = dict[str, Any]
NAMES = ("name", "subset", "backbone")  # texts by which layers are chosen


def merge(base: Overlay, over: Overlay) -> Overlay:
    """`over` merged into a copy of `base`: mappings merge, everything else replaces. Neither argument is changed."""
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


def mapping(where: str, key: str, value: Any) -> Overlay:
    """The value, or {} for none. Raises ConfigError if it is anything but a mapping."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {key}: a mapping (lines of `key: value`) is expected{got(value)}")
    return value


def check_stages(where: str, prefix: str, stages: Overlay) -> None:
    """Raises ConfigError, naming file and key, unless these stages' settings have their schemas' shapes."""
    for stage, values in stages.items():
        if stage not in STAGES:
            raise ConfigError(f"{where}: unknown stage {stage!r}; {nearest(str(stage), list(STAGES))}")
        check(where, f"{prefix}{stage}", [STAGES[stage]], values)


def check_dotted(where: str, settings: Overlay) -> None:
    """The same for dotted keys."""
    check_apart(where, settings)
    for key, value in settings.items():
        check_stages(where, "", undot({key: value}))


def check_apart(where: str, settings: Overlay) -> None:
    """Raises ConfigError if two keys set one value, such as data.name and data: {name: ...}: which one applies is unclear."""
    for key in settings:
        for outer in (other for other in settings if key.startswith(f"{other}.")):
            inside: Any = settings[outer]
            for part in key.removeprefix(f"{outer}.").split("."):
                if not isinstance(inside, dict):
                    raise ConfigError(f"{where} sets {outer} and {key}; write one of them")
                if part not in inside:
                    break
                inside = inside[part]
            else:
                raise ConfigError(f"{where} sets {outer} and {key}; write one of them")


def got(value: Any) -> str:
    """` (got ...)` for messages, short."""
    if isinstance(value, dict | list) and len(value) > 3:
        return f" (got a {type(value).__name__} of {len(value)})"
    return " (got nothing)" if value is None else f" (got {value!r:.40})"


def check(where: str, path: str, models: list[type[BaseModel]], values: Any) -> None:
    """The same for the settings at `path`, which must fit one of the models."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: {path}: a mapping (lines of `key: value`) is expected (got {values!r:.40})")
    for key, value in values.items():
        kinds = [kind for model in models if key in model.model_fields for kind in _kinds(model, key)]
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if inner and not (value is None and type(None) in kinds):
            check(where, f"{path}.{key}", inner, value)
        elif key in NAMES and kinds and not isinstance(value, str | None):
            raise ConfigError(f"{where}: {path}.{key}: a text is expected{got(value)}")
        elif isinstance(value, dict) and kinds and not any(get_origin(kind) is dict for kind in kinds):
            raise ConfigError(f"{where}: {path}.{key}: a single value or a list is expected{got(value)}")


def _kinds(model: type[BaseModel], key: str) -> Iterator[Any]:
    """The types that a field may hold: members of unions, without Annotated."""
    pending = [model.model_fields[key].annotation]
    while pending:
        kind = pending.pop()
        if get_origin(kind) is dict or isinstance(kind, type) or not (inside := get_args(kind)):
            yield kind
        else:
            pending += inside


def contains_itself(value: Any) -> bool:
    """Whether a YAML value is part of itself, by an anchor. Without recursion: it may be nested deeply."""
    open_, finished, pending = set[int](), set[int](), [(value, False)]
    while pending:
        item, left = pending.pop()
        if not isinstance(item, dict | list) or id(item) in finished:
            continue
        if left:
            open_.discard(id(item))
            finished.add(id(item))
        elif id(item) in open_:
            return True
        else:
            open_.add(id(item))
            inside = item.values() if isinstance(item, dict) else item
            pending += [(item, True), *((part, False) for part in inside)]
    return False
