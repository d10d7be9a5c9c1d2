#!/usr/bin/env bash
# Records answers made with a KV cache beside those of transformers, under bench/runs/<machine>-<date>/generate: exact commands and
# raw output. Runs on the machine with the GPU, which needs no Rust: `cargo xtask gpu` before, elsewhere.
#
#   bench/record-generate.sh MACHINE [SHAPE...] [-- OUTPUT FOLDER]
#
# Shapes: qwen2.5-3b unless some are given. PYTHON (python3) needs torch and transformers for the peer; without them its file
# has the error. Each in turn, on the same GPU: one answer, eight at once, and one with most weights on the host.
set -uo pipefail
cd "$(dirname "$0")/.."
source bench/head.sh
machine=${1:?a short name of the machine}
shift
shapes=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    shapes+=("$1")
    shift
done
[ ${#shapes[@]} -gt 0 ] || shapes=(qwen2.5-3b)
out=${2:-bench/runs/$machine-$(date -u +%F)/generate}
lowtide=${LOWTIDE:-target/gpu/lowtide} python=${PYTHON:-python3}
record_head "$out" "answers with a KV cache, beside transformers" built

record() { # NAME COMMAND...: the command line, then its raw output
    local name=$1
    shift
    { echo "\$ $*"; "$@" 2>&1; } >"$out/$name.txt"
    echo "$name: $(grep -oE '"(seconds|prompt_seconds|tokens_per_second)": ?[0-9.]+|rror.*' "$out/$name.txt" | tail -n 3 | paste -sd' ' | cut -c1-160)"
}

for shape in "${shapes[@]}"; do
    tokens=(--shape "$shape" --prompt-tokens 128 --new-tokens 128)
    for answers in 1 8; do
        record "$shape-$answers" "$lowtide" bench generate "${tokens[@]}" --answers "$answers" \
            --device-memory 24GiB --host-memory 32GiB --json
        record "$shape-$answers-transformers" "$python" bench/peers/transformers_generate.py "${tokens[@]}" --answers "$answers"
    done
    record "$shape-streamed" "$lowtide" bench generate "${tokens[@]}" --device-memory 4GiB --host-memory 32GiB --json
done
