#!/usr/bin/env bash
# Records steps of training in subspaces beside exact ones, with links as they are and slowed down, under bench/runs/<machine>-<date>/lsp/.
# Runs on the machine with the GPU, which needs no Rust: `cargo xtask gpu` before, elsewhere.
#
#   bench/record-lsp.sh MACHINE ROW... [-- OUTPUT FOLDER]
#
# A row: SHAPE:BATCH:DEVICE:HOST:PACE, such as qwen2.5-3b:8:24GiB:60GiB:12 or deepseek-1.3b:1x512:3.4GiB:32GiB:0. BATCH: sequences of 2048 tokens, or sequences x tokens;
# SHAPE: a built-in one, or a file of bench/shapes; pace in GB/s each way, 0: as it is. Each arm measures the machine at its own
# shapes; both have their own best plan under the same budgets. LIMIT: seconds of each. STEPS: timed ones.
set -uo pipefail
cd "$(dirname "$0")/.."
source bench/head.sh
machine=${1:?a short name of the machine}
shift
rows=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    rows+=("$1")
    shift
done
out=${2:-bench/runs/$machine-$(date -u +%F)/lsp}
lowtide=${LOWTIDE:-target/gpu/lowtide}
record_head "$out" "steps in subspaces beside exact ones: ${rows[*]}" built
for row in "${rows[@]}"; do
    IFS=: read -r shape batch device host pace <<<"$row"
    [[ $batch == *x* ]] || batch=${batch}x2048
    model=(--shape "$shape")
    [ ! -e "bench/shapes/$shape.json" ] || model=(bench/shapes/empty.yaml --set "model.config=bench/shapes/$shape.json")
    for strategy in exact lsp; do
        name=$shape-$batch-$device-$pace-$strategy
        unset LOWTIDE_PACE
        [ "$pace" = 0 ] || export LOWTIDE_PACE=h2d:${pace}GB/s,d2h:${pace}GB/s
        line=("$lowtide" bench step "${model[@]}" --micro-batch "${batch%x*}" --seq "${batch#*x}" --accumulate 1 --device-memory "$device"
            --host-memory "$host" --steps "${STEPS:-5}" --json --set "strategy.name=$strategy")
        { echo "\$ LOWTIDE_PACE=${LOWTIDE_PACE:-} ${line[*]}"; timeout -k 5 "${LIMIT:-120}" "${line[@]}" 2>&1; echo "exit $?"; } >"$out/$name.txt"
        echo "$name ($SECONDS s): $(grep -oE '"(tokens_per_second|step_seconds|predicted_step_seconds)":[0-9.]*|error.*|^exit .*' "$out/$name.txt" | tail -n 4 | tr '\n' ' ')"
    done
done
