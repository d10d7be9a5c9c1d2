"""What an installed wheel does: `python python/tests/module.py`, from the repository's root, with the wheel's Python.

Plain asserts, so that nothing but the wheel has to be installed.
"""

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import lowtide

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "examples" / "quickstart" / "run.yaml"
FEW = {
    "device": "cpu",
    "train.steps": 4,
    "train.warmup_steps": 0,
    "eval.every_steps": 2,
    "checkpoint.every_steps": 2,
    "eval.generate.exact_match": False,
    "plan.machine": str(ROOT / "examples" / "machines" / "h200.json"),
}
#: A run of keys alone.
KEYS = {
    "model": {"path": str(ROOT / "examples" / "quickstart" / "base")},
    "data": {"train": str(ROOT / "examples" / "quickstart" / "train.jsonl")},
    "budget": {"device": "1GiB", "host": "256MiB"},
    "train": {"steps": 2000, "micro_batch": 2, "seq": 128, "learning_rate": 1e-4, "warmup_steps": 0},
    "device": "cpu",
    "plan": {"machine": FEW["plan.machine"]},
}


def fails(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def plans(folder):
    plan = lowtide.plan(RUN, set=FEW)
    assert plan["fits"] and plan["step_seconds"] > 0
    brief = lowtide.plan(RUN, set=FEW, brief=True)
    assert brief["hash"] == plan["hash"] and plan["outlook"] and brief["outlook"] is None
    shape = lowtide.plan_shape(
        "qwen2.5-0.5b", device_memory="8GiB", host_memory="16GiB", micro_batch=1, seq=512, brief=True
    )
    assert shape["fits"] and shape["parameters"] > 400e6
    refused = fails(lowtide.Refused, lambda: lowtide.plan(RUN, set={**FEW, "budget.device": "1MiB"}))
    assert refused.exit_code == 2 and refused.help and refused.facts["fits"] is False
    again = pickle.loads(pickle.dumps(refused))
    assert (again.facts, str(again)) == (refused.facts, str(refused))


def mistakes(folder):
    error = fails(lowtide.LowtideError, lambda: lowtide.plan(folder / "none.yaml"))
    assert "none.yaml" in str(error) and error.exit_code == 2 and error.help
    error = fails(lowtide.LowtideError, lambda: lowtide.plan(RUN, set={"train.stpes": 1}))
    assert "did you mean 'train.steps'" in str(error)
    error = fails(lowtide.LowtideError, lambda: lowtide.plan({"model": {"path": "-", "shpae": 1}}))
    assert "shpae" in str(error)
    fails(ValueError, lambda: lowtide.generate(RUN, message="a", prompt="b"))
    training = lowtide.train(folder / "none.yaml")
    fails(lowtide.LowtideError, lambda: list(training))
    fails(RuntimeError, lambda: training.result)


def trains(folder):
    out = folder / "out"
    with lowtide.train(RUN, set={**FEW, "output": out}) as training:
        events = list(training)
    steps = [event for event in events if event["event"] == "step"]
    with open(out / "metrics.jsonl") as file:
        lines = [json.loads(line) for line in file]
    kept = [line for line in lines if "loss" in line]
    assert [{**line, "event": "step"} for line in kept] == steps and len(steps) == 4
    evaluations = [event["eval_loss"] for event in events if event["event"] == "evaluation"]
    assert evaluations == [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert sum(event["event"] == "checkpoint" for event in events) == 2
    report = training.result
    assert report["steps"] == 4 and report["eval_loss_last"] == evaluations[-1]
    assert lowtide.train(RUN, set={**FEW, "output": out}).wait()["nothing_to_do"]
    assert lowtide.evaluate(RUN, set={**FEW, "output": out})["eval_loss"] == report["eval_loss_last"]
    assert lowtide.check(out)["whole"]
    told = lowtide.export(RUN, folder / "f16", dtype="f16", set={**FEW, "output": out})
    assert told["step"] == 4 and told["dtype"] == "f16" and (folder / "f16" / "model.safetensors").exists()
    assert lowtide.report(out)
    arms = {"fast": {"train.learning_rate": 1e-3}}
    compared = lowtide.compare(RUN, steps=1, arms=arms, set={**FEW, "output": out})
    assert [arm["name"] for arm in compared["arms"]] == ["run", "fast"] and compared["steps"] == 1
    answer = lowtide.generate(RUN, prompt="The", max_new_tokens=1, set={**FEW, "output": out})
    assert answer


def stops(folder):
    """A run of keys alone, stopped from outside the loop, goes on from where it was."""
    keys = {**KEYS, "output": folder / "keys"}
    with lowtide.train(keys) as training:
        for event in training:
            if event["event"] == "step" and event["step"] == 3:
                break
    report = training.result
    assert report["stopped"] and 3 <= report["steps"] < 2000, report
    with lowtide.train(keys) as training:
        first = next(event for event in training if event["event"] == "step")
    assert first["step"] == report["steps"] + 1, first


#: A script whose loop is interrupted.
SCRIPT = """
import json, sys
import lowtide
with lowtide.train(json.loads(sys.argv[1])) as training:
    for event in training:
        if event["event"] == "step":
            print(event["step"], flush=True)
"""


def interrupted(folder):
    """Ctrl-C of a terminal reaches the script and the command: what was made is saved."""
    keys = {**KEYS, "output": str(folder / "keys")}
    keys["train"] = {**keys["train"], "steps": 1000000}
    line = [sys.executable, "-c", SCRIPT, json.dumps(keys)]
    script = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    for step in script.stdout:
        if int(step) == 3:
            break
    os.killpg(script.pid, signal.SIGINT)
    assert script.wait() != 0
    with lowtide.train(keys) as training:
        first = next(event for event in training if event["event"] == "step")
    assert first["step"] > 3, first


#: A script that is interrupted while it waits, by nobody whom the command would hear.
WAITS = """
import json, signal, sys, threading
import lowtide
training = lowtide.train(json.loads(sys.argv[1]))
for event in training:
    if event["event"] == "step" and event["step"] == 3:
        break
threading.Timer(1.5, signal.raise_signal, [signal.SIGINT]).start()
try:
    training.wait()
except KeyboardInterrupt:
    assert training._process._process.poll() is None
else:
    raise AssertionError("not interrupted")
training.stop()
first = training.wait()
assert first["stopped"] and training.result == first, first
with_block = None
try:
    with lowtide.train(json.loads(sys.argv[1])) as training:
        next(event for event in training if event["event"] == "step")
        threading.Timer(1.5, signal.raise_signal, [signal.SIGINT]).start()
        training.wait()
except KeyboardInterrupt:
    with_block = training.result
assert with_block["stopped"] and with_block["steps"] > first["steps"], with_block
"""


def waits(folder):
    keys = {**KEYS, "output": str(folder / "keys")}
    keys["train"] = {**keys["train"], "steps": 1000000}
    # In a session of its own: a command that stays behind would be a process of it.
    line = [sys.executable, "-c", WAITS, json.dumps(keys)]
    subprocess.run(line, check=True, start_new_session=True, timeout=300)


def keys_of_any_kind(folder):
    """Overrides of keys in a mapping that exclude each other; values longer than an argument."""
    few = {**KEYS, "train.epochs": 2, "output": folder / "out"}
    few["train"] = {k: v for k, v in KEYS["train"].items() if k != "steps"}
    assert lowtide.plan(few, set={"train.steps": 3}, brief=True)["fits"]
    both = fails(lowtide.LowtideError, lambda: lowtide.plan({**few, "train.steps": 3}))
    assert "cannot both hold" in str(both), both
    # The current directory is where relative paths of a mapping begin.
    here = os.getcwd()
    os.chdir(ROOT / "examples" / "quickstart")
    try:
        assert lowtide.plan({**few, "model": {"path": "base"}, "data": {"train": "train.jsonl"}}, brief=True)["fits"]
    finally:
        os.chdir(here)
    long = "\U0001f600" * 50000
    for run, sets in (({**few, "data.system": long}, None), (few, {"data.system": long})):
        assert lowtide.plan(run, set=sets, brief=True)["fits"]
    # Together they are longer than what a program is started with: the command reads them and says what is wrong.
    many = {f"data.unknown_{i}": "x" * 60000 for i in range(60)}
    wrong = fails(lowtide.LowtideError, lambda: lowtide.plan(few, set=many))
    assert "data.unknown_0" in str(wrong), wrong
    # A file whose name begins as one for paths from here.
    os.chdir(folder)
    try:
        one = {**KEYS, "output": str(folder / "out")}
        Path("@run.yaml").write_text(json.dumps(one, default=str), encoding="utf-8")
        assert lowtide.plan("@run.yaml", brief=True)["fits"]
    finally:
        os.chdir(here)
    message = fails(ValueError, lambda: lowtide.generate(few, message=long))
    assert "--message" in str(message) and "bytes" in str(message), message


def command(folder):
    for line in ([lowtide.binary()], [sys.executable, "-m", "lowtide"]):
        told = subprocess.run([*line, "--version"], capture_output=True, text=True, check=True)
        assert told.stdout.split()[-1] == lowtide.version()
    try:
        installed = metadata.version("lowtide")
    except metadata.PackageNotFoundError:
        return  # from the source tree
    assert installed == lowtide.version()


def main():
    logging.basicConfig(level=logging.WARNING)
    for test in (command, plans, mistakes, trains, stops, interrupted, waits, keys_of_any_kind):
        with tempfile.TemporaryDirectory() as folder:
            test(Path(folder))
        print(f"{test.__name__}: ok", flush=True)


main()
