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
RANDOM = "random"  # methods/random.yaml: cells without a pretraining


def data_keys() -> list[str]:
    """A recipe's data as overlays name it: imagenet1k, imagenet1k/10percent."""
    subsets = ("", *(f"/{subset}" for subset in get_args(Subset)))
    return [*(name + subset for name in DATASETS for subset in subsets), *DETECTION_DATASETS]


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML 1.1 without numbers in base 60 (`12:00:00` is a text, not 43200), with `1e-3`, without duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in seen and key.value != "<<":
                    first = f" (first in line {seen[key.value]})" if seen[key.value] != line else ""
                    problem = f"the key {key.value!r} appears twice{first}"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen[key.value] = line
        values: dict[Any, Any] = super().construct_mapping(node, deep)
        return values


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_EXPONENT = "[eE][-+]?[0-9]+"
_FLOAT = rf"""[-+]?([0-9][0-9_]*(\.[0-9]*({_EXPONENT})?|{_EXPONENT})|\.[0-9]+({_EXPONENT})?|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"""
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_FLOAT), list("-+0123456789."))


class NotYaml(ValueError):
    """Text that is not YAML: `problem` in a few words, in `line` (from 1; 0: unknown)."""

    def __init__(self, problem: str, line: int = 0):
        super().__init__(problem)
        self.problem, self.line = problem, line


def parse_yaml(text: str) -> Any:
    """The text's value, by the rules of every YAML file of the suite. Raises NotYaml."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise NotYaml(problem, mark.line + 1 if mark else 0) from None
    except RecursionError:
        raise NotYaml("it is nested too deeply") from None
    except (ValueError, OverflowError) as error:  # a date of month 13, a number of thousands of digits
        raise NotYaml(str(error).partition(";")[0]) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises ConfigError, one line with file and line number, for anything else."""
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: cannot be read: it is no text in UTF-8") from None
    except NotYaml as error:
        position = f"{path}:{error.line}" if error.line else str(path)
        kind = "" if "appears twice" in error.problem else "not YAML: "
        raise ConfigError(f"{position}: {kind}{error.problem}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        kinds = {list: "a list", str: "a text", bool: "true or false"}
        kind = kinds.get(type(values), "a single value")
        raise ConfigError(f"{path}: expected a mapping (lines of `key: value`), found {kind}")
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
        "methods": [*METHODS, RANDOM],
        "datasets": data_keys(),
        "backbones": list(get_args(Backbone)),
        "detection": ["datasets", "backbones"],
    }
    notes = ["spread", "undecidable"] if kind == "scales" else []  # scale_notes.py
    _check_keys(path, values, [*STAGES, *sections, "gpus", *notes])
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
