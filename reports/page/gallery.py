"""The method in pictures: the paper's Figures 1, 3 and 5, drawn by a pretraining from its first batch; 2 and 6 as diagrams."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reports.figures import diagrams
from reports.figures.style import for_page
from reports.frames import artifact
from reports.records import Job

if TYPE_CHECKING:
    from mlflow import MlflowClient

LARGEST = 4 << 20  # bytes; larger embedded pictures make the page slow on a phone
# Parameters of a job that shows the method as the paper describes it; these are also the schema's defaults.
PLAIN = {"method.name": "jigclu", "method.input": "montage", "method.augment": "after", "method.m": "2"}
# Among such jobs, one with both branches and a protocol's overlap is preferred: Figure 3 is about overlap.
BETTER = {"method.location_weight": ("1.0",), "method.clustering_weight": ("1.0",), "method.extend": ("0.3", "0.15")}


@dataclass(frozen=True)
class Picture:
    """`image`: a data URI, or "" if `svg` is the picture."""

    name: str
    caption: str
    image: str = ""
    svg: str = ""


@dataclass(frozen=True)
class Gallery:
    """One job's pictures, in the order of the paper's figures."""

    job: Job
    pictures: tuple[Picture, ...]


def data_uri(client: MlflowClient | None, job: Job, name: str) -> str:
    """One of the job's pictures for embedding in the page; "" if there is none or it is too large."""
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
    """Pictures of the first `plain` job, preferably with both branches and a protocol's overlap.

    None if no job is plain. Pictures that the job has not drawn are left out.
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
            "The pretext task, first half. Each row is an image: the whole image, its patches, and the same patches augmented "
            "separately.",
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
            "Two images and the boxes of their patches. Neighbours overlap. Coinciding edges are drawn side by side.",
            data_uri(client, job, "split"),
        ),
        Picture(
            "Figure 5",
            "Three possible inputs, at true relative size: small patches (a), scaled-up patches (b), montages (c).",
            data_uri(client, job, "inputs"),
        ),
        Picture(
            "Figure 6",
            "Augmentation is applied to every patch, after the split and before the montage.",
            svg=for_page(diagrams.augmentation(job.params)),
        ),
    ]
    return Gallery(job, tuple(picture for picture in drawn if picture.image or picture.svg))
