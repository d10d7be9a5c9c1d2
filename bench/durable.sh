#!/usr/bin/env bash
# A durable run that is killed (kill -9) at random moments and goes on, beside the same run unbroken: losses, norms
# and every byte of the final model must be the same, and no step that was completed may be lost.
#
#   bench/durable.sh FOLDER [KILLS [KEY=VALUE...]]
#
# Without KEY=VALUE: qwen2.5-1.5b from random weights, device 24 GiB, host 30 GiB, disk 50 GiB, 5 steps.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:?a folder}")
kills=${2:-3}
shift $(($# < 2 ? $# : 2))
lowtide=${LOWTIDE:-target/gpu/lowtide}
mkdir -p "$out"
cat >"$out/run.yaml" <<YAML
model: { shape: qwen2.5-1.5b, init: random, tokenizer: $PWD/examples/quickstart/base }
precision: bf16
budget: { device: 24GiB, host: 30GiB, disk: [{ dir: $out/disk, size: 50GiB }] }
data: { train: $PWD/examples/quickstart/train.jsonl }
train: { steps: 5, micro_batch: 4, seq: 256, learning_rate: 1e-4 }
checkpoint: { durable: true, every_steps: 1000000 }
YAML
sets=()
for pair in "$@"; do sets+=(--set "$pair"); done

run() { # NAME: one attempt, until it ends
    "$lowtide" train "$out/run.yaml" --set "output=$out/$1" "${sets[@]}" >>"$out/$1.log" 2>&1
}
losses() { # NAME: step, loss and norm of every step
    python3 - "$out/$1/metrics.jsonl" <<'PY'
import json, sys
for line in open(sys.argv[1]):
    step = json.loads(line)
    if "loss" in step:
        print(step["step"], step["loss"], step["grad_norm"])
PY
}

echo "unbroken:"
began=$(date +%s.%N)
run whole
took=$(awk -v a="$began" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }')
rm -rf "$out/disk"
echo "  $took s"
echo "killed:"
RANDOM=${SEED:-1}
for i in $(seq "$kills"); do
    run broken &
    pid=$!
    # Not in the first third, in which nothing steps yet.
    after=$(awk -v t="$took" -v r=$RANDOM 'BEGIN { printf "%.1f", t * (0.35 + 0.4 * r / 32767) }')
    sleep "$after"
    # The function's shell and the command below it.
    pkill -9 -P "$pid" || true
    wait "$pid" 2>/dev/null || true
    echo "  after $after s, $( (losses broken || true) 2>/dev/null | wc -l) steps in the metrics"
done
run broken
grep -h "went on from\|resumed from" "$out/broken.log" | sed 's/^/  /' || true
diff <(losses whole) <(losses broken) && echo "same losses and norms, $(losses whole | wc -l) steps"
(cd "$out/whole/model" && sha256sum ./*.safetensors) >"$out/whole.sum"
(cd "$out/broken/model" && sha256sum ./*.safetensors) | diff "$out/whole.sum" - && echo "same bytes of the model"
rm -rf "$out/whole" "$out/broken"
