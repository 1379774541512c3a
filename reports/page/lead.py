"""The top of the page: does the method work here? One solved puzzle, nearest neighbours, and pretrained against random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jigclu.config import DATASETS
from jigclu.job_folder import duration
from reports.figures import bars
from reports.figures.style import for_page
from reports.formatting import PLUS_MINUS, number
from reports.frames import finite
from reports.page.gallery import BETTER, data_uri, plain
from reports.records import Job, Result, Table, unique_jobs

if TYPE_CHECKING:
    from mlflow import MlflowClient

PHOTOGRAPHS = "make demo DATA=imagenette"


@dataclass(frozen=True)
class Evidence:
    """A pretraining as the paper describes it, and what a linear classifier made of it and of random weights.

    `accuracies`: (label, cell) of one table, the job's own first and random weights last; empty without an evaluation.
    """

    scale: str
    job: Job
    table: Table | None
    accuracies: tuple[tuple[str, Result], ...]

    @property
    def own(self) -> Result:
        return self.accuracies[0][1]

    @property
    def random(self) -> Result:
        return self.accuracies[-1][1]

    @property
    def chance(self) -> float | None:
        """The accuracy of guessing, in percent."""
        return self.table.chance(self.own) if self.table else None

    def measured(self, name: str) -> float | None:
        """A metric of the pretraining's result."""
        return finite(self.job.metrics.get(f"result.{name}"))


@dataclass(frozen=True)
class Lead:
    """What the page shows of the evidence. `puzzle`, `neighbours` (title, picture): data URIs; `bars`: an SVG."""

    evidence: Evidence
    sentences: list[str]
    puzzle: str
    neighbours: list[tuple[str, str]]
    class_is: str
    bars: str


def evidence(shown: list[Table]) -> Evidence | None:
    """Of the first scale that has one: a finished pretraining with m = 2, if possible one that was evaluated."""
    for scale in dict.fromkeys(table.scale for table in shown):
        tables = [table for table in shown if table.scale == scale and not table.variant]
        jobs = [job for job in unique_jobs(tables) if plain(job)]
        found = [_evaluated(scale, job, tables) for job in jobs]
        if found:
            return max(found, key=lambda one: (len(one.accuracies) > 0, _usual(one.job), len(one.accuracies)))
    return None


def _usual(job: Job) -> int:
    return sum(job.params.get(name, values[0]) in values for name, values in BETTER.items())


def _evaluated(scale: str, job: Job, tables: list[Table]) -> Evidence:
    """The first table with a linear evaluation of the job and of random weights; Table 8 before others, for its m."""
    for table in sorted(tables, key=lambda table: table.experiment.name != "table8"):
        for result in table.results:
            of_job = any(chain[-2].job == job.job for chain in result.chains if len(chain) > 1)
            floor = table.floor(result)
            if not of_job or result.value is None or result.cell.report != "linear.top1" or floor is None:
                continue
            others = table.results if table.experiment.name == "table8" else (result,)
            same = [r for r in others if r.value is not None and not r.reference and r is not result]
            labelled = [(f"pretrained, {bars.label(table, r)}", r) for r in (result, *same)]
            return Evidence(scale, job, table, (*labelled, ("random weights", floor)))
    return Evidence(scale, job, None, ())


def sentences(found: Evidence) -> list[str]:
    """What came out, in words: the puzzle, then the linear classifier, then what was not learnt."""
    return [sentence for sentence in (_puzzle(found), _accuracy(found), *_unlearnt(found)) if sentence]


def _puzzle(found: Evidence) -> str:
    own, chance = found.measured("recovered_images"), found.measured("recovered_chance")
    if own is None or chance is None:
        return ""
    before, time = found.measured("recovered_images_untrained"), found.job.wall_seconds
    start = f"After {duration(time)} of training" if time else "After training"
    text = f"{start} the network puts {own:.0f} % of the patches back with their own image (by chance {chance:.0f} %"
    text += f", before training {before:.0f} %)" if before is not None else ")"
    place, by_chance = found.measured("recovered_places"), found.measured("recovered_places_chance")
    if place is None or by_chance is None:
        return f"{text}."
    return f"{text}, and {place:.0f} % also in their own place (by chance {by_chance:.0f} %)."


def _accuracy(found: Evidence) -> str:
    if not found.accuracies:
        return ""
    own, random = (_with_interval(result) for result in (found.own, found.random))
    text = f"A linear classifier on its features is right for {own} of the validation images, on random weights for {random}"
    return f"{text}; guessing gives {found.chance:.0f} %." if found.chance else f"{text}."


def _with_interval(result: Result) -> str:
    spread = result.std if result.n > 1 else result.half_width
    return f"{number(result.value, 1)} %" + (f" ({PLUS_MINUS} {number(spread, 1)})" if spread is not None else "")


def _unlearnt(found: Evidence) -> list[str]:
    """Pretrainings of the same table whose loss ended at chance."""
    stuck = [label.removeprefix("pretrained, ") for label, result in found.accuracies if result.at_chance]
    if not stuck:
        return []
    which = " and ".join(stuck)
    return [f"With {which} the loss ended at chance: that network has not learnt the task, whatever its accuracy."]


def lead(client: MlflowClient | None, shown: list[Table]) -> Lead | None:
    """The top of the page, from the first scale that has a pretraining to show."""
    found = evidence(shown)
    if found is None:
        return None
    pictures = []
    if found.accuracies:
        for title, result in (("Random weights", found.random), ("After pretraining", found.own)):
            uris = (data_uri(client, job, "neighbours") for job in result.jobs if job.state == "done")
            pictures.append((title, next(filter(None, uris), "")))
    spec = DATASETS.get(found.job.params.get("data.name", ""))
    return Lead(
        evidence=found,
        sentences=sentences(found),
        puzzle=data_uri(client, found.job, "recovery"),
        neighbours=pictures if all(uri for _, uri in pictures) else [],
        class_is=spec.class_is if spec else "",
        bars=for_page(bars.proof(list(found.accuracies), found.chance)) if found.accuracies else "",
    )


def said(shown: list[Table]) -> list[str]:
    """The page's first sentences, for the terminal."""
    found = evidence(shown)
    return sentences(found) if found else []
