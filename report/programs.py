"""Programs that are run side by side, and that save and end when this one is told to."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import rollnumber_04 as gan
from report import ROOT


@dataclass
class Task:
    """A program: the words after `python`, and what is done when it has ended well.

    What it prints goes into a file, if one is named; its complaints, too, if it is a `log`.
    """

    words: list[str]
    output: Path | None = None
    is_log: bool = False
    done: Callable[[], Any] = lambda: None

    def start(self) -> subprocess.Popen:
        """Start it, in a process group of its own, so that `stop` reaches its workers, too."""
        own_group = {"process_group": 0} if os.name == "posix" else {}
        popen = partial(subprocess.Popen, [sys.executable, *self.words], cwd=ROOT, **own_group)
        if not self.output:
            return popen()
        self.output.parent.mkdir(parents=True, exist_ok=True)
        with open(self.output, "ab" if self.is_log else "wb") as file:
            return popen(stdout=file, stderr=subprocess.STDOUT if self.is_log else None)


def stop(process: subprocess.Popen) -> None:
    """Tell a program to end, and its own workers: by SIGTERM, at which a run saves. Windows ends it at once."""
    if os.name != "posix":
        process.terminate()
        return
    with suppress(ProcessLookupError):  # it has just ended
        os.killpg(process.pid, signal.SIGTERM)  # not SIGINT, to which background jobs of a shell are deaf


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Note Ctrl-C, SIGTERM and a terminal's end instead of dying of them, for what runs would go on."""
    signals: list[int] = []
    wanted = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ignored = (signal.SIG_IGN, None)  # nohup stays nohup
    before = {number: old for number in wanted if (old := signal.getsignal(number)) not in ignored}
    for number in before:
        signal.signal(number, lambda number, frame: signals.append(number))
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_all(tasks: Sequence[Task], jobs: int, deadline: float) -> None:
    """Run programs, `jobs` at a time; after a failure none of the others is begun.

    Those under way are told to end, once, at the deadline or at a signal: `timeout` sends two, and a run's second is to
    stop it unsaved. Raises UserError, or Stopped after a signal, when all that was begun has ended.
    """
    waiting, running, failure, is_told = [*tasks], {}, None, False
    with noted_signals() as signals:
        try:
            while running or (waiting and not failure and not signals):
                is_over = time.monotonic() >= deadline
                if (signals or is_over) and not is_told:
                    is_told = True
                    failure = failure or gan.UserError("the budget is spent; the same command goes on", status=1)
                    for process in running:
                        stop(process)
                    if running:
                        print("waiting for the runs to save", file=sys.stderr, flush=True)
                while waiting and not failure and not signals and len(running) < jobs:
                    task = waiting.pop(0)
                    running[task.start()] = task
                time.sleep(0.05)
                for process in [process for process in running if process.poll() is not None]:
                    task = running.pop(process)
                    if not process.returncode:
                        task.done()
                    elif not failure:
                        where = f" (see {task.output})" if task.is_log else ""
                        said = f"python {shlex.join(task.words)} ended with status {process.returncode}{where}"
                        failure = gan.UserError(said, status=1)
                        if running:
                            print(f"{said}; waiting for what runs beside it", file=sys.stderr, flush=True)
        finally:  # nothing is left, unless this program itself has failed
            for process in running:
                stop(process)
                process.wait()
    if signals:
        raise gan.Stopped(signals[0])
    if failure:
        raise failure
