"""Writes golden.json and tokenizer/: what transformers makes of the templates and conversations.

    python golden.py        (transformers 5.23, jinja2 3.1.6, tokenizers 0.23.3)
"""

import datetime
import json
import pathlib

import tokenizers
import transformers
from transformers.utils import chat_template_utils

HERE = pathlib.Path(__file__).parent
SPECIAL = [
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
]
NOW = datetime.datetime(2024, 7, 26, 12, tzinfo=datetime.timezone.utc)


class FixedDate(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


chat_template_utils.datetime = FixedDate

TOOLS = [{"type": "function", "function": {
    "name": "weather", "description": "It's the \"weather\" in München <now>",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}},
                   "required": ["city"], "x": [], "y": {}, "z": None, "f": 0.00001, "t": True}}}]
CALL = {"id": "call12345", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "days": 2}}}


def m(role, content, **rest):
    return {"role": role, "content": content, **rest}


CONVERSATIONS = {
    "one": {"messages": [m("user", "Hi there"), m("assistant", "Hello! How are you?")]},
    "system": {"messages": [m("system", "Be brief. "), m("user", "1+1?"), m("assistant", "2")]},
    "turns": {"messages": [
        m("system", "You know it all."), m("user", " What is in it?\n"), m("assistant", "  The thing\n\nin it. \n"),
        m("user", "und auf Deutsch? 你好 🙂"), m("assistant", "Das Ding — 👩‍👩‍👧 dort."), m("user", "Thanks"), m("assistant", "The pleasure is mine")]},
    "thinks": {"messages": [
        m("user", "Think!"), m("assistant", "<think>\nhm, in the\n</think>\n\nDone."),
        m("user", "Again"), m("assistant", "Yes.", reasoning_content="so then")]},
    "tools": {"tools": TOOLS, "messages": [
        m("user", "Weather in Köln?"), m("assistant", "", tool_calls=[CALL]),
        m("tool", "{\"t\": 12.5}", tool_call_id="call12345", name="weather"), m("assistant", "It is 12.5 degrees."),
        m("user", "Thanks"), m("assistant", "Any time")]},
}


def tokenizer():
    """A byte-level BPE with a few hundred merges, so that tokens are longer than characters."""
    tok = tokenizers.Tokenizer(tokenizers.models.BPE())
    tok.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = tokenizers.decoders.ByteLevel()
    text = [x["content"] for c in CONVERSATIONS.values() for x in c["messages"]]
    text += ["user\n", "assistant\n", "system\n\n", "the thing in it and then again and again"] * 3
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=340, initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    tok.train_from_iterator(text, trainer)
    tok.add_special_tokens(SPECIAL)
    template = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B", special_tokens=[(t, tok.token_to_id(t)) for t in ("<s>", "</s>")])
    # As in GPT-2's and Llama 3's files: trimmed offsets, which a loss mask must not be made from.
    trimming = tokenizers.processors.ByteLevel(trim_offsets=True)
    tok.post_processor = tokenizers.processors.Sequence([trimming, template])
    tok.enable_truncation(7)  # must be undone by whoever loads it
    tok.enable_padding(length=99)
    (HERE / "tokenizer").mkdir(exist_ok=True)
    tok.save(str(HERE / "tokenizer" / "tokenizer.json"), pretty=False)
    (HERE / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(
        {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": "</s>", "model_max_length": 7}) + "\n")
    tok.no_truncation()
    tok.no_padding()
    # Without the trimming: with it, transformers' own mask comes out all zero where the assistant's
    # text begins with a space (no token's offsets hold that character).
    tok.post_processor = template
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tok, bos_token="<s>", eos_token="</s>")


def main():
    tok = tokenizer()
    cases = []
    for name in ["llama3", "qwen25", "qwen3", "chatml", "marked", "mistral", "python"]:
        source = (HERE / f"{name}.jinja").read_text()
        for title, conversation in CONVERSATIONS.items():
            if title == "tools" and name in ("chatml", "marked"):
                continue
            arguments = dict(conversation=conversation["messages"], tools=conversation.get("tools"), chat_template=source)
            last = max(i for i, x in enumerate(conversation["messages"]) if x["role"] == "assistant")
            arguments_before = {**arguments, "conversation": conversation["messages"][:last]}
            case = {
                "template": name, "title": title, **conversation,
                "text": tok.apply_chat_template(**arguments, tokenize=False),
                "prompt": tok.apply_chat_template(**arguments_before, tokenize=False, add_generation_prompt=True),
            }
            marked = "endgeneration" in source
            both = tok.apply_chat_template(**arguments, return_dict=True, return_assistant_tokens_mask=marked)
            case["tokens"] = both["input_ids"]
            case["mask"] = both["assistant_masks"] if marked else None
            cases.append(case)
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    (HERE / "golden.json").write_text(f"[\n{lines}\n]\n")


main()
