"""Build a report: load, assemble, draw, write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from orchestrate.planning import experiments, overlays

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from reports.records import Table
from reports.publish import publish_verdicts, upload


def report(
    client: MlflowClient | None,
    out: Path,
    scales: list[str] | None = None,
    protocol: str | None = None,
    targets: list[str] | None = None,
    uri: str = "",
) -> list[Table]:
    """Write everything under `out`, put changed tables into MLflow; the tables that were shown, in the page's order.

    `client`: None where there is no MLflow yet; `uri`: where it is, for links. `scales`: None for every one that has runs, the
    fullest first.
    """
    # Not at the top of the file: --help and a slip of the keyboard are answered at once.
    from reports import assemble, export, frames, table_files
    from reports.page import page

    ledger = experiments.find(targets or ["all"])
    loaded = frames.load(client, overlays.overlays("scales"))
    frames.apply_views(client, overlays.overlays("scales"))
    shown_scales = scales or assemble.fullest_first(loaded) or (["paper"] if targets else [])
    shown = assemble.assemble(loaded, ledger, shown_scales, protocol, named=bool(targets))
    out.mkdir(parents=True, exist_ok=True)
    drawn = []
    for table, files in zip(shown, table_files.write_all(shown), strict=True):
        svg = files.pop(f"{table.stem}.svg")
        for name, data in files.items():
            (out / name).write_bytes(data)
        upload(client, table, files)
        drawn.append(page.draw(client, table, svg))
    publish_verdicts(client, shown)
    absent = {
        scale: [one for one in ledger if not any(t.scale == scale and t.experiment.name == one.name for t in shown)]
        for scale in shown_scales
    }
    (out / "results.json").write_text(export.results_json(shown, page.overview(shown)), encoding="utf-8")
    (out / "index.html").write_text(page.render(client, drawn, absent, uri), encoding="utf-8")
    return shown
