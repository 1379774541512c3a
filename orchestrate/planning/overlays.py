"""The YAML files under experiments/, strictly read, and their overlays: methods/, scales/, protocols/."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, get_args

import yaml

from jigclu.config import DATASETS, STAGES, Backbone, ConfigError, DataConfig, Subset, nearest
from jigclu.config.detection import DETECTION_DATASETS, DetectionDataConfig
from jigclu.config.methods import METHODS
from orchestrate.planning.settings import Overlay, check, check_stages, contains_itself, mapping

ROOT = Path(__file__).resolve().parents[2] / "experiments"
RANDOM = "random"  # methods/random.yaml: cells without a pretraining
SECTIONS = {  # what an overlay of each kind may hold beside stages
    "methods": ("for_data",),
    "protocols": ("for_data", "methods"),
    # spread and undecidable: scale_notes.py
    "scales": ("for_data", "methods", "datasets", "backbones", "detection", "gpus", "spread", "undecidable"),
}
MOST_GPUS = 4096


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
    values = read_yaml_value(path)
    if values is None:
        return {}
    if not isinstance(values, dict):
        kinds = {list: "a list", str: "a text", bool: "true or false"}
        kind = kinds.get(type(values), "a single value")
        raise ConfigError(f"{path}: expected a mapping (lines of `key: value`), found {kind}")
    return values


def read_yaml_value(path: Path) -> Any:
    """Any YAML value. Raises ConfigError, one line with file and line number, for a file that is not YAML."""
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
    if contains_itself(values):
        raise ConfigError(f"{path}: a value contains itself, by an anchor")
    return values


def experiment_files() -> list[Path]:
    """The experiments' files in the paper's order: tables, then figures."""
    return sorted(ROOT.glob("[!.]*.yaml"), key=lambda path: (path.stem.rstrip("0123456789") != "table", path.stem))


def overlays(kind: str) -> list[str]:
    """Names of the overlays of a kind: `scales`, `protocols` or `methods`."""
    return sorted(path.stem for path in (ROOT / kind).glob("[!.]*.yaml"))


@cache
def overlay(kind: str, name: str) -> Overlay:
    """The overlay's mapping. Raises ConfigError, naming the valid choices, for an unknown overlay or key."""
    if name not in overlays(kind):
        raise ConfigError(f"unknown {kind[:-1]} {name!r}; {nearest(name, overlays(kind))}")
    path = ROOT / kind / f"{name}.yaml"
    where, read = path.name, read_yaml(path)
    _check_keys(path, read, [*STAGES, *SECTIONS[kind]])
    values = {key: part if key == "spread" else mapping(where, key, part) for key, part in read.items()}
    stages = {key: part for key, part in values.items() if key in STAGES}
    check_stages(where, "", stages)
    for section, names in (("for_data", data_keys()), ("methods", [*METHODS, RANDOM])):
        _check_keys(path, values.get(section, {}), names, section)
        for key, part in values.get(section, {}).items():
            values[section][key] = own = mapping(where, f"{section}.{key}", part)
            _check_keys(path, own, list(STAGES), f"{section}.{key}")
            own.update({stage: mapping(where, f"{section}.{key}.{stage}", some) for stage, some in own.items()})
            check_stages(where, f"{section}.{key}.", own)
    _check_stand_ins(path, values)
    _check_keys(path, values.get("detection", {}), ["datasets", "backbones"], "detection")
    _check_stand_ins(path, values.get("detection", {}), "detection.")
    _check_gpus(path, values.get("gpus", {}))
    if kind == "methods" and name != RANDOM and not stages.get("pretrain", {}).get("method", {}).get("name"):
        raise ConfigError(f"{where}: pretrain.method.name is missing; valid: {', '.join(METHODS)}")
    return values


def _check_stand_ins(path: Path, values: Overlay, prefix: str = "") -> None:
    """Raises ConfigError unless `datasets` maps names to data settings, and `backbones` names to names."""
    datasets, backbones = (mapping(path.name, f"{prefix}{key}", values.get(key)) for key in ("datasets", "backbones"))
    _check_keys(path, datasets, [*DATASETS, *DETECTION_DATASETS], f"{prefix}datasets")
    for name, data in datasets.items():
        check(path.name, f"{prefix}datasets.{name}", [DataConfig, DetectionDataConfig], data)
    known = list(get_args(Backbone))
    _check_keys(path, backbones, known, f"{prefix}backbones")
    for name, other in backbones.items():
        if other not in known:
            raise ConfigError(
                f"{path.name}: {prefix}backbones.{name}: unknown backbone {other!r}; {nearest(str(other), known)}"
            )


def _check_gpus(path: Path, gpus: Overlay) -> None:
    _check_keys(path, gpus, list(STAGES), "gpus")
    for stage, count in gpus.items():
        if type(count) is not int or not 1 <= count <= MOST_GPUS:
            raise ConfigError(
                f"{path.name}: gpus.{stage}: a whole number from 1 to {MOST_GPUS} is expected (got {count!r:.40})"
            )


def _check_keys(path: Path, values: Any, names: list[str], parent: str = "") -> None:
    for key in values if isinstance(values, dict) else ():
        if key not in names:
            raise ConfigError(
                f"{path.name}: unknown key {'.'.join(filter(None, (parent, str(key))))}; {nearest(str(key), names)}"
            )
