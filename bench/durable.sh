#!/usr/bin/env bash
# A durable run that is killed (kill -9) in the middle of steps and goes on, beside the same run unbroken:
# losses, norms and every byte of the final model must be the same, and no completed step may be lost. A step is
# complete when its update is on the drive, which goes on during the next step: of the steps that have told their loss
# at most the last is made again.
#
#   bench/durable.sh FOLDER [KILLS [KEY=VALUE...]]
#
# Without KEY=VALUE: qwen2.5-1.5b from random weights, device 24 GiB, host 30 GiB, disk 50 GiB, 4 steps. The
# folder's drive needs 60 GiB.
set -euo pipefail
cd "$(dirname "$0")/.."
source bench/head.sh
out=$(realpath -m "${1:?a folder}")
kills=${2:-2}
shift $(($# < 2 ? $# : 2))
lowtide=${LOWTIDE:-target/gpu/lowtide}
record_head "$out" "a durable run that is killed beside one that is not" built
cat >"$out/run.yaml" <<YAML
model: { shape: qwen2.5-1.5b, init: random, tokenizer: $PWD/examples/quickstart/base }
precision: bf16
budget: { device: 24GiB, host: 30GiB, disk: [{ dir: $out/disk, size: 50GiB }] }
data: { train: $PWD/examples/quickstart/train.jsonl }
train: { steps: 4, micro_batch: 4, seq: 256, learning_rate: 1e-4 }
checkpoint: { durable: true, every_steps: 1000000 }
YAML
sets=()
for pair in "$@"; do sets+=(--set "$pair"); done

run() { # NAME LOG: one attempt, until it ends
    "$lowtide" train "$out/run.yaml" --set "output=$out/$1" "${sets[@]}" >"$out/$2.log" 2>&1
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
steps() { # NAME: how many steps it has completed
    (losses "$1" || true) 2>/dev/null | wc -l
}
keep() { # NAME: what is compared; the rest makes room
    losses "$1" >"$out/$1.losses"
    (cd "$out/$1/model" && sha256sum ./*.safetensors) >"$out/$1.sum"
    rm -rf "${out:?}/$1" "$out/disk"
}

echo "unbroken:"
began=$(date +%s.%N)
run whole whole
awk -v a="$began" -v b="$(date +%s.%N)" 'BEGIN { printf "  %.1f s\n", b - a }'
# Seconds between steps, to kill in the middle of one.
each=$(sed -n 's/^a step *\([0-9.]*\) \(ms\|s\) measured.*/\1 \2/p' "$out/whole.log" | awk '{ print ($2 == "ms" ? $1 / 1000 : $1) }')
keep whole
echo "killed:"
RANDOM=${SEED:-1}
told=()
for i in $(seq "$kills"); do
    had=$(steps broken)
    run broken "broken-$i" &
    pid=$!
    # One step more, two at least (the last one's update may not be on the drive), and then some of the next.
    least=$((had < 1 ? 2 : had + 1))
    while [ "$(steps broken)" -lt "$least" ] && kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
    pause=$(awk -v t="$each" -v r=$RANDOM 'BEGIN { printf "%.2f", t * (0.15 + 0.7 * r / 32767) }')
    sleep "$pause"
    # The function's shell and the command below it.
    pkill -9 -P "$pid" || true
    wait "$pid" 2>/dev/null || true
    told+=("$(steps broken)")
    echo "  $pause s after a step of $each s, ${told[-1]} steps in the metrics"
done
run broken "broken-$((kills + 1))"
for i in "${!told[@]}"; do
    after=$(sed -n 's/.*went on from .* after step \([0-9]*\)$/\1/p' "$out/broken-$((i + 2)).log")
    echo "  went on after step ${after:-0}"
    [ "${after:-0}" -ge $((told[i] - 1)) ] || { echo "a completed step was lost"; exit 1; }
done
keep broken
diff "$out/whole.losses" "$out/broken.losses" && echo "same losses and norms, $(wc -l <"$out/whole.losses") steps"
diff "$out/whole.sum" "$out/broken.sum" && echo "same bytes of the model"
