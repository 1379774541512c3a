"""A stop signal or a kill just before a chosen step, for the tests of interruption."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from jigclu.training import interrupt
from jigclu.training.session import Session


def steady(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl without what depends on the machine: in the rest two runs of one job agree."""
    return {
        name: value
        for name, value in line.items()
        if name not in ("time", "images_per_second") and not name.startswith("system/")
    }


class Killed(BaseException):
    """Ends the job at once; nothing is saved."""


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, str]]:
    """{step: "stop" or "kill"}: what happens to the job just before that step is ticked."""
    plan: dict[int, str] = {}
    tick = Session.tick

    def ticked(session: Session, *arguments: Any, **keywords: Any) -> None:
        event = plan.pop(session.step + 1, "")
        if event == "kill":
            raise Killed
        if event == "stop":
            interrupt.request()
        tick(session, *arguments, **keywords)

    monkeypatch.setattr(Session, "tick", ticked)
    yield plan
