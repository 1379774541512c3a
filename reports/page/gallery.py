"""The method in pictures: the paper's Figures 1, 3 and 5 as a pretraining drew them from its first batch, 2 and 6 as diagrams."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.figures import diagrams
from reports.figures.style import for_page
from reports.frames import artifact, finite
from reports.records import Job

if TYPE_CHECKING:
    from mlflow import MlflowClient

LARGEST = 4 << 20  # bytes; a page with larger pictures inside is slow on a phone
# What a job must say to show the method as it is; a field that it does not name has the schema's default, which is this.
PLAIN = {"method.name": "jigclu", "method.input": "montage", "method.augment": "after", "method.m": "2"}
# Among such jobs one with both branches and an overlap of the two protocols is the better example: Figure 3 is about overlap.
BETTER = {"method.location_weight": ("1.0",), "method.clustering_weight": ("1.0",), "method.extend": ("0.3", "0.15")}


@dataclass(frozen=True)
class Picture:
    """`image`: a data URI, or "" where `svg` is the picture."""

    name: str
    caption: str
    image: str = ""
    svg: str = ""


@dataclass(frozen=True)
class Gallery:
    """The pictures of one job, in the order of the paper's figures."""

    job: Job
    pictures: tuple[Picture, ...]


def data_uri(client: MlflowClient | None, job: Job, name: str) -> str:
    """A picture of the job's as it stands inside a page; "" where there is none, or it is too large."""
    picture = artifact(client, job.run_id, job.uri, f"figures/{name}.png")
    if not picture or len(picture) > LARGEST:
        return ""
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def plain(job: Job) -> bool:
    """Whether the job is a finished pretraining of the method as the paper describes it, m = 2."""
    usual = all(job.params.get(name, value) == value for name, value in PLAIN.items())
    return job.stage == "pretrain" and job.state == "done" and "method.name" in job.params and usual


def _better(job: Job) -> int:
    return sum(job.params.get(name, values[0]) in values for name, values in BETTER.items())


def gallery(client: MlflowClient | None, jobs: Iterable[Job]) -> Gallery | None:
    """Of the first of the jobs that is `plain`, of ones with both branches and the usual overlap where there are such.

    None where none is plain. Pictures that the job has not drawn are left out.
    """
    jobs = list(jobs)
    fitting = list(filter(plain, jobs))
    if not fitting:
        return None
    job = max(fitting, key=_better)  # the first of equals
    size = job.params.get("image_size", "224")
    drawn = [
        Picture(
            "Figure 1",
            "The pretext task, first half. A row is an image: whole, its patches as cut, and the same patches augmented, each on "
            "its own.",
            data_uri(client, job, "patches"),
        ),
        Picture(
            "Figure 1, continued",
            f"Second half: the patches of the whole batch, shuffled and stitched. These {size}-pixel montages are the input.",
            data_uri(client, job, "montage"),
        ),
        Picture("Figure 2", "The pipeline, with this job's sizes.", svg=for_page(diagrams.pipeline(job.params))),
        Picture(
            "Figure 3",
            "Two images and the boxes of their patches. Neighbours overlap. Edges that coincide are drawn side by side.",
            data_uri(client, job, "split"),
        ),
        Picture(
            "Figure 5",
            "What the network could be fed, at true relative size: small patches (a), patches scaled up (b), montages (c).",
            data_uri(client, job, "inputs"),
        ),
        Picture(
            "Figure 6",
            "Where the augmentation stands: on every patch, after the split and before the montage.",
            svg=for_page(diagrams.augmentation(job.params)),
        ),
        Picture(
            "The task solved",
            "Montages newly drawn of training images (top), their patches as the network grouped and placed them, framed by "
            f"whether that is right{_recovered(job)}, the truth, and the images.",
            data_uri(client, job, "recovery"),
        ),
        *_neighbours(client, job, jobs),
    ]
    return Gallery(job, tuple(picture for picture in drawn if picture.image or picture.svg))


def _recovered(job: Job) -> str:
    """How much of it is right, in words, where the job measured it."""
    names = ("images", "chance", "places")
    with_own, chance, placed = (finite(job.metrics.get(f"result.recovered_{what}")) for what in names)
    if with_own is None or chance is None or placed is None:
        return ""
    return f" ({with_own:.0f} % of the patches are with their own image, by chance {chance:.0f} %; {placed:.0f} % in their place)"


def _neighbours(client: MlflowClient | None, job: Job, jobs: list[Job]) -> list[Picture]:
    """Of the first evaluation that builds on the job and drew any."""
    caption = (
        "Nearest neighbours, by cosine of the features, among the validation images: a query a row, then the nearest, framed by "
        "whether they are of the query's class."
    )
    uris = (data_uri(client, one, "neighbours") for one in jobs if job.job in one.upstream and one.state == "done")
    return [Picture("What it learned", caption, uri) for uri in [next(filter(None, uris), "")] if uri]
