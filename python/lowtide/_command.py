"""Runs the command and reads its answer."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any

log = logging.getLogger("lowtide")

#: Lines of what the command told people that an error without an answer carries.
KEPT = 40


class LowtideError(Exception):
    """What the command could not do.

    exit_code: 2 where it can be put right by whoever called, 1 for a bug of lowtide, otherwise negative: the signal
    that ended it, as `subprocess` has it.
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
        self.overrides: list[str] = []

    def run(self, run: Any, sets: Mapping[str, Any] | None) -> Command:
        """A run file, or a mapping of keys, and overrides."""
        if isinstance(run, Mapping):
            self.keys = nested(run)
        else:
            path = os.fspath(run)
            # A name that begins with @ would be read as one of a file elsewhere.
            self.arguments.append(f"./{path}" if path.startswith("@") else path)
        self.sets(sets)
        return self

    def sets(self, sets: Mapping[str, Any] | None) -> None:
        """Overrides of keys; JSON is YAML."""
        for key, value in (sets or {}).items():
            self.overrides.append(f"{key}={text(value)}")

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
        """Runs it to its end. Whoever is interrupted meanwhile leaves nothing behind that runs."""
        process = self.start("--json")
        try:
            return process.finish()
        except LowtideError:
            raise
        except BaseException:
            process.end()
            raise


def plain(value: Any) -> Any:
    """A value with paths as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def text(value: Any) -> str:
    """A value as JSON in one line, which is YAML."""
    # YAML knows no pairs of surrogates, by which JSON writes what is beyond 16 bits.
    return json.dumps(plain(value), ensure_ascii=False)


def nested(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Keys as a run file has them: `{"train.steps": 3}` is `{"train": {"steps": 3}}`."""
    root: dict[str, Any] = {}
    for key, value in keys.items():
        *sections, last = str(key).split(".")
        at = root
        for section in sections:
            inner = at.setdefault(section, {})
            if not isinstance(inner, dict):
                raise ValueError(f"{key}: {section} is given a value, too")
            at = inner
        if isinstance(value, Mapping):
            inside, before = nested(value), at.get(last)
            at[last] = merged(before, inside) if isinstance(before, dict) else inside
        else:
            at[last] = plain(value)
    return root


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Two mappings, the other one over the one."""
    both = dict(one)
    for key, value in other.items():
        before = both.get(key)
        both[key] = merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return both


#: Bytes that one argument of a program may have on Linux, its end included.
ARGUMENT = 128 << 10


class Process:
    """A command that runs."""

    def __init__(self, command: Command, more: list[str]) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        line = [binary(), command.name, *more]
        try:
            if command.keys is not None:
                # With @ its relative paths begin at the current directory.
                line.append(f"@{self._file('run.yaml', text(command.keys))}")
            line += command.arguments
            if sum(len(override.encode()) for override in command.overrides) > ARGUMENT // 2:
                line += ["--set", f"@{self._file('set', *command.overrides)}"]
            else:
                line += [word for override in command.overrides for word in ("--set", override)]
            for word in line:
                if len(os.fsencode(word)) >= ARGUMENT:
                    raise ValueError(
                        f"{word[:40]}…: {len(os.fsencode(word))} bytes, and an argument of a command may have "
                        f"{ARGUMENT - 1}"
                    )
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
        self._last: dict[str, Any] | None = None
        assert self._process.stdout is not None and self._process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read_values, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._read_told, args=(self._process.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        self._open = True

    def _file(self, name: str, *lines: str) -> Path:
        """A file of these lines that goes with the command."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="lowtide-")
        path = Path(self._folder.name) / name
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

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
                if not isinstance(value, dict):
                    continue
                if "event" in value:
                    self._values.put(value)
                else:
                    self._last = value
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
            try:
                value = self._values.get(timeout=1.0)
            except Empty:
                # An interrupt may have lost the value that says that there are no more.
                self._open = self._readers[0].is_alive() or not self._values.empty()
                continue
            if value is not None:
                return value
            self._open = False
        return None

    def end(self) -> None:
        """Ends it, and waits until it has."""
        self.signal(signal.SIGTERM)
        self._process.wait()
        self._clean()

    def finish(self) -> dict[str, Any]:
        """Waits for its end; gives its answer or raises. What is interrupted can be asked again.

        An exit code that tells what was found (`verify`, `check`), or that it was stopped, is no error."""
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
