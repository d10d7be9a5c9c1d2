#!/usr/bin/env bash
# Builds the coverage-guided program and packs it with the seeds for another machine: one program for x86-64
# Linux, which needs no toolchain there and of libraries only glibc (2.34 or newer) and libgcc.
#
#   crates/fuzz/build.sh FOLDER
#
# The flags are those of cargo-fuzz but for its sanitizers: what is fuzzed is safe Rust, in which an address
# sanitizer finds nothing and takes half of the speed. Stable Rust is enough for them.
set -euo pipefail
cd "$(dirname "$0")/../.."
to=${1:?a folder to pack into}
host=x86_64-unknown-linux-gnu

# C++'s library is linked in. C's is not: libFuzzer looks its functions up while it runs.
flags=(-Cpasses=sancov-module)
for option in level=4 inline-8bit-counters pc-table trace-compares; do
    flags+=("-Cllvm-args=-sanitizer-coverage-$option")
done
library=$(c++ -print-file-name=libstdc++.a)
flags+=("-Lnative=$(dirname "$library")")
CXXSTDLIB="static=stdc++" RUSTFLAGS="${flags[*]}" cargo build --profile fuzz --locked \
    -p lowtide-fuzz --features libfuzzer --target "$host"

mkdir -p "$to"
cp "target/$host/fuzz/lowtide-fuzz" "$to/lowtide-fuzz"
# Names of functions stay: without them a crash says little.
objcopy --strip-debug "$to/lowtide-fuzz"
xz --force "$to/lowtide-fuzz"
tar -C crates/fuzz -cJf "$to/seeds.tar.xz" seeds
cp crates/fuzz/go.sh "$to/go.sh"
ls -l "$to"
