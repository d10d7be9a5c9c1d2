#!/usr/bin/env bash
# Records what several GPUs of one host give, under bench/runs/<machine>-<date>/ranks/: exact commands and raw output.
# Runs on the machine with the GPUs, which needs no Rust: `cargo xtask gpu` before, elsewhere.
#
#   bench/record-ranks.sh MACHINE PART... [-- OUTPUT FOLDER]
#
# Parts: tests (of ranks on GPUs), rows (3B and 7B in 24 GiB a GPU on 1, 2, 4, ... GPUs), resident (3B), 32b (on two GPUs),
# 70b-all and 70b-one (int8 moments, over a host of 512 GiB and a drive), peers (LLMQ and DeepSpeed on all GPUs; what they
# need of Python is in their scripts under bench/peers). GPUS: how many there are. LIMIT: seconds of each.
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
out=${2:-bench/runs/$machine-$(date -u +%F)/ranks}
gpus=${GPUS:-$(nvidia-smi -L | wc -l)}
lowtide=target/gpu/lowtide
scratch=${LOWTIDE_SCRATCH:-$(mktemp -d)}
record_head "$out" "several GPUs of one host: ${parts[*]}" built
mkdir -p "$scratch"

record() { # NAME COMMAND...: the command line, then its raw output
    local name=$1
    shift
    { echo "\$ $*"; timeout -k 5 "${LIMIT:-150}" "$@" 2>&1; echo "exit $?"; } >"$out/$name.txt"
    echo "$name ($SECONDS s): $(grep -oE '"(tokens_per_second|step_seconds|predicted_step_seconds)":[0-9.]*|test result.*|error.*|^exit .*' "$out/$name.txt" | tail -n 4 | tr '\n' ' ')"
}

step() { # NAME SHAPE GPUS DEVICE HOST STEPS [MORE...]
    local name=$1 shape=$2 n=$3 device=$4 host=$5 steps=$6
    shift 6
    record "$name" "$lowtide" bench step --shape "$shape" --gpus "$n" --micro-batch 8 --seq 2048 --accumulate "$n" \
        --device-memory "$device" --host-memory "$host" --steps "$steps" --json "$@"
}

for part in "${parts[@]}"; do
    case $part in
        tests) LOWTIDE_REQUIRE_CUDA=1 LOWTIDE_REQUIRE_GPUS=$gpus record tests target/gpu/ranks gpu --show-output --test-threads 1 ;;
        rows)
            for ((n = 1; n <= gpus; n *= 2)); do
                step "3b-24GiB-$n" qwen2.5-3b "$n" 24GiB 200GiB 6
                step "7b-24GiB-$n" llama2-7b "$n" 24GiB 200GiB 6
            done
            ;;
        resident)
            for ((n = 1; n <= gpus; n *= 2)); do
                step "3b-resident-$n" qwen2.5-3b "$n" 76GiB 200GiB 6
            done
            ;;
        32b) step 32b-24GiB-2 qwen2.5-32b 2 24GiB 240GiB 3 --disk "$scratch/disk=60GiB" --set optimizer.moments=int8 ;;
        70b-all) step "70b-$gpus" llama3-70b "$gpus" 76GiB 470GiB 2 --disk "$scratch/disk=100GiB" --set optimizer.moments=int8 ;;
        70b-one) step 70b-1 llama3-70b 1 76GiB 470GiB 2 --disk "$scratch/disk=100GiB" --set optimizer.moments=int8 ;;
        peers)
            size=(--micro-batch 8 --seq 2048 --accumulate 1 --steps 5)
            llmq=(python3 bench/peers/llmq_step.py --gpus "$gpus" "${size[@]}")
            # Its optimizer computes on the host; without it torchrun gives each rank one thread.
            export OMP_NUM_THREADS=$(($(nproc) / gpus))
            deepspeed=(torchrun --nproc-per-node "$gpus" bench/peers/deepspeed_step.py --mode zero3-offload --liger "${size[@]}")
            record "peer-llmq-3b-$gpus" "${llmq[@]}" --shape qwen2.5-3b --mode moments-on-host
            record "peer-llmq-7b-$gpus" "${llmq[@]}" --shape llama2-7b --mode all-on-host
            record "peer-deepspeed-3b-$gpus" "${deepspeed[@]}" --shape qwen2.5-3b
            record "peer-deepspeed-7b-$gpus" "${deepspeed[@]}" --shape llama2-7b
            ;;
        *) echo "no part $part" >&2; exit 2 ;;
    esac
done
