"""Times answers of transformers' `generate` on the shapes of `lowtide bench generate`, side by side with it.

    lowtide bench generate --shape qwen2.5-3b --device-memory 24GiB --host-memory 16GiB --prompt-tokens 128 --new-tokens 128 --json
    python3 bench/peers/transformers_generate.py --shape qwen2.5-3b --prompt-tokens 128 --new-tokens 128

A Hugging Face model with random weights in bf16 that is made on the device (nothing is fetched), random prompts, greedy, exactly
so many tokens whatever they are, with the cache that `generate` has by default. One run to warm up, then `--repeat` timed ones, of
which the median is printed as one JSON line. Needs torch and transformers.
"""

import argparse
import json
import statistics
import time

SHAPES = {
    # name: (family, hidden, intermediate, layers, heads, key/value heads, vocabulary, tied)
    "qwen2.5-0.5b": ("qwen2", 896, 4864, 24, 14, 2, 151936, True),
    "qwen2.5-1.5b": ("qwen2", 1536, 8960, 28, 12, 2, 151936, True),
    "qwen2.5-3b": ("qwen2", 2048, 11008, 36, 16, 2, 151936, True),
    "llama2-7b": ("llama", 4096, 11008, 32, 32, 32, 32000, False),
}


def model_of(shape, positions, device):
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
        max_position_embeddings=max(positions, 4096),
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    return model.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-3b")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--answers", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()

    import torch
    import transformers

    model = model_of(args.shape, args.prompt_tokens + args.new_tokens, args.device)
    size = (args.answers, args.prompt_tokens)
    prompts = torch.randint(0, model.config.vocab_size, size, device=args.device)
    mask = torch.ones_like(prompts)

    def wait():
        if args.device.startswith("cuda"):
            torch.cuda.synchronize()

    def timed(new_tokens):
        wait()
        begin = time.perf_counter()
        with torch.inference_mode():
            made = model.generate(
                prompts,
                attention_mask=mask,
                do_sample=False,
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
                pad_token_id=0,
            )
        wait()
        assert made.shape[1] == args.prompt_tokens + new_tokens
        return time.perf_counter() - begin

    timed(args.new_tokens)
    whole = statistics.median(timed(args.new_tokens) for _ in range(args.repeat))
    prompt = statistics.median(timed(1) for _ in range(args.repeat))
    report = {
        "shape": args.shape,
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "answers": args.answers,
        "prompt_tokens": args.prompt_tokens,
        "new_tokens": args.new_tokens,
        "seconds": whole,
        "prompt_seconds": prompt,
        "tokens_per_second": (
            args.answers * (args.new_tokens - 1) / (whole - prompt) if args.new_tokens > 1 else None
        ),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
