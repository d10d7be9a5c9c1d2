"""Times training steps of LLMQ (`pyllmq` 0.3.1 from PyPI) on the shapes, batch and sequence of `lowtide bench step`.

    python3 bench/peers/llmq_step.py --shape qwen2.5-3b --mode moments-on-host --gpus 2 --micro-batch 8 --seq 2048

Random weights, bf16 with stochastic rounding (LLMQ keeps no f32 masters), moments in `--moments`, clipping at 1.0, blocks
recomputed as `--recompute` says. llama2-7b is run as a Qwen2 of its sizes, which also has biases in its qkv product.
Prints one JSON line. Needs numpy, pyllmq, nvidia-cuda-runtime-cu12, and cuBLAS, cuDNN and NCCL as PyTorch's wheels have
them: where cuBLAS is of CUDA 13, a small library with the name of CUDA 12's that jumps there is compiled (gcc, x86-64).

Modes: `resident` (everything on the GPUs), `moments-on-host` (the optimizer's), `all-on-host` (moments, masters and
gradients on the host, weights sharded).
"""

import argparse
import glob
import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from deepspeed_step import SHAPES, Peak

# What LLMQ calls of cuBLASLt. None takes a number in floating point by value, so a jump keeps every argument.
CALLED = [
    "Create", "Destroy", "Matmul", "MatmulAlgoGetHeuristic", "MatmulDescCreate", "MatmulDescDestroy",
    "MatmulDescSetAttribute", "MatmulPreferenceCreate", "MatmulPreferenceDestroy", "MatmulPreferenceSetAttribute",
    "MatrixLayoutCreate", "MatrixLayoutDestroy",
]  # fmt: skip


def with_libraries():
    """Starts this program again where the loader finds the libraries, unless it was started so."""
    if os.environ.get("LLMQ_LIBRARIES"):
        return
    # Of a namespace package: all places where parts of it lie.
    roots = list(importlib.util.find_spec("nvidia").submodule_search_locations)
    folders = [f for root in roots for f in sorted(glob.glob(root + "/*/lib"))]
    own = tempfile.mkdtemp(prefix="llmq-")
    twelve = [f for f in folders if os.path.exists(f + "/libcublasLt.so.12")]
    if not twelve:
        source, versions = own + "/cublaslt.c", own + "/versions"
        names = ["cublasLt" + name for name in CALLED]
        with open(source, "w") as file:
            file.write("#include <dlfcn.h>\n#include <stdlib.h>\n")
            for name in names:
                file.write(f"void *to_{name} __attribute__((visibility(\"hidden\")));\n")
                file.write(f'__asm__(".globl {name}\\n.type {name},@function\\n{name}: jmp *to_{name}(%rip)\\n");\n')
            file.write("__attribute__((constructor)) static void find(void) {\n")
            file.write('void *real = dlopen("libcublasLt.so.13", RTLD_NOW | RTLD_LOCAL);\nif (!real) abort();\n')
            file.writelines(f'if (!(to_{name} = dlsym(real, "{name}"))) abort();\n' for name in names)
            file.write("}\n")
        with open(versions, "w") as file:
            file.write("libcublasLt.so.12 { global: " + " ".join(n + ";" for n in names) + " local: *; };\n")
        command = ["gcc", "-shared", "-fPIC", "-O1", source, "-o", own + "/libcublasLt.so.12"]
        subprocess.run([*command, "-Wl,-soname,libcublasLt.so.12", "-Wl,--version-script", versions, "-ldl"], check=True)
    known = os.environ.get("LD_LIBRARY_PATH", "")
    os.environ["LD_LIBRARY_PATH"] = ":".join([own, *folders, known])
    os.environ["LLMQ_LIBRARIES"] = own
    os.execv(sys.executable, [sys.executable, *sys.argv])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--mode", choices=["resident", "moments-on-host", "all-on-host"], required=True)
    parser.add_argument("--moments", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--recompute", choices=["nothing", "swiglu", "block"], default="block")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--seq", type=int, default=2048)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--head-chunks", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--warm-up", type=int, default=2)
    args = parser.parse_args()
    with_libraries()

    import numpy
    import pyllmq

    _, hidden, intermediate, layers, heads, kv_heads, vocab, tied = SHAPES[args.shape]
    config = pyllmq.LLamaConfig(
        architecture="qwen2",
        hidden_size=hidden,
        intermediate_size=intermediate,
        max_position_embeddings=max(args.seq, 4096),
        num_attention_heads=heads,
        num_hidden_layers=layers,
        num_key_value_heads=kv_heads,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        dtype="bfloat16",
        vocab_size=vocab,
    )
    options = pyllmq.LLamaOptions()
    options.recompute_swiglu = args.recompute != "nothing"
    for name in ["recompute_rms_norm", "recompute_ffn", "recompute_qkv", "recompute_att", "recompute_block"]:
        setattr(options, name, args.recompute == "block")
    options.momentum_type = options.variance_type = args.moments
    options.lmhead_chunks = args.head_chunks
    options.use_cuda_graphs = True
    options.offload_opt_m = options.offload_opt_v = args.mode != "resident"
    whole = args.mode == "all-on-host"
    options.offload_master = options.offload_grads = whole
    options.shard_weights = options.shard_gradients = whole
    options.use_all_to_all_reduce = args.gpus > 1

    peak = Peak()
    peak.start()
    trainer = pyllmq.LLMQTrainer(
        ngpu=args.gpus,
        config=config,
        options=options,
        batch_size=args.micro_batch,
        seq_len=args.seq,
        grad_accum=args.accumulate,
        memcpy_all_gather=args.gpus > 1,
        memcpy_send_recv=args.gpus > 1,
    )
    trainer.init_weights()
    generator = numpy.random.default_rng(0)
    rows = (args.gpus * args.micro_batch, args.seq)
    times, losses = [], []
    for step in range(args.warm_up + args.steps):
        begin = time.perf_counter()
        for _ in range(args.accumulate):
            tokens = generator.integers(0, vocab, rows, dtype=numpy.int32)
            trainer.step(tokens, numpy.roll(tokens, -1, axis=1))
        losses.append(trainer.update(1e-5, 0.9, 0.999, step + 1, 0.0, 1.0)["loss"])
        seconds = time.perf_counter() - begin
        print(f"step {step + 1}: {seconds:.4f} s, loss {losses[-1]:.4f}", flush=True)
        if step >= args.warm_up:
            times.append(seconds)
    peak.look()
    held = {}
    for gpu in range(args.gpus):
        for part in trainer.get_allocator_info(gpu).values():
            for kind, count in part.items():
                held[kind] = held.get(kind, 0) + count
    median = statistics.median(times)
    tokens = args.micro_batch * args.seq * args.accumulate * args.gpus
    result = {
        "system": "LLMQ " + importlib.metadata.version("pyllmq"),
        "mode": f"{args.mode}, moments {args.moments}, recomputes {args.recompute}",
        "model": args.shape,
        "gpus": args.gpus,
        "tokens_per_step": tokens,
        "step_seconds": median,
        "tokens_per_second": tokens / median,
        "device_bytes": peak.bytes,
        "host_peak_bytes": sum(count for kind, count in held.items() if kind != "device"),
        "held": held,
        "losses": [losses[0], losses[-1]],
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
