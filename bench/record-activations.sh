#!/usr/bin/env bash
# Records what becomes of saved tensors, and what it costs, as SSDTrain's paper shows it: its shape of 8192 wide and 4 layers (Table 3), 16 x 1024
# tokens, state, gradients and updates on the device, under bench/runs/<machine>-<date>/saved/: commands and raw output, and saved.md from them.
# Runs on the machine with the GPU, which needs no Rust: `cargo xtask gpu` before, elsewhere.
#
#   bench/record-activations.sh MACHINE [-- OUTPUT FOLDER]
#
# LIMIT: seconds of each run. STEPS: timed ones. LOWTIDE_SCRATCH: a folder on the drive.
set -uo pipefail
cd "$(dirname "$0")/.."
source bench/head.sh
machine=${1:?a short name of the machine}
[ "${2:-}" != -- ] || shift
out=${2:-bench/runs/$machine-$(date -u +%F)/saved}
lowtide=${LOWTIDE:-target/gpu/lowtide}
scratch=${LOWTIDE_SCRATCH:-$(mktemp -d)}
record_head "$out" "what becomes of saved tensors, and what it costs" built
mkdir -p "$scratch"
run=(bench/shapes/empty.yaml --set model.config=bench/shapes/ssdtrain-8192x4.json --set train.micro_batch=16 --set train.seq=1024
    --set plan.weights=device --set plan.optimizer=device --set plan.gradients=device --set optimizer.update=device)
drive=(--disk "$scratch/drive=30GiB")
{ echo "\$ $lowtide probe ${run[*]} ${drive[*]}"; "$lowtide" probe "${run[@]}" --set "budget.disk=[{dir: $scratch/drive, size: 30GiB}]" --out "$out/rates.json" 2>&1; } >"$out/probe.txt"

step() { # NAME DEVICE HOST ACTIVATIONS [MORE...]
    local name=$1
    local line=("$lowtide" bench step "${run[@]}" --device-memory "$2" --host-memory "$3" --set "plan.activations=$4" "${@:5}"
        --set "plan.machine=$out/rates.json" --steps "${STEPS:-5}" --json)
    { echo "\$ ${line[*]}"; timeout -k 5 "${LIMIT:-100}" "${line[@]}" 2>&1; echo "exit $?"; } >"$out/$name.txt"
    echo "$name ($SECONDS s): $(grep -oE '^  activations.*|"(step_seconds|predicted_step_seconds)":[0-9.]*|error.*' "$out/$name.txt" | tr '\n' ' ')"
}

step kept 72GiB 8GiB keep
step recomputed 56GiB 8GiB recompute
step host 56GiB 60GiB offload
step drive 56GiB 8GiB offload "${drive[@]}"
step host-and-drive 56GiB 12GiB offload "${drive[@]}"
step chosen 56GiB 60GiB auto
step chosen-drive 56GiB 8GiB auto "${drive[@]}"
python3 bench/saved.py "$out" | tee "$out/saved.md"
