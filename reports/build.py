"""Build a report: load, assemble, check, draw, write, publish."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from jigclu.config import ConfigError
from jigclu.files import write_atomic
from orchestrate.planning import experiments, overlays
from reports.publish import publish_verdicts, upload
from reports.records import Table

if TYPE_CHECKING:
    from mlflow import MlflowClient


def report(
    client: MlflowClient | None,
    out: Path,
    scales: list[str] | None = None,
    protocol: str | None = None,
    targets: list[str] | None = None,
    uri: str = "",
    store: str | None = None,
) -> list[Table]:
    """Write everything under `out` and upload changed tables to MLflow. Returns the shown tables, in the page's order.

    `client`: None if there is no MLflow yet; `uri`: its address, for links; `store`: the id of
    the store whose runs are shown, None for all runs. `scales`: None for all that have runs, the
    fullest first.
    """
    # Imported here so that --help and typing errors are answered at once.
    from reports import assemble, export, frames, table_files
    from reports.page import page

    ledger = experiments.find(targets or ["all"])
    loaded = frames.load(client, overlays.overlays("scales"), store)
    frames.apply_views(client, overlays.overlays("scales"))
    shown_scales = scales or assemble.fullest_first(loaded) or (["paper"] if targets else [])
    shown = assemble.assemble(loaded, ledger, shown_scales, protocol, named=bool(targets))
    make_folder(out)
    drawn = []
    for table, files in zip(shown, table_files.write_all(shown), strict=True):
        svg = files.pop(f"{table.stem}.svg")
        for name, data in files.items():
            write_atomic(out / name, data)
        upload(client, table, files)
        drawn.append(page.draw(client, table, svg))
    publish_verdicts(client, shown)
    absent = {
        scale: [
            experiment
            for experiment in ledger
            if not any(table.scale == scale and table.experiment.name == experiment.name for table in shown)
        ]
        for scale in shown_scales
    }
    write_atomic(out / "results.json", export.results_json(shown, page.overview(shown)).encode())
    write_atomic(out / "index.html", page.render(client, drawn, absent, uri).encode())
    return shown


def make_folder(out: Path) -> None:
    """Raises ConfigError if the folder cannot be made or written to."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ConfigError(f"cannot write to {out} ({error.strerror}); choose another folder with --out") from None
