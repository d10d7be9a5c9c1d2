"""Times training steps of DeepSpeed (from PyPI) on the shapes, batch and sequence of `lowtide bench step`.

    python3 bench/peers/deepspeed_step.py --shape qwen2.5-3b --mode zero3-offload --micro-batch 8 --seq 2048
    OMP_NUM_THREADS=16 torchrun --nproc-per-node 2 bench/peers/deepspeed_step.py ...    (a process a GPU, 16 cores each)

A Hugging Face model with random weights, bf16, block recompute, AdamW with fp32 state, clipping at 1.0, as
DeepSpeed's own documents recommend for each mode; with `--liger` the loss is computed with the last product, as Liger
does it, so that no logits of a whole batch exist. Prints one JSON line. Needs torch, transformers, deepspeed 0.19.8
and a compiler for DeepSpeed's CPU optimizer.

Modes: `resident` (ZeRO-1, all on the GPU), `zero3-offload` (parameters and optimizer on the host), `zero-infinity`
(optimizer on disk, parameters on the host; not pipelined, because the pipelined mode fails an assertion in 0.19.8).
"""

import argparse
import json
import os
import resource
import statistics
import threading
import time

SHAPES = {
    # name: (family, hidden, intermediate, layers, heads, key/value heads, vocabulary, tied)
    "qwen2.5-0.5b": ("qwen2", 896, 4864, 24, 14, 2, 151936, True),
    "qwen2.5-1.5b": ("qwen2", 1536, 8960, 28, 12, 2, 151936, True),
    "qwen2.5-3b": ("qwen2", 2048, 11008, 36, 16, 2, 151936, True),
    "llama2-7b": ("llama", 4096, 11008, 32, 32, 32, 32000, False),
}


def model_of(shape, seq, offloaded):
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

    family, hidden, intermediate, layers, heads, kv_heads, vocab, tied = SHAPES[shape]
    kind = {"qwen2": Qwen2Config, "llama": LlamaConfig}[family]
    config = kind(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocab,
        max_position_embeddings=max(seq, 4096),
        tie_word_embeddings=tied,
        use_cache=False,
    )
    torch.manual_seed(0)
    # Random numbers are made where they are made fast; DeepSpeed moves the model where its mode has it.
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    if offloaded:
        model = model.to("cpu")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def settings(mode, micro_batch, accumulate, nvme):
    zero = {"stage": 1}
    if mode == "zero3-offload":
        zero = {
            "stage": 3,
            "offload_param": {"device": "cpu", "pin_memory": True},
            "offload_optimizer": {"device": "cpu", "pin_memory": True},
            "overlap_comm": True,
            "contiguous_gradients": True,
        }
    elif mode == "zero-infinity":
        zero = {
            "stage": 3,
            "offload_param": {"device": "cpu", "pin_memory": True},
            "offload_optimizer": {
                "device": "nvme",
                "nvme_path": nvme,
                "pin_memory": True,
                "buffer_count": 4,
                "pipeline_read": False,
                "pipeline_write": False,
            },
            "overlap_comm": True,
            "contiguous_gradients": True,
            "sub_group_size": 100_000_000,
        }
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-5, "betas": [0.9, 0.999], "weight_decay": 0.0}},
        "zero_optimization": zero,
        "aio": {"block_size": 1048576, "queue_depth": 16, "single_submit": False, "overlap_events": True},
        "steps_per_print": 10**9,
    }


class Peak(threading.Thread):
    """The most device bytes that the driver reported for this process."""

    def __init__(self, gpu=0):
        super().__init__(daemon=True)
        self.bytes = 0
        import pynvml

        pynvml.nvmlInit()
        self.nvml, self.gpu = pynvml, pynvml.nvmlDeviceGetHandleByIndex(gpu)

    def look(self):
        mine = [p.usedGpuMemory for p in self.nvml.nvmlDeviceGetComputeRunningProcesses(self.gpu) if p.pid == os.getpid()]
        used = mine[0] if mine and mine[0] else self.nvml.nvmlDeviceGetMemoryInfo(self.gpu).used
        self.bytes = max(self.bytes, used)

    def run(self):
        while True:
            self.look()
            time.sleep(0.05)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--mode", choices=["resident", "zero3-offload", "zero-infinity"], required=True)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--seq", type=int, default=2048)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--nvme", default="/tmp/deepspeed-nvme")
    parser.add_argument("--liger", action="store_true")
    args = parser.parse_args()

    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}.items():
        os.environ.setdefault(name, value)
    if args.mode == "zero-infinity":
        os.makedirs(args.nvme, exist_ok=True)

    import torch

    # DeepSpeed's builder knows no architecture with a letter, such as the 9.0a that some images set.
    os.environ["TORCH_CUDA_ARCH_LIST"] = "{}.{}".format(*torch.cuda.get_device_capability())
    import deepspeed

    rank, ranks = int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])
    torch.cuda.set_device(rank)
    peak = Peak(rank)
    peak.start()
    model = model_of(args.shape, args.seq, args.mode != "resident")
    if args.liger:
        from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance

        _apply_liger_kernel_to_instance(model=model)
    parameters = sum(p.numel() for p in model.parameters())
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=model.parameters(),
        config=settings(args.mode, args.micro_batch, args.accumulate, args.nvme),
    )
    vocab = SHAPES[args.shape][6]
    generator = torch.Generator().manual_seed(rank)
    times, losses = [], []
    for step in range(args.warm_up + args.steps):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(args.accumulate):
            tokens = torch.randint(vocab, (args.micro_batch, args.seq), generator=generator).cuda()
            loss = engine(input_ids=tokens, labels=tokens).loss
            engine.backward(loss)
            engine.step()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        losses.append(loss.item())
        if rank == 0:
            print(f"step {step + 1}: {seconds:.4f} s, loss {losses[-1]:.4f}", flush=True)
        if step >= args.warm_up:
            times.append(seconds)
    peak.look()
    if rank > 0:
        os._exit(0)
    median = statistics.median(times)
    tokens = args.micro_batch * args.seq * args.accumulate * ranks
    print(
        json.dumps(
            {
                "system": f"DeepSpeed {deepspeed.__version__}, torch {torch.__version__}",
                "mode": args.mode + (", Liger" if args.liger else ""),
                "gpus": ranks,
                "model": args.shape,
                "parameters": parameters,
                "tokens_per_step": tokens,
                "step_seconds": median,
                "tokens_per_second": tokens / median,
                "device_bytes": peak.bytes,
                # Of one rank, and so of all: each has its share.
                "host_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 * ranks,
                "losses": [losses[0], losses[-1]],
            }
        ),
        flush=True,
    )
    # Its threads of several ranks do not end by themselves.
    os._exit(0)


if __name__ == "__main__":
    main()
