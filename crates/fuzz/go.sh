#!/usr/bin/env bash
# Fuzzes every target at once, from the folder that build.sh packed, on a machine without a toolchain.
#
#   OUT=FOLDER ./go.sh SECONDS [PROCESSES]
#
# Targets share the processes (as many as there are processors) in turn, at least one each. Into OUT go the end of
# each log (NAME.N.log), under `found/` inputs that were found to panic, to hang (25 s: what watches a program slows
# it by ten) or to take memory (2 GiB), and `summary.txt`: executions, coverage, what was found. Exit code 1 where
# anything was.
set -euo pipefail
seconds=${1:?seconds}
processes=${2:-$(nproc)}
out=${OUT:?a folder for what is found}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out/found"

xz -dc "$here/lowtide-fuzz.xz" >"$work/lowtide-fuzz"
chmod +x "$work/lowtide-fuzz"
tar -C "$work" -xJf "$here/seeds.tar.xz"
mapfile -t names < <(ls "$work/seeds")

export LOWTIDE_FUZZ_SEEDS=$work/seeds
fuzz() { # target, number of the process
    local name=$1 n=$2 end=$((SECONDS + seconds)) crashes=0
    mkdir -p "$work/corpus/$name" "$work/tmp/$name.$n"
    # A crash ends a process of libFuzzer; the next one goes on with the corpus. Twenty of one target are enough.
    # So does the number of runs: sources of chat templates are kept for the life of a process.
    while ((SECONDS < end && crashes < 20)); do
        TMPDIR=$work/tmp/$name.$n LOWTIDE_FUZZ=$name nice "$work/lowtide-fuzz" \
            -max_total_time=$((end - SECONDS)) -runs=100000 -timeout=25 -rss_limit_mb=2048 -max_len=16384 -reload=30 \
            -print_final_stats=1 -artifact_prefix="$out/found/$name-" \
            "$work/corpus/$name" "$work/seeds/$name" >>"$work/$name.$n.log" 2>&1 ||
            crashes=$((crashes + 1))
    done
    tail -c 20000 "$work/$name.$n.log" >"$out/$name.$n.log"
}
for ((n = 0; n < (processes > ${#names[@]} ? processes : ${#names[@]}); n++)); do
    fuzz "${names[n % ${#names[@]}]}" "$n" &
done
wait

for name in "${names[@]}"; do
    executions=$(cat "$work/$name".*.log | awk '/^stat::number_of_executed_units/ { n += $2 } END { print n + 0 }')
    memory=$(cat "$work/$name".*.log | awk '/^stat::peak_rss_mb/ && $2 > n { n = $2 } END { print n + 0 }')
    slowest=$(cat "$work/$name".*.log | awk '/^stat::slowest_unit_time_sec/ && $2 > n { n = $2 } END { print n + 0 }')
    coverage=$(cat "$work/$name".*.log | awk '{ for (i = 1; i < NF; i++) if ($i == "cov:" && $(i + 1) > n) n = $(i + 1) } END { print n + 0 }')
    found=$(find "$out/found" -name "$name-*" ! -name "$name-slow-unit-*" | wc -l)
    printf '%-10s %12s executions, %6s edges, slowest %s s, most %s MiB, %s found\n' \
        "$name" "$executions" "$coverage" "$slowest" "$memory" "$found"
done | tee "$out/summary.txt"
# What was learnt, for the next run.
tar -C "$work/corpus" -cJf "$out/corpus.tar.xz" .
! find "$out/found" -type f ! -name '*-slow-unit-*' | grep -q .
