"""Runs the command and reads its answer."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

log = logging.getLogger("lowtide")

#: Lines of what the command told people that an error without an answer carries.
KEPT = 40


class LowtideError(Exception):
    """What the command could not do.

    exit_code: 2 where it can be put right by whoever called, 1 for a bug of lowtide, otherwise negative: the signal that
    ended it, as `subprocess` has it.
    help: what to do, a line each.
    facts: the whole answer of the command.
    """

    def __init__(self, message: str, exit_code: int, help: list[str], facts: dict[str, Any]) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.help = help
        self.facts = facts

    def __str__(self) -> str:
        return "\n  help: ".join([str(self.args[0]), *self.help])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.exit_code, self.help, self.facts)


class Refused(LowtideError):
    """No plan fits the budgets. `facts` name what is needed, and budgets that do."""


def binary() -> str:
    """The command of this package: the one that was installed with it, else the first on the path.

    `LOWTIDE_BINARY` names another one.
    """
    named = os.environ.get("LOWTIDE_BINARY")
    if named:
        return named
    folders = [Path(sysconfig.get_path("scripts"))]
    # An environment into which `pip install --target` or `--user` put it.
    folders.append(Path(__file__).resolve().parent.parent / "bin")
    folders.append(Path(sysconfig.get_path("scripts", scheme=f"{os.name}_user")))
    folders += [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    for folder in folders:
        path = folder / "lowtide"
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
    raise FileNotFoundError("the command lowtide is not installed: pip install lowtide, or set LOWTIDE_BINARY")


def version() -> str:
    """Version of the command."""
    told = subprocess.run([binary(), "--version"], capture_output=True, text=True, check=True)
    return told.stdout.split()[-1]


class Command:
    """A command line in the making."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.arguments: list[str] = []
        self.keys: Mapping[str, Any] | None = None

    def run(self, run: Any, sets: Mapping[str, Any] | None) -> Command:
        """A run file, or a mapping of keys, and overrides."""
        if isinstance(run, Mapping):
            self.keys = run
            self.sets(run)
        else:
            self.arguments.append(os.fspath(run))
        self.sets(sets)
        return self

    def sets(self, sets: Mapping[str, Any] | None) -> None:
        """Overrides of keys; JSON is YAML."""
        for key, value in (sets or {}).items():
            self.arguments += ["--set", f"{key}={json.dumps(plain(value))}"]

    def option(self, name: str, value: Any) -> None:
        """An option, where it has a value."""
        if value is not None:
            # One word, so that a value may begin with a dash.
            self.arguments.append(f"{name}={os.fspath(value) if isinstance(value, os.PathLike) else value}")

    def flag(self, name: str, given: bool) -> None:
        """A flag, where it is given."""
        if given:
            self.arguments.append(name)

    def argument(self, value: Any) -> Command:
        """A positional argument."""
        self.arguments.append(os.fspath(value))
        return self

    def start(self, *more: str) -> Process:
        """Starts it."""
        return Process(self, list(more))

    def answer(self) -> dict[str, Any]:
        """Runs it to its end."""
        return self.start("--json").finish()


def plain(value: Any) -> Any:
    """A value with paths as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


class Process:
    """A command that runs."""

    def __init__(self, command: Command, more: list[str]) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        line = [binary(), command.name, *more]
        if command.keys is not None:
            # All keys are overrides of an empty run file, so relative paths begin at the current directory.
            self._folder = tempfile.TemporaryDirectory(prefix="lowtide-")
            empty = Path(self._folder.name) / "run.yaml"
            empty.write_text("{}\n")
            line.append(str(empty))
        line += command.arguments
        try:
            self._process = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
            )
        except BaseException:
            self._clean()
            raise
        self._told: deque[str] = deque(maxlen=KEPT)
        # Both are read all the time: a command must not stand still because nobody looks at what it says.
        self._values: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        assert self._process.stdout is not None and self._process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read_values, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._read_told, args=(self._process.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self._last: dict[str, Any] | None = None
        self._open = True

    def _read_told(self, stderr: IO[str]) -> None:
        with stderr:
            for line in stderr:
                line = line.rstrip("\n")
                self._told.append(line)
                log.info("%s", line)

    def _read_values(self, stdout: IO[str]) -> None:
        with stdout:
            for line in stdout:
                try:
                    value = json.loads(line)
                except ValueError:
                    continue
                if isinstance(value, dict):
                    self._values.put(value)
        self._values.put(None)

    def _clean(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    def signal(self, number: int) -> None:
        """Sends it a signal, if it still runs."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def event(self) -> dict[str, Any] | None:
        """The next event; waits for it. None when there are no more."""
        while self._open:
            value = self._values.get()
            if value is None:
                self._open = False
            elif "event" in value:
                return value
            else:
                self._last = value
        return None

    def finish(self) -> dict[str, Any]:
        """Waits for its end; gives its answer or raises. An exit code that tells what was found (`verify`, `check`), or that it
        was stopped, is no error."""
        while self.event() is not None:
            pass
        code = self._process.wait()
        for reader in self._readers:
            reader.join()
        self._clean()
        answer = self._last
        if answer is None or "error" in answer:
            raise error(answer or {}, code, list(self._told))
        return answer


def error(answer: dict[str, Any], code: int, told: list[str]) -> LowtideError:
    """What to raise for an answer, or for none."""
    message = answer.get("error")
    if message is None:
        message = "\n".join(told) or f"the command ended with {code} and said nothing"
    kind = Refused if answer.get("fits") is False else LowtideError
    return kind(str(message), code, [str(line) for line in answer.get("help", [])], answer)


def main() -> None:
    """Becomes the command: `python -m lowtide`."""
    path = binary()
    os.execv(path, [path, *sys.argv[1:]])
