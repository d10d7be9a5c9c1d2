#!/usr/bin/env bash
# Records the CPU benches under bench/runs/<machine>-<date>/: exact commands and raw output.
#
#   bench/record.sh MACHINE [DIRECTORY FOR THE DISK BENCH [disk]]      (disk: that bench alone)
#
# Needs a quiet machine, and fio (Debian package) for the disk lane's comparison.
set -euo pipefail
cd "$(dirname "$0")/.."
source bench/head.sh
machine=${1:?a short name of the machine}
dir=${2:-$PWD/out/bench-disk}
out=bench/runs/$machine-$(date -u +%F)
record_head "$out" "steps, AdamW and the disk lane on the CPU device"
mkdir -p "$dir"
cargo build --release --workspace --examples --bins
cargo bench --no-run -p lowtide-tiers --bench probe 2>/dev/null

record() { # NAME COMMAND...: the command line, then its raw output
    local name=$1
    shift
    { echo "\$ $*"; "$@" 2>&1; } | tee "$out/$name.txt"
}

{ uname -srm; lscpu | grep -E 'Model name|^CPU\(s\)|Flags' | cut -c1-400; free -h | head -2; } >"$out/machine.txt"

[ "${3:-all}" = disk ] || {
record host-adamw target/release/examples/adamw
record host-beside target/release/lowtide bench host --disk "$dir" --json

for run in examples/quickstart/run.yaml bench/cpu/llama-17m.yaml bench/cpu/gpt2-20m.yaml; do
    name=$(basename "${run%.yaml}")
    [ "$name" = run ] && name=quickstart
    for i in 1 2 3 4 5; do
        rm -rf "out/bench-$name"
        record "step-$name-$i" target/release/lowtide train "$run" --json \
            --set "output=out/bench-$name" --set eval.generate.exact_match=false >/dev/null
        tail -n 1 "$out/step-$name-$i.txt"
    done
done

}

# The disk lane and fio, alternating: same directory, block size, depth and mix.
fio_one() { # NAME RW
    fio --name="$1" --directory="$dir" --size=1G --rw="$2" --rwmixread=50 --bs=4M --iodepth=8 \
        --ioengine=io_uring --direct=1 --time_based --runtime=2 --output-format=terse \
        --terse-version=3 --iomem="$iomem"
}
# lowtide's buffers lie on huge pages; give fio the same where some are reserved
# (sysctl vm.nr_hugepages=64), or the comparison flatters lowtide by a factor of about two.
iomem=malloc
[ "$(cat /proc/sys/vm/nr_hugepages)" -ge 32 ] && iomem=shmhuge
record disk-shares target/release/lowtide bench disk --dir "$dir" --size 1GiB --json
for i in 1 2 3 4 5; do
    record "disk-lowtide-$i" cargo bench -q -p lowtide-tiers --bench probe -- "$dir" 1 2
    for rw in read write rw; do
        record "disk-fio-$rw-$i" fio_one "bench-$rw" "$rw"
    done
    rm -f "$dir"/bench-*
done
python3 bench/summary.py "$out" | tee "$out/summary.txt"
