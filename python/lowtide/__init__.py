"""Fine-tunes all parameters of a large language model on one GPU whose memory is far smaller than the training state.

Each function runs the command `lowtide` and gives its answer::

    import lowtide

    plan = lowtide.plan("run.yaml", set={"budget.device": "24GiB"})
    print(plan["step_seconds"])

    with lowtide.train("run.yaml") as training:
        for event in training:
            if event["event"] == "step":
                print(event["step"], event.get("loss"))
    print(training.result["eval_loss_last"])

A run is a path of a run file, or a mapping of its keys. `set` overrides keys, as `--set` does: relative paths in a mapping
or in `set` begin at the current directory, those in a run file at the file's. What the command tells people goes to the
logger `lowtide`, at INFO. What can go wrong raises `LowtideError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any, Union

from ._command import Command, LowtideError, Refused, binary, text, version
from ._training import Training

__all__ = [
    "LowtideError",
    "Refused",
    "Training",
    "binary",
    "check",
    "compare",
    "data",
    "evaluate",
    "export",
    "generate",
    "plan",
    "plan_shape",
    "probe",
    "report",
    "train",
    "verify",
    "version",
]

Run = Union[str, "PathLike[str]", Mapping[str, Any]]
Path = Union[str, "PathLike[str]"]


def plan(
    run: Run, *, set: Mapping[str, Any] | None = None, machine: Path | None = None, brief: bool = False
) -> dict[str, Any]:
    """Where everything would live and how long a step would take. Reserves nothing.

    machine: a file of rates as `probe` writes it; without one this machine is measured.
    brief: without what other choices and budgets would give (`outlook`), which takes several times as long as the plan.
    Raises `Refused` where nothing fits: its facts name what is needed, and budgets that do.
    """
    command = Command("plan").run(run, set)
    command.option("--machine", machine)
    command.flag("--brief", brief)
    return command.answer()


def plan_shape(
    shape: str,
    *,
    device_memory: str,
    host_memory: str,
    disk: str | Iterable[str] = (),
    micro_batch: int | None = None,
    seq: int | None = None,
    accumulate: int | None = None,
    gpus: int | None = None,
    machine: Path | None = None,
    brief: bool = False,
    set: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The same for a built-in shape, such as `llama2-7b`; without `machine` on the reference H200."""
    command = Command("plan")
    command.option("--shape", shape)
    command.option("--device-memory", device_memory)
    command.option("--host-memory", host_memory)
    for drive in [disk] if isinstance(disk, str) else disk:
        command.option("--disk", drive)
    command.option("--micro-batch", micro_batch)
    command.option("--seq", seq)
    command.option("--accumulate", accumulate)
    command.option("--gpus", gpus)
    command.option("--machine", machine)
    command.flag("--brief", brief)
    command.sets(set)
    return command.answer()


def train(run: Run, *, set: Mapping[str, Any] | None = None, gpus: int | None = None) -> Training:
    """Starts a training, or goes on with it from its newest checkpoint.

    Gives at once; iterate over it for its events, or call `wait` for its report.
    """
    command = Command("train").run(run, set)
    command.option("--gpus", gpus)
    return Training(command)


def evaluate(run: Run, *, model: Path | None = None, set: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Loss, and exact match where the run asks for it, on the run's evaluation data; of `model`, else of the model that
    the run has made, else of the run's own."""
    command = Command("eval").run(run, set)
    command.option("--model", model)
    return command.answer()


def export(
    run: Run,
    directory: Path,
    *,
    checkpoint: Path | None = None,
    dtype: str | None = None,
    shard_size: str | None = None,
    set: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes the model of a run's checkpoint as a Hugging Face directory, in type `f32`, `bf16` or `f16`."""
    command = Command("export").run(run, set).argument(directory)
    command.option("--checkpoint", checkpoint)
    command.option("--dtype", dtype)
    command.option("--shard-size", shard_size)
    return command.answer()


def generate(
    run: Run,
    *,
    message: str | None = None,
    prompt: str | None = None,
    max_new_tokens: int | None = None,
    model: Path | None = None,
    set: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Answers a message by the model's chat template, or continues a prompt as it is."""
    if (message is None) == (prompt is None):
        raise ValueError("give either message or prompt")
    command = Command("generate").run(run, set)
    command.option("--message", message)
    command.option("--prompt", prompt)
    command.option("--max-new-tokens", max_new_tokens)
    command.option("--model", model)
    return command.answer()


def verify(run: Run, *, steps: int | None = None, set: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Trains a slice of the model by the run's plan and all resident, and compares every bit."""
    command = Command("verify").run(run, set)
    command.option("--steps", steps)
    return command.answer()


def compare(
    run: Run,
    *,
    steps: int | None = None,
    arms: Mapping[str, Mapping[str, Any]] | None = None,
    html: Path | None = None,
    set: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains some steps exactly and in subspaces from the same start on the same batches, and says what each took to
    the same loss.

    arms: keys of other arms by their name, which are held against the run as it is.
    """
    command = Command("compare").run(run, set)
    command.option("--steps", steps)
    for name, keys in (arms or {}).items():
        for key, value in keys.items():
            command.option("--arm", f"{name}:{key}={text(value)}")
    command.option("--html", html)
    return command.answer()


def data(run: Run, *, set: Mapping[str, Any] | None = None, html: Path | None = None) -> dict[str, Any]:
    """What the run would train on: samples, counts, lengths, what is cut and left out."""
    command = Command("data").run(run, set)
    command.option("--html", html)
    return command.answer()


def probe(
    run: Run | None = None,
    *,
    out: Path = "machine.json",
    set: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measures this machine, at a run's shapes where there is one, and writes the rates to `out`."""
    command = Command("probe")
    if run is not None:
        command.run(run, set)
    elif set:
        raise ValueError("set is of a run")
    command.option("--out", out)
    return command.answer()


def check(directory: Path) -> dict[str, Any]:
    """Reads every file of a checkpoint, a model or an output and holds it against its checksum."""
    return Command("check").argument(directory).answer()


def report(*directories: Path, html: Path | None = None) -> dict[str, Any]:
    """A run by its output directory, or several beside each other."""
    if not directories:
        raise ValueError("give the output directory of a run")
    command = Command("report")
    for directory in directories:
        command.argument(directory)
    command.option("--html", html)
    return command.answer()
