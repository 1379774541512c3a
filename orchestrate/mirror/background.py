"""MLflow updates from side threads: beside a training, or beside an orchestrator that waits for jobs."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from orchestrate.console import print_line
from orchestrate.mirror.address import is_server, tracking_uri
from orchestrate.mirror.sync import MirrorError, sync


class SideMirror:
    """Mirrors one job folder to a tracking server from a thread beside the training. Never raises or delays it.

    Does nothing unless tracking is a server: sqlite has one writer, the orchestrator.
    """

    def __init__(self, folder: Path, interval_s: float = 30.0):
        self._folder, self._interval = Path(folder), interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._last_warning = ""

    def start(self) -> None:
        if is_server(tracking_uri(self._folder.parent.parent)):
            self._thread.start()

    def stop(self, timeout: float = 15.0) -> None:
        """Wait at most `timeout` seconds for one last pass; the orchestrator's next sync adds whatever it misses."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        last = False
        while not last:
            last = self._stop.wait(self._interval)
            try:
                sync(self._folder.parent.parent, [self._folder], wait_for_lock=last, tables=False)
            except Exception as error:  # MirrorError, or anything that a dying interpreter raises: training continues
                if str(error) != self._last_warning:
                    self._last_warning = str(error)
                    logging.getLogger(__name__).warning("%s", error)


MIRROR_SECONDS = 10.0


@contextlib.contextmanager
def mirroring(store: Path) -> Iterator[None]:
    """Keep MLflow up to date from a side thread while jobs run. The first failure is printed; none stops the jobs."""
    stop, failures = threading.Event(), list[str]()

    def once(final: bool = False) -> None:
        if not store.is_dir():  # moved or deleted: a sync would make a new one
            return
        try:
            sync(store, wait_for_lock=final)
        except MirrorError as error:
            if not failures:
                print_line(f"{time.strftime('%H:%M:%S')} warning: {error}")
            failures.append(str(error))

    def loop() -> None:
        while not stop.wait(MIRROR_SECONDS):
            once()

    thread = threading.Thread(target=loop, name="mirror", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        once(final=True)
