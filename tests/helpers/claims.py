"""Made-up results of cells for the tests of verdicts, and claims checked on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from orchestrate.planning.claims import Claim
from orchestrate.planning.experiments import Cell, Experiment
from reports import verdicts
from reports.records import Job, Result, Table
from reports.statistics.noise import Pool, Recorded

SCALE: dict[str, Any] = {"scale": "paper", "protocol": "official", "variant": ""}
MINI = SCALE | {"scale": "mini"}
OVERRIDDEN = SCALE | {"variant": "pretrain.epochs=50"}
IMAGES = 3925
KIND = "linear.top1 imagenette"


def known(sd: float = 1e-9, kind: str = KIND) -> Pool:
    """A scale whose spread between seeds is recorded."""
    return Pool(recorded=(Recorded(kind, sd, 1e9, "a test"),))


def result(
    key: str, value: float | Sequence[float] | None = None, images: float | None = IMAGES, **more: Any
) -> Result:
    """A cell's result: one value for each seed. `printed`, `cited`, `unit`, `method`, `report` of the ledger's cell; `job`:
    fields of its jobs; `params`, `metrics`: more of theirs; `encoder`: params of its pretraining."""
    fields = ("printed", "cited", "unit", "method", "report", "column", "read")
    ledger: dict[str, Any] = {"report": "linear.top1", "column": ""}
    ledger |= {name: more.pop(name) for name in fields if name in more}
    if "cited" in ledger:
        ledger["report"] = None
    cell = Cell(key=key, row=key, **ledger)
    values = () if value is None else (value,) if isinstance(value, int | float) else tuple(value)
    metrics = ({} if images is None else {"result.val_images": images}) | more.pop("metrics", {})
    params = {"data.name": "imagenette"} | more.pop("params", {})
    own: dict[str, Any] = {"device": "a CPU"} | more.pop("job", {})
    jobs = tuple(
        Job(
            job=f"{key} {seed}",
            name="",
            stage="linear",
            state="done",
            seed=str(seed),
            params=params,
            metrics=metrics,
            **own,
        )
        for seed in range(len(values))
    )
    encoder = more.pop("encoder", None)
    if encoder:
        first = Job(job=f"{key} encoder", name="", stage="pretrain", state="done", params=encoder)
        more["chains"] = tuple((first, job) for job in jobs)
    state = more.pop("state", "not run" if value is None else "done")
    made = Result(cell=cell, reference=more.pop("reference", False), state=state, jobs=jobs, **more)
    return filled(made, values) if values else made


def floor(value: float | Sequence[float], key: str = "random") -> Result:
    """The reference with random weights."""
    return result(key, value, method=None, reference=True)


def filled(made: Result, values: Sequence[float]) -> Result:
    """The same cell with other numbers."""
    mean = sum(values) / len(values)
    return replace(made, value=mean, values=tuple(values), seeds=tuple(range(len(values))), n=len(values))


def table(
    *results: Result, unit: str = "% top-1", pool: Pool | None = None, name: str = "figure0", **setting: Any
) -> Table:
    """A table of the results. `pool`: None: of the results themselves, where one seed has a known, tiny spread."""
    cells = tuple(result.cell for result in results)
    words: dict[str, Any] = {"name": name, "title": "", "source": "", "topic": "", "unit": unit}
    experiment = Experiment(recipe={"linear": {}, "pretrain": {}, "detect": {}}, cells=cells, **words)
    return Table(experiment=experiment, results=results, pool=known() if pool is None else pool, **SCALE | setting)


def check(relation: dict[str, Any], *results: Result, **setting: Any) -> verdicts.CheckedClaim:
    claim = Claim(text="a claim", source="§0", **relation)
    made = table(*results, **setting)
    return verdicts.check_claim(claim, {result.cell.key: result for result in made.results}, made)
