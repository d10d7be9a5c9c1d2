"""A training that runs."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from ._command import Command, LowtideError, Process


class Training:
    """A training in a process of its own.

    Iterating gives its events as they happen, each a mapping with the key `event`: `step` (`step`, `steps`, `loss`,
    `grad_norm`, `learning_rate`, `tokens`, `tokens_per_second`, `seconds`, `predicted_seconds`), `evaluation` (`step`,
    `eval_loss`, `eval_accuracy`), `answers` (`when`, `exact_match`, `prompts`) and `checkpoint` (`path`). At the end
    what stopped it is raised, if something did; otherwise `result` is its report.

    Leaving a `with` block while it runs stops it as Ctrl-C does: it saves, and the same call goes on from there.
    """

    def __init__(self, command: Command) -> None:
        self._process: Process = command.start("--events")
        self._result: dict[str, Any] | None = None
        self._ended = False

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        event = None if self._ended else self._process.event()
        if event is None:
            self.wait()
            raise StopIteration
        return event

    def wait(self) -> dict[str, Any]:
        """Waits for its end; gives its report, or raises what stopped it. Events that were not read are lost.

        An exception that interrupts it (a KeyboardInterrupt, say) leaves the training as it is: wait again, or stop it.
        A `with` block stops it, and the Ctrl-C of a terminal reaches the command itself."""
        if not self._ended:
            try:
                self._result = self._process.finish()
            except LowtideError:
                self._ended = True
                raise
            self._ended = True
        if self._result is None:
            raise RuntimeError("the training has failed before")
        return self._result

    @property
    def result(self) -> dict[str, Any]:
        """Its report, once it has ended."""
        if self._result is None:
            raise RuntimeError("the training has not ended, or has failed: iterate over it, or call wait()")
        return self._result

    def stop(self) -> None:
        """Asks it to save and to end; `wait` tells when it has. Its report then has `stopped`. Asking again, or after
        the Ctrl-C that a terminal sends to both processes, changes nothing."""
        # Any other signal would end at once a run that is saving already.
        self._process.signal(signal.SIGUSR2)

    def save(self) -> None:
        """Asks it for a checkpoint behind the step under way."""
        self._process.signal(signal.SIGUSR1)

    def kill(self) -> None:
        """Ends it at once. What was saved stays."""
        self._process.signal(signal.SIGKILL)

    def __enter__(self) -> Training:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ended:
            return
        self.stop()
        try:
            self.wait()
        except Exception:
            # What broke the block is what its caller has to see.
            if kind is None:
                raise
