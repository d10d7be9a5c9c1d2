#!/usr/bin/env bash
# Records the GPU benches under bench/runs/<machine>-<date>/: exact commands and raw output.
# Runs on the machine with the GPU, which needs no Rust: `cargo xtask gpu` before, elsewhere.
#
#   bench/record-gpu.sh MACHINE [OUTPUT FOLDER]
set -uo pipefail
cd "$(dirname "$0")/.."
source bench/head.sh
machine=${1:?a short name of the machine}
out=${2:-bench/runs/$machine-$(date -u +%F)}
lowtide=target/gpu/lowtide
record_head "$out" "steps all resident and offloaded, rates, links, host and drive" built
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

record() { # NAME COMMAND...: the command line, then its raw output
    local name=$1
    shift
    { echo "\$ $*"; "$@" 2>&1; } >"$out/$name.txt"
    echo "$name: $(grep -E 'tokens/s|operations timed' "$out/$name.txt" | tail -n 1)"
}

{
    uname -srm
    lscpu | grep -E 'Model name|^CPU\(s\)'
    free -h | head -2
    nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm --format=csv
} >"$out/machine.txt"

step() { # NAME SHAPE DEVICE HOST MICRO_BATCH ACCUMULATE STEPS [MORE...]
    local name=$1 shape=$2 device=$3 host=$4 batch=$5 accumulate=$6 steps=$7
    shift 7
    record "step-$name" "$lowtide" bench step --shape "$shape" --micro-batch "$batch" --seq 2048 \
        --accumulate "$accumulate" --device-memory "$device" --host-memory "$host" \
        --steps "$steps" --json --set "plan.machine=$work/$shape.json" "$@"
}

# Rates at the run's own shapes, and what they make of a step.
for shape in qwen2.5-3b llama2-7b qwen2.5-0.5b; do
    printf 'model: { shape: %s, init: random }\ndata: { packing: false }\ntrain: { micro_batch: 8, seq: 2048 }\n' \
        "$shape" >"$work/$shape.yaml"
    record "probe-$shape" "$lowtide" probe "$work/$shape.yaml" --out "$work/$shape.json"
    python3 bench/gpu_table.py "$work/$shape.json" >"$out/rates-$shape.txt"
done

# What the links, the host and the drive give.
record links "$lowtide" bench links --json
record host "$lowtide" bench host --disk "$work" --json
record disk "$lowtide" bench disk --dir "$work" --json

# All resident.
step qwen2.5-3b-resident qwen2.5-3b 130GiB 60GiB 8 1 10
step llama2-7b-resident llama2-7b 138GiB 90GiB 8 1 6
step qwen2.5-0.5b-resident qwen2.5-0.5b 100GiB 60GiB 8 1 20
step qwen2.5-3b-traced qwen2.5-3b 130GiB 60GiB 8 1 3 --trace "$work/trace.json"
python3 bench/gpu_gaps.py "$work/trace.json" | tee "$out/gaps-qwen2.5-3b.txt"
step qwen2.5-0.5b-traced qwen2.5-0.5b 100GiB 60GiB 8 1 3 --trace "$work/trace.json"
python3 bench/gpu_gaps.py "$work/trace.json" | tee "$out/gaps-qwen2.5-0.5b.txt"

# Offloaded.
step qwen2.5-3b-24GiB qwen2.5-3b 24GiB 60GiB 8 1 6
step qwen2.5-3b-24GiB-65k qwen2.5-3b 24GiB 60GiB 8 4 3
step llama2-7b-24GiB llama2-7b 24GiB 105GiB 8 1 3
