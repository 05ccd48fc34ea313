"""A conversation. Each turn reuses the KV cache of the turns before it.

python examples/chat.py [MODEL]
"""

import sys

import pilotfish

MODEL = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
QUESTIONS = ("List three birds.", "Which of them can swim?")

with pilotfish.load(MODEL) as model:
    chat = model.chat(system="Answer in one short sentence.")
    for question in QUESTIONS:
        answer = chat.send(question, max_new_tokens=48)
        print(f"> {question}\n{answer.text}")
        print(f"[{answer.stats.n_prompt} prompt tokens, {answer.stats.n_reused} of them still in the cache]")
    print(f"[{len(chat.messages)} messages remembered]")
