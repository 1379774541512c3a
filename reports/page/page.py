"""Tables, figures and the jobs behind them -> one self-contained HTML page: no script, no network."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from jigclu.config.sweeps import edge_of_sweep
from jigclu.job_folder import duration
from orchestrate.jobs.spent import ESTIMATED, SPENT, device_hours
from orchestrate.mirror.address import server
from orchestrate.mirror.views import view_url
from orchestrate.planning.experiments import Experiment
from reports import export, formatting, tables, verdicts
from reports.figures import bars, compute, curves, style
from reports.frames import finite, history
from reports.page import costs, register
from reports.page.gallery import data_uri, gallery, plain
from reports.page.lead import lead
from reports.records import Job, Result, Table, unique_jobs

if TYPE_CHECKING:
    from mlflow import MlflowClient

HERE = Path(__file__).parent
MONTAGES = 4  # per table; the others are in MLflow
# The config fields in which jobs of a stage usually differ; every other field is in MLflow.
HIGHLIGHTS: dict[str, list[str]] = {
    "pretrain": [
        *("backbone", "data.name", "data.train_images", "image_size", "method.name", "method.version", "method.m"),
        *(
            "method.extend",
            "method.input",
            "method.augment",
            "method.loss_scale",
            "epochs",
            "batch_size",
            "optimizer.lr",
        ),
    ],
    "linear": ["data.name", "epochs", "batch_size", "lr", "views", "standardize"],
    "finetune": ["data.name", "data.subset", "epochs", "batch_size", "lr", "head_lr"],
    "knn": ["data.name", "k", "temperature"],
    "dense": ["data.name", "layers", "image_size"],
    "detect": [
        *("data.name", "data.train_images", "backbone", "solver.schedule", "solver.batch_size", "solver.lr"),
        *("sizes.test", "precision"),
    ],
}
LABELS = {"data.name": "data", "sizes.test": "test_size"}  # for keys whose last word alone is unclear


@dataclass(frozen=True)
class Drawn:
    """A table with everything that the page shows about it."""

    table: Table
    svg: str
    curves: str
    compute: str
    claims: tuple[verdicts.CheckedClaim, ...]
    montages: list[tuple[str, str]]  # (config in a few words, data URI)
    more_montages: int
    predictions: list[tuple[str, str]]  # (encoder in a few words, data URI)


def draw(client: MlflowClient | None, table: Table, svg: bytes) -> Drawn:
    """Read the loss curves and first batches of the table's pretraining jobs, and its detectors' predictions."""
    panels: list[curves.Panel] = []
    montages: dict[str, str] = {}
    groups = _by_config([job for job in table.jobs if job.stage == "pretrain"])
    for name, jobs in groups.items():
        lines = [points for job in jobs if (points := history(client, job.run_id, f"{job.stage}/loss"))]
        if lines:
            panels.append(curves.Panel(name, lines, finite(jobs[0].metrics.get("result.chance_loss"))))
        if picture := data_uri(client, jobs[0], "montage"):
            montages[name] = picture
    if len(montages) == 1 and plain(groups[next(iter(montages))][0]):
        montages = {}  # every table would show it; it is among the scale's pictures of the method
    more = max(0, len(montages) - MONTAGES)
    losses = style.for_page(curves.curves(panels, "loss")) if panels else ""
    return Drawn(
        table=table,
        svg=style.for_page(svg),
        curves=losses,
        compute=style.for_page(equal) if (equal := compute.equal_compute(table)) else "",
        claims=verdicts.check_claims(table),
        montages=list(montages.items())[:MONTAGES],
        more_montages=more,
        predictions=predictions(client, table),
    )


def predictions(client: MlflowClient | None, table: Table) -> list[tuple[str, str]]:
    """The detectors' predictions, one picture per config: (encoder in a few words, data URI). Missing ones are left out."""
    groups = _by_config([job for job in table.jobs if job.stage == "detect"])
    pictures = ((name, map(partial(data_uri, client, name="predictions"), jobs)) for name, jobs in groups.items())
    return [(name, uri) for name, uris in pictures if (uri := next(filter(None, uris), ""))]


def _by_config(jobs: list[Job]) -> dict[str, list[Job]]:
    """Jobs that differ only in their seed under one name, without the words that every name has: `m=2`."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(re.sub(r" seed \S+", "", job.name), []).append(job)
    shared = set.intersection(*(set(name.split()) for name in groups)) if len(groups) > 1 else set()
    short = {name: " ".join(word for word in name.split() if word not in shared) for name in groups}
    return {short[name] or "default recipe": group for name, group in groups.items()}


def overview(shown: list[Table]) -> dict[str, Any]:
    """A summary of what was run: the page's head and `run` in results.json."""
    jobs = unique_jobs(shown)
    finished = [job.finished for job in jobs if job.finished is not None and job.state == "done"]
    return {
        "scales": list(dict.fromkeys(table.scale for table in shown)),
        "protocols": list(dict.fromkeys(table.protocol for table in shown)),
        "jobs": dict(sorted(Counter(job.state for job in jobs).items())),
        "seeds": seeds(jobs),
        "device_hours": hours(jobs),
        "stale": sum(bool(job.stale) for job in jobs),
        "commits": sorted({job.commit for job in jobs if job.commit}),
        "devices": sorted({job.device for job in jobs if job.device}),
        "newest_result": datetime.fromtimestamp(max(finished), UTC).isoformat(timespec="seconds") if finished else None,
        "cells_done": sum(table.done for table in shown),
        "cells": sum(table.total for table in shown),
        "claims": scoreboard(shown),
    }


