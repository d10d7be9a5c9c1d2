"""Makes the quickstart's data: text for a base model, chats to fine-tune on, held-out questions.

    text.jsonl    {"text": ...} a line: all facts, told in sentences (not committed)
    train.jsonl   {"messages": [...]} a line: questions about two thirds of the facts
    eval.jsonl    {"messages": [...]} a line: questions about other facts, the answer last

The base model knows every fact but no chat; the chats teach how to answer; the held-out questions
ask for facts that no chat states, so a right answer joins the two. Wordings are shared, facts not.

Run: python make_data.py [--out DIR]      (needs nothing but Python)
"""

import argparse
import json
import pathlib
import random

from facts import ANSWERS, MENTIONS, QUESTIONS, SENTENCES, all_facts

SEED = 2026
TELLINGS = 36  # how often the text tells each fact
HELD_OUT = 120  # questions in eval.jsonl


def sentence(template, fact):
    _, x, y = fact
    text = template.format(x=x, y=y)
    return text[0].upper() + text[1:]


def telling(fact, rng):
    """One to three sentences that tell the fact. Mostly its subject is mentioned first, so that the
    model learns to carry a name over; now and then a second sentence tells the fact again."""
    kind = fact[0]
    told = rng.sample(SENTENCES[kind], 2)
    if rng.random() < 0.6:
        told[0] = ANSWERS[kind]
    if rng.random() < 0.85:
        told.pop()
    if rng.random() < 0.7:
        told.insert(0, rng.choice(MENTIONS[kind]))
    return [sentence(t, fact) for t in told]


def texts(facts, rng):
    """Documents about one to four facts; each fact is told TELLINGS times in all."""
    documents = []
    for _ in range(TELLINGS):
        left = list(facts)
        rng.shuffle(left)
        while left:
            n = rng.randint(1, 4)
            documents.append(" ".join(s for f in left[:n] for s in telling(f, rng)))
            del left[:n]
    return documents


def split(facts, rng):
    """(facts for the chats, facts held out): a third of each kind is held out."""
    chats, held_out = [], []
    for kind in ANSWERS:
        of_kind = [fact for fact in facts if fact[0] == kind]
        rng.shuffle(of_kind)
        n = len(of_kind) // 3
        held_out += of_kind[:n]
        chats += of_kind[n:]
    return chats, held_out


def turn(fact, question):
    return [
        {"role": "user", "content": sentence(question, fact)},
        {"role": "assistant", "content": sentence(ANSWERS[fact[0]], fact)},
    ]


def training_chats(facts, rng):
    """Each fact in three of the four wordings; one chat in four has a second question."""
    turns = [turn(f, q) for f in facts for q in rng.sample(QUESTIONS[f[0]], 3)]
    rng.shuffle(turns)
    chats = []
    while turns:
        take = 2 if len(turns) > 1 and rng.random() < 0.25 else 1
        chats.append([m for t in turns[:take] for m in t])
        del turns[:take]
    return chats


def write(path, key, values):
    with open(path, "w", encoding="utf-8") as f:
        for value in values:
            f.write(json.dumps({key: value}, ensure_ascii=False) + "\n")
    print(f"{path}: {len(values)} lines, {path.stat().st_size / 1e3:.0f} kB")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parents[1])
    out = parser.parse_args().out

    def rng(purpose):
        """A generator of its own for each file: a change to one leaves the others as they were."""
        return random.Random(f"{SEED} {purpose}")

    facts = all_facts()
    chat_facts, held_out = split(facts, rng("split"))
    train = training_chats(chat_facts, rng("train"))
    ask = rng("eval")
    asked = ask.sample(held_out, HELD_OUT)
    evaluation = [turn(f, ask.choice(QUESTIONS[f[0]])) for f in asked]

    seen = {m["content"] for chat in train for m in chat}
    for question, answer in evaluation:
        assert question["content"] not in seen and answer["content"] not in seen
    print(f"{len(facts)} facts, {len(held_out)} of them held out")
    write(out / "text.jsonl", "text", texts(facts, rng("text")))
    write(out / "train.jsonl", "messages", train)
    write(out / "eval.jsonl", "messages", evaluation)


if __name__ == "__main__":
    main()
