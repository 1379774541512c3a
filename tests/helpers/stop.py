"""A stop signal or a kill just before a chosen step: what the tests of interruption share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from jigclu.training import interrupt
from jigclu.training.session import Session


def steady(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl less what is the machine's: two runs of one job agree in the rest."""
    return {
        name: value
        for name, value in line.items()
        if name not in ("time", "images_per_second") and not name.startswith("system/")
    }


class Killed(BaseException):
    """Ends the process's work at once, nothing saved."""


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, str]]:
    """{step: "stop" or "kill"}: what comes over the job just before that step is ticked."""
    plan: dict[int, str] = {}
    tick = Session.tick

    def ticked(session: Session, *arguments: Any, **keywords: Any) -> None:
        what = plan.pop(session.step + 1, "")
        if what == "kill":
            raise Killed
        if what == "stop":
            interrupt.request()
        tick(session, *arguments, **keywords)

    monkeypatch.setattr(Session, "tick", ticked)
    yield plan
