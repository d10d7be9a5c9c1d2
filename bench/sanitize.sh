#!/usr/bin/env bash
# The kernels' tests under compute-sanitizer: memcheck over all of them, racecheck kernel by kernel (it is hundreds
# of times slower, and the libraries' own kernels are not ours to check). `cargo xtask gpu` before.
#
#   bench/sanitize.sh OUTPUT FOLDER [SECONDS FOR EACH RACECHECK [PATTERN]]
#
# With PATTERN, racecheck only those of its lines below that match.
set -uo pipefail
cd "$(dirname "$0")/.."
source bench/head.sh
out=${1:?a folder}
limit=${2:-60}
pattern=${3:-.}
tests=target/gpu/lowtide_kernels
record_head "$out" "kernels under compute-sanitizer" built
export LOWTIDE_REQUIRE_CUDA=1
failed=0

compute-sanitizer --tool memcheck --error-exitcode 9 "$tests" --skip bench --skip 2048 >"$out/memcheck.txt" 2>&1 || failed=1
tail -n 1 "$out/memcheck.txt"

# TESTS KERNEL: kernels whose names contain KERNEL, in tests whose names contain TESTS.
check() {
    local log=$out/racecheck-${1//:/_}-$2.txt
    timeout "$limit" compute-sanitizer --tool racecheck --error-exitcode 9 --kernel-name "kns=$2" \
        "$tests" "$1" --test-threads 2 --skip 2048 --skip cudnn >"$log" 2>&1
    local rc=$?
    echo "$1 $2: rc $rc, $(grep -c '\.\.\. ok' "$log") tests passed, $(grep 'RACECHECK SUMMARY' "$log" | tail -n 1)"
}
export -f check
export out limit tests
# Several at once: most of the time goes into the tool's work on the processor. The longest first.
grep -E "$pattern" <<'LIST' | xargs -L 1 -P 6 bash -c 'check "$@"' _ | tee "$out/racecheck.txt"
attention::tests::agrees flash_backward_kv
attention::tests::agrees flash_backward_q
attention::tests::agrees flash_forward
attention::tests::wide flash_forward
attention::tests::wide flash_backward_kv
attention::tests::wide flash_backward_q
head::tests::the_kernels_alone loss_
head::tests::the_kernels_alone gradient_
head::tests::the_kernels_alone totals
adamw::tests::device step
update::tests step
lion::tests step
attention::tests::agrees flash_delta
attention::tests::agrees plain_
attention::cached::tests::kept cached_
matmul::tests::sums_for_a_bias runs
rmsnorm::tests::agrees forward
rmsnorm::tests::agrees backward
rmsnorm::tests::agrees sum_partials
layernorm::tests::agrees forward
layernorm::tests::agrees backward
rope::tests::agrees rotate
rope::tests::agrees backward
gradient::tests finish
embedding::tests sort_local
embedding::tests merge
embedding::tests bounds
embedding::tests few
embedding::tests many
LIST
! grep -v ': rc 0, [1-9]' "$out/racecheck.txt" && [ $failed = 0 ]
