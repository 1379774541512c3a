"""Build a report: load, assemble, check, draw, write, publish."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from jigclu.config import ConfigError
from jigclu.files import write_atomic
from orchestrate.planning import experiments, overlays
from reports.publish import publish_verdicts, upload
from reports.records import Table

MARKER = ".jigclu-report"  # in a folder that a report writes to
TITLE = "JigClu, reproduced"  # the page's

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
    folder: Path | None = None,
    warning: str = "",
) -> list[Table]:
    """Write everything under `out` and upload changed tables to MLflow. Returns the shown tables, in the page's order.

    `client`: None if there is no MLflow yet; `uri`: its address, for links; `store`: the id of
    the store whose runs are shown, None for all runs; `folder`: the store itself, if it is here;
    `warning`: why MLflow may be behind the job folders. `scales`: None for all that have runs, the
    fullest first. Raises ConfigError if a file cannot be written, or is not a report's.
    """
    # Imported here so that --help and typing errors are answered at once.
    from reports import assemble, export, frames, table_files
    from reports.page import page

    ledger = experiments.find(targets or ["all"])
    loaded = frames.load(client, overlays.overlays("scales"), store)
    frames.apply_views(client, overlays.overlays("scales"))
    shown_scales = scales or assemble.fullest_first(loaded) or (["paper"] if targets else [])
    shown = assemble.assemble(loaded, ledger, shown_scales, protocol, bool(targets), folder)
    written = table_files.write_all(shown)
    check_folder(out, [name for files in written for name in files])
    _write(out, {MARKER: b""})
    drawn = []
    for table, files in zip(shown, written, strict=True):
        svg = files.pop(f"{table.stem}.svg")
        _write(out, files)
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
    summary = page.overview(shown) | {"warning": warning}
    results = export.results_json(shown, summary).encode()
    _write(out, {"results.json": results, "index.html": page.render(client, drawn, absent, uri, summary).encode()})
    return shown


def check_folder(out: Path, names: Iterable[str] = ()) -> None:
    """Make the folder. Raises ConfigError if it cannot be made or written to, or has a file of a name that the report needs but
    that no report wrote.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
        wanted = [] if _is_reports(out) else ["index.html", "results.json", *names]
        if foreign := next((name for name in wanted if (out / name).exists()), None):
            raise ConfigError(f"{out} has a file {foreign} that no report wrote; choose another folder with --out")
    except OSError as error:
        raise ConfigError(f"cannot write to {out} ({error.strerror}); choose another folder with --out") from None


def _is_reports(out: Path) -> bool:
    """Whether a report, maybe of an older version, has written to the folder."""
    index = out / "index.html"
    return (out / MARKER).exists() or (index.is_file() and f"<title>{TITLE}</title>".encode() in index.read_bytes())


def _write(out: Path, files: dict[str, bytes]) -> None:
    try:
        for name, data in files.items():
            write_atomic(out / name, data)
    except OSError as error:
        raise ConfigError(f"cannot write to {out} ({error.strerror}); choose another folder with --out") from None
