"""The YAML files under experiments/, strictly read, and their overlays: methods/, scales/, protocols/."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, get_args

import yaml

from jigclu.config import DATASETS, STAGES, Backbone, ConfigError, Subset, nearest
from jigclu.config.detection import DETECTION_DATASETS
from jigclu.config.methods import METHODS

ROOT = Path(__file__).resolve().parents[2] / "experiments"
Overlay = dict[str, Any]


def data_keys() -> list[str]:
    """A recipe's data as overlays name it: imagenet1k, imagenet1k/10percent."""
    subsets = ("", *(f"/{subset}" for subset in get_args(Subset)))
    return [*(name + subset for name in DATASETS for subset in subsets), *DETECTION_DATASETS]


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML 1.1 without integers in base 60: `12:00:00` is a text, not 43200."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:int"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789"))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises ConfigError, one line with file and line number, for anything else."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        position = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{position}: not YAML: {getattr(error, 'problem', error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping, found a {type(values).__name__}")
    return values


def experiment_files() -> list[Path]:
    """The experiments' files in the paper's order: tables, then figures."""
    return sorted(ROOT.glob("*.yaml"), key=lambda path: (path.stem.rstrip("0123456789") != "table", path.stem))


def overlays(kind: str) -> list[str]:
    """Names of the overlays of a kind: `scales`, `protocols` or `methods`."""
    return sorted(path.stem for path in (ROOT / kind).glob("*.yaml"))


@cache
def overlay(kind: str, name: str) -> Overlay:
    """The overlay's mapping. Raises ConfigError, naming the valid choices, for an unknown overlay or key."""
    if name not in overlays(kind):
        raise ConfigError(f"unknown {kind[:-1]} {name!r}; {nearest(name, overlays(kind))}")
    path = ROOT / kind / f"{name}.yaml"
    values = read_yaml(path)
    sections = {
        "for_data": data_keys(),
        "methods": list(METHODS),
        "datasets": data_keys(),
        "backbones": list(get_args(Backbone)),
    }
    _check_keys(path, values, [*STAGES, *sections, "gpus"])
    for section, names in sections.items():
        _check_keys(path, values.get(section, {}), names, section)
    for section in ("for_data", "methods"):
        for name, stages in values.get(section, {}).items():
            _check_keys(path, stages, list(STAGES), f"{section}.{name}")
    return values


def _check_keys(path: Path, values: Any, names: list[str], parent: str = "") -> None:
    for key in values if isinstance(values, dict) else ():
        if key not in names:
            raise ConfigError(
                f"{path.name}: unknown key {'.'.join(filter(None, (parent, str(key))))}; {nearest(str(key), names)}"
            )
