"""Committed measurements, one JSON file per device, and the table that compares a new run with them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.timing import Group, Ratio, Row
from jigclu.files import write_json

FOLDER = Path(__file__).parent / "results"


def path_of(device: str) -> Path:
    """`AMD EPYC, 2 threads` -> results/amd-epyc-2-threads.json"""
    return FOLDER / f"{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}.json"


def read(device: str) -> dict[str, Any]:
    """The committed results of this device by group; {} if there are none."""
    try:
        return dict(json.loads(path_of(device).read_bytes())["groups"])
    except FileNotFoundError:
        return {}


def save(device: str, facts: dict[str, Any], groups: Sequence[Group]) -> Path:
    """Write each group with the facts of its run; groups that were not measured keep their committed results."""
    path = path_of(device)
    path.parent.mkdir(exist_ok=True)
    write_json(
        path, {"device": device, "groups": read(device) | {group.name: as_json(group, facts) for group in groups}}
    )
    return path


def as_json(group: Group, facts: dict[str, Any]) -> dict[str, Any]:
    rows = {
        row.name: {
            "median_s": round(row.median, 7), "quartiles_s": [round(value, 7) for value in row.quartiles], "n": len(row.seconds),
            **({f"{row.unit}_a_second": round(row.items / row.median, 1)} if row.items else {}),
            **{name: round(value, 3) for name, value in row.facts.items()},
        }
        for row in group.rows
    }  # fmt: skip
    ratios = {
        ratio.name: {
            "value": round(ratio.value, 4),
            **({"target": f"{ratio.target[0]} {ratio.target[1]:g}", "met": ratio.met} if ratio.target else {}),
        }
        for ratio in group.ratios
    }
    return {"about": facts, "setting": group.setting, "rows": rows, "ratios": ratios}


def heading(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return f"{facts['device']} ({facts['cpus']} CPUs given), Python {facts['python']}, {versions}, {facts['date']}"


def table(group: Group, committed: dict[str, Any]) -> str:
    """Rows with median and quartiles, ratios with their target and the committed value for this device."""
    lines = [f"{group.name}: {group.setting}", f"  {'':58} {'a second':>12}  {'median':>10} [quartiles]"]
    lines += [_row(row) for row in group.rows]
    earlier = committed.get(group.name, {}).get("ratios", {})
    return "\n".join(lines + [_ratio(ratio, earlier.get(ratio.name)) for ratio in group.ratios])


def _row(row: Row) -> str:
    low, high = row.quartiles
    rate = f"{row.items / row.median:,.1f}" if row.items else ""
    more = "".join(f"  {name} {value:,.0f}" for name, value in row.facts.items())
    return (
        f"  {row.name:58} {rate:>12}  {_time(row.median):>10} [{_time(low)}, {_time(high)}] n={len(row.seconds)}{more}"
    )


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.2f} ms"


def _ratio(ratio: Ratio, before: dict[str, Any] | None) -> str:
    target = f"target {ratio.target[0]} {ratio.target[1]:g}: {'met' if ratio.met else 'MISSED'}" if ratio.target else ""
    earlier = f"committed {before['value']:.3f}" if before else ""
    return f"  -> {ratio.name:60} {ratio.value:8.3f}  {target:24} {earlier}".rstrip()
