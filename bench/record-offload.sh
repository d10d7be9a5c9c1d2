#!/usr/bin/env bash
# Records what offloading costs, under bench/runs/<machine>-<date>/: exact commands and raw output.
# Runs on the machine with the GPU, which needs no Rust: `cargo xtask gpu` before, elsewhere.
#
#   bench/record-offload.sh MACHINE PART... [-- OUTPUT FOLDER]
#
# Parts: budgets (24 GiB for 3B and 7B), share (16k to 128k tokens a step in 24 GiB, in 76 GiB and, where the card
# has the memory, all resident), large (14B), disk
# (optimizer state on disk), lanes (host, links and disk alone), peers (DeepSpeed on the same shapes; PEERS picks modes).
set -uo pipefail
cd "$(dirname "$0")/.."
source bench/head.sh
machine=${1:?a short name of the machine}
shift
parts=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    parts+=("$1")
    shift
done
out=${2:-bench/runs/$machine-$(date -u +%F)}
lowtide=target/gpu/lowtide
scratch=${LOWTIDE_SCRATCH:-$(mktemp -d)}
record_head "$out" "what offloading costs: ${parts[*]}" built
mkdir -p "$scratch"

record() { # NAME COMMAND...: the command line, then its raw output
    local name=$1
    shift
    { echo "\$ $*"; "$@" 2>&1; } >"$out/$name.txt"
    echo "$name: $(grep -E 'tokens/s|tokens_per_second|G parameters/s|GB/s|does not fit|error' "$out/$name.txt" | tail -n 1 | cut -c1-160)"
}

# One probe a shape and kind of moments; its file holds the rates at the run's own shapes.
rates() { # SHAPE MOMENTS: prints the file
    local name=$1-$2
    local file=$scratch/$name.json
    if [ ! -e "$file" ]; then
        printf 'model: { shape: %s, init: random }\ndata: { packing: false }\ntrain: { micro_batch: 8, seq: 2048 }\noptimizer: { moments: %s }\nbudget: { disk: [{ dir: %s, size: 1GiB }] }\n' \
            "$1" "$2" "$scratch/disk" >"$scratch/$name.yaml"
        record "probe-$name" "$lowtide" probe "$scratch/$name.yaml" --out "$file" >&2
    fi
    echo "$file"
}

step() { # NAME SHAPE DEVICE HOST ACCUMULATE STEPS [MORE...]
    local name=$1 shape=$2 device=$3 host=$4 accumulate=$5 steps=$6
    shift 6
    local moments=f32
    [[ " $* " =~ optimizer\.moments=([a-z0-9]+) ]] && moments=${BASH_REMATCH[1]}
    record "step-$name" "$lowtide" bench step --shape "$shape" --micro-batch 8 --seq 2048 \
        --accumulate "$accumulate" --device-memory "$device" --host-memory "$host" --steps "$steps" --json \
        --set "plan.machine=$(rates "$shape" "$moments")" "$@"
}

budgets() {
    step qwen2.5-3b-24GiB qwen2.5-3b 24GiB 44GiB 1 6
    step llama2-7b-24GiB llama2-7b 24GiB 105GiB 1 4
    step llama2-7b-24GiB-65k llama2-7b 24GiB 105GiB 4 2
}

share() {
    local memory shape tokens steps
    memory=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | head -n 1)
    for accumulate in 1 2 4 8; do
        tokens=$((accumulate * 16))k steps=$((accumulate < 4 ? 4 / accumulate + 1 : 2))
        if [ "$memory" -gt 130000 ]; then
            step "qwen2.5-3b-resident-$tokens" qwen2.5-3b 135GiB 60GiB $accumulate $steps
            step "llama2-7b-resident-$tokens" llama2-7b 138GiB 90GiB $accumulate $steps
            step "llama2-7b-24GiB-$tokens" llama2-7b 24GiB 105GiB $accumulate $steps
        fi
        # What a card of 80 GB gives at most; 3B is not all resident in it.
        step "qwen2.5-3b-76GiB-$tokens" qwen2.5-3b 76GiB 100GiB $accumulate $steps
        step "qwen2.5-3b-24GiB-$tokens" qwen2.5-3b 24GiB 100GiB $accumulate $steps
    done
    python3 bench/share.py "$out"/step-*k.txt --plot "$out/share.svg" | tee "$out/share.md"
}

large() {
    step qwen2.5-14b-24GiB-bf16-moments qwen2.5-14b 24GiB 105GiB 1 4 \
        --disk "$scratch/disk=50GiB" --set optimizer.moments=bf16
    step qwen2.5-14b-24GiB-int8-moments qwen2.5-14b 24GiB 105GiB 1 4 --set optimizer.moments=int8
}

disk() {
    step qwen2.5-3b-disk qwen2.5-3b 24GiB 16GiB 1 5 --disk "$scratch/disk=60GiB"
}

lanes() {
    record host "$lowtide" bench host --json
    record links "$lowtide" bench links --json
    record disk "$lowtide" bench disk --dir "$scratch/disk" --json
}

peers() {
    for mode in ${PEERS:-zero3-offload zero-infinity}; do
        record "deepspeed-$mode-qwen2.5-3b" python3 bench/peers/deepspeed_step.py --shape qwen2.5-3b --mode $mode \
            --steps 2 --warm-up 1 --nvme "$scratch/deepspeed"
        rm -rf "$scratch/deepspeed"
    done
    python3 bench/peers/ratios.py "$out"/step-*.txt "$out"/deepspeed-*.txt | tee "$out/ratios.md"
}

for part in "${parts[@]}"; do
    case $part in
        budgets | share | large | disk | lanes | peers) "$part" ;;
        *) echo "no part $part" >&2; exit 2 ;;
    esac
done
