#!/usr/bin/env bash
# Records steps of training in subspaces beside exact ones, with links as they are and slowed down, under bench/runs/<machine>-<date>/lsp/.
# Runs on the machine with the GPU, which needs no Rust: `cargo xtask gpu` before, elsewhere.
#
#   bench/record-lsp.sh MACHINE ROW... [-- OUTPUT FOLDER]
#
# A row: SHAPE:MICRO_BATCH:DEVICE:HOST:PACE, such as qwen2.5-3b:8:24GiB:60GiB:12; pace in GB/s each way, 0: as it is. Rows of 2048 tokens. Each arm
# measures the machine at its own shapes; both have their own best plan under the same budgets. LIMIT: seconds of each. STEPS: timed ones.
set -uo pipefail
cd "$(dirname "$0")/.."
machine=${1:?a short name of the machine}
shift
rows=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    rows+=("$1")
    shift
done
out=${2:-bench/runs/$machine-$(date -u +%F)/lsp}
lowtide=${LOWTIDE:-target/gpu/lowtide}
mkdir -p "$out"
for row in "${rows[@]}"; do
    IFS=: read -r shape rows_at_once device host pace <<<"$row"
    for strategy in exact lsp; do
        name=$shape-$device-$pace-$strategy
        unset LOWTIDE_PACE
        [ "$pace" = 0 ] || export LOWTIDE_PACE=h2d:${pace}GB/s,d2h:${pace}GB/s
        line=("$lowtide" bench step --shape "$shape" --micro-batch "$rows_at_once" --seq 2048 --accumulate 1 --device-memory "$device"
            --host-memory "$host" --steps "${STEPS:-5}" --json --set "strategy.name=$strategy")
        { echo "\$ LOWTIDE_PACE=${LOWTIDE_PACE:-} ${line[*]}"; timeout -k 5 "${LIMIT:-120}" "${line[@]}" 2>&1; echo "exit $?"; } >"$out/$name.txt"
        echo "$name ($SECONDS s): $(grep -oE '"(tokens_per_second|step_seconds|predicted_step_seconds)":[0-9.]*|error.*|^exit .*' "$out/$name.txt" | tail -n 4 | tr '\n' ' ')"
    done
done
