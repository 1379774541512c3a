"""Tables, figures and the jobs behind them -> one HTML page that needs nothing else: no script, no network."""

from __future__ import annotations

import base64
import re
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from orchestrate.experiments import Experiment
from reports import figures, tables
from reports.cells import Job, Table, unique_jobs
from reports.read import artifact, history

if TYPE_CHECKING:
    from mlflow import MlflowClient

HERE = Path(__file__).parent
LARGEST_PICTURE = 4 << 20  # bytes; a page with larger ones inside is slow on a phone
# What tells one job of a stage from another at a glance; every other field is in MLflow.
HIGHLIGHTS: dict[str, list[str]] = {
    "pretrain": [
        *("backbone", "data.name", "data.train_images", "image_size", "method.name", "method.m", "method.extend"),
        *("method.loss_scale", "epochs", "batch_size", "optimizer.lr"),
    ],
    "linear": ["data.name", "epochs", "batch_size", "lr", "views"],
    "knn": ["data.name", "k", "temperature"],
}


@dataclass(frozen=True)
class Drawn:
    """A table with everything that the page shows of it."""

    table: Table
    svg: str
    curves: str
    montages: list[tuple[str, str]]  # (config in a word, data URI)


def draw(client: MlflowClient | None, table: Table, svg: bytes) -> Drawn:
    """Reads the loss curves and first batches of the table's pretraining jobs."""
    panels, montages = [], []
    for name, jobs in _by_config([job for job in table.jobs if job.stage == "pretrain"]).items():
        lines = [points for job in jobs if (points := history(client, job.run_id, "loss"))]
        if lines:
            panels.append((name, lines))
        picture = artifact(client, jobs[0].run_id, jobs[0].uri, "figures/montage.png")
        if picture and len(picture) <= LARGEST_PICTURE:
            montages.append((name, f"data:image/png;base64,{base64.b64encode(picture).decode()}"))
    curves = figures.for_page(figures.curves(panels, "loss")) if panels else ""
    return Drawn(table, figures.for_page(svg), curves, montages)


def _by_config(jobs: list[Job]) -> dict[str, list[Job]]:
    """The jobs that differ by seed alone under one name, less the words that every name has: `m=2`."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(re.sub(r" seed \S+", "", job.name), []).append(job)
    shared = set.intersection(*(set(name.split()) for name in groups)) if len(groups) > 1 else set()
    return {" ".join(word for word in name.split() if word not in shared): group for name, group in groups.items()}


def overview(shown: list[Table]) -> dict[str, Any]:
    """What was run, in short: the page's head and results.json's `run`."""
    jobs = unique_jobs(shown)
    finished = [job.finished for job in jobs if job.finished is not None and job.state == "done"]
    return {
        "scales": list(dict.fromkeys(table.scale for table in shown)),
        "protocols": list(dict.fromkeys(table.protocol for table in shown)),
        "jobs": dict(sorted(Counter(job.state for job in jobs).items())),
        "compute_hours": round(sum(job.seconds or 0.0 for job in jobs) / 3600, 3),
        "commits": sorted({job.commit for job in jobs if job.commit}),
        "devices": sorted({job.device for job in jobs if job.device}),
        "newest_result": datetime.fromtimestamp(max(finished), UTC).isoformat(timespec="seconds") if finished else None,
        "cells_done": sum(table.done for table in shown),
        "cells": sum(len(table.results) for table in shown),
    }


def duration(seconds: float | None) -> str:
    """`2 h 05 min`, `3 min 20 s`, `41 s`."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def highlights(job: Job) -> str:
    """`m=2 epochs=4 ...`: the config in a line."""
    keys = HIGHLIGHTS.get(job.stage, ())
    words = [(key.rpartition(".")[2] if key != "data.name" else "data", job.params.get(key)) for key in keys]
    return ", ".join(f"{key} {value}" for key, value in words if value not in (None, "", "null"))


def render(drawn: list[Drawn], absent: dict[str, list[Experiment]]) -> str:
    """The page. `absent`: experiments without any run, by scale."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"duration": duration, "highlights": highlights, "short": lambda commit: commit[:10]}
    text = environment.get_template("page.html.j2").render(
        style=Markup((HERE / "style.css").read_text()),
        drawn=drawn,
        run=overview([one.table for one in drawn]),
        absent=absent,
        tables=tables,
        label=figures.label,
        commands=tables.commands,
        markup=Markup,
    )
    return re.sub(r"\n\s*\n+", "\n", text)