def seeds(jobs: Iterable[Job]) -> list[str]:
    return sorted({job.seed for job in jobs if job.seed}, key=lambda seed: (len(seed), seed))


def hours(jobs: Iterable[Job]) -> dict[str, float]:
    """Device-hours by kind of device."""
    spent: dict[str, float] = {}
    for job in jobs:
        if job.device and job.hours is not None:
            kind = costs.kind_of(job)
            spent[kind] = spent.get(kind, 0.0) + job.hours
    return {kind: round(spent[kind], 3) for kind in sorted(spent, reverse=True)}


def anchor(table: Table, result: Result) -> str:
    """The id of a cell's jobs on the page."""
    return re.sub(r"[^A-Za-z0-9]+", "-", f"cell-{table.stem}-{result.cell.key}").strip("-")


def scoreboard(shown: list[Table]) -> list[dict[str, Any]]:
    """How many claims were checked and have each outcome, by scale and protocol; variants (with overrides) do not count."""
    groups: dict[tuple[str, str], list[Table]] = {}
    for table in shown:
        if not table.variant:
            groups.setdefault((table.scale, table.protocol), []).append(table)
    tallies = {key: verdicts.tally(group) for key, group in groups.items()}
    return [
        {
            "scale": scale,
            "protocol": protocol,
            "checked": sum(tally.values()),
            **{str(outcome): count for outcome, count in tally.items()},
        }
        for (scale, protocol), tally in tallies.items()
    ]


def highlights(job: Job) -> str:
    """The config in one line, `m 2, epochs 4, ...`, a probe's sweep, and the rate that was chosen from it."""
    held_out = job.params.get("selection") == "held_out"
    keys = [key for key in HIGHLIGHTS.get(job.stage, ()) if key != "lr" or not held_out]
    labelled = [(LABELS.get(key, key.rpartition(".")[2]), job.params.get(key)) for key in keys]
    words = [f"{label} {value}" for label, value in labelled if value not in (None, "", "null")]
    sweep = [f"{rate}: {formatting.number(value, 1)}" for rate, value in export.by_rate(job).items()]
    text = ", ".join(words) + (f"; top-1 by rate {', '.join(sweep)}" if sweep else "")
    if not (held_out and sweep):
        return text
    chosen = export.reported_rate(job)
    edge = edge_of_sweep(chosen, [float(rate) for rate in export.by_rate(job)])
    beyond = f", the {edge} tried: a better one may lie outside" if edge else ""
    return f"{text}; rate chosen on a held-out tenth of train: {chosen:g}{beyond}"


def render(
    client: MlflowClient | None,
    drawn: list[Drawn],
    absent: dict[str, list[Experiment]],
    uri: str = "",
    summary: dict[str, Any] | None = None,
) -> str:
    """The page's HTML. `absent`: experiments without any run, by scale; `summary`: `overview`, and a `warning`."""
    shown = [entry.table for entry in drawn]
    galleries = {
        scale: gallery(client, unique_jobs(table for table in shown if table.scale == scale))
        for scale in dict.fromkeys(table.scale for table in shown)
    }
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "duration": lambda seconds: "" if seconds is None else duration(seconds),
        "device_hours": device_hours,
        "highlights": highlights,
        "short": lambda commit: commit[:10],
    }
    by_scale = {scale: unique_jobs(t for t in shown if t.scale == scale) for scale in galleries}
    environment.globals |= {"anchor": anchor, "kind_of": costs.kind_of}
    text = environment.get_template("page.html.j2").render(
        mlflow=server(uri),
        views=_views(uri, shown),
        by_scale=by_scale,
        costs=costs.lines(shown),
        spent_means=SPENT,
        estimated_means=ESTIMATED,
        recompute=recompute(shown),
        register=register.points(shown),
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        drawn=drawn,
        lead=lead(client, shown),
        run=summary or overview(shown) | {"warning": ""},
        absent=absent,
        galleries=galleries,
        tables=tables,
        export=export,
        formatting=formatting,
        verdicts=verdicts,
        label=bars.label,
        not_run=lambda table: formatting.listed([bars.label(table, r) for r in table.results if r.missing]),
        markup=Markup,
    )
    return own_ids(re.sub(r"\n\s*\n+", "\n", text))


def own_ids(text: str) -> str:
    """Append the figure's number to its ids: two figures may share a mark, or be equal."""
    number = itertools.count()

    def numbered(figure: re.Match[str]) -> str:
        return re.sub(r'( id="|url\(#|href="#)([^)"]+)', rf"\1\2-{next(number)}", figure[0])

    return re.sub(r"<svg.*?</svg>", numbered, text, flags=re.DOTALL)


def _views(uri: str, shown: list[Table]) -> list[tuple[str, str]]:
    """(name, URL) of MLflow's tables of jobs and of cells at each scale."""
    ids = {f"jigclu-{table.scale}": job.experiment_id for table in shown for job in table.jobs}
    ids |= {f"jigclu-{table.scale}-tables": table.experiment_id for table in shown if table.experiment_id}
    return [(name, view_url(uri, experiment_id)) for name, experiment_id in ids.items()]


def recompute(shown: list[Table]) -> dict[str, str]:
    """Job id -> the command that computes the first cell that needs it, and so the job itself."""
    commands: dict[str, str] = {}
    for table in shown:
        for result in table.results:
            for chain in result.chains:
                for job in chain:
                    commands.setdefault(job.job, table.command_of(result))
    return commands
