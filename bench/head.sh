# Sourced by the scripts that make records: what a record begins with.
#
#   record_head FOLDER OF [built]
#
# Writes FOLDER/record.json: date, machine, commit, whether tracked files differed from it, and what the record is of. `built`: the
# programs are those of target/gpu, whose commit `cargo xtask gpu` wrote beside them; else they are of the work tree here.

record_head() {
    local commit=unknown dirty=null machine
    if [ "${3:-}" = built ] && [ -r target/gpu/commit ]; then
        read -r commit dirty <target/gpu/commit
    elif [ "${3:-}" != built ] && commit=$(git rev-parse HEAD 2>/dev/null); then
        dirty=$([ -z "$(git status --porcelain --untracked-files=no)" ] && echo false || echo true)
    fi
    machine=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | sort | uniq -c |
        sed -E 's/^ *1 //; s/^ *([0-9]+) /\1 x /' | paste -sd, | sed 's/,/, /g')
    [ -n "$machine" ] || machine="$(nproc) cores of $(LC_ALL=C lscpu | sed -n 's/^Model name: *//p' | head -n 1)"
    mkdir -p "$1"
    python3 - "$1/record.json" "$(date -u +%F)" "$machine" "$commit" "$dirty" "$2" <<'PY'
import json, sys

path, date, machine, commit, dirty, of = sys.argv[1:]
head = {"date": date, "machine": machine, "commit": commit, "dirty": json.loads(dirty), "of": of}
with open(path, "w") as file:
    json.dump(head, file, indent=1)
    file.write("\n")
PY
}
