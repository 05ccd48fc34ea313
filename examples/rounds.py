"""What a generation did, round by round, and the rates computed from it.

python examples/rounds.py [MODEL]
"""

import sys

import pilotfish

MODEL = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
PROMPT = "Write the days of the week as a JSON list, then write the same list again."

with pilotfish.load(MODEL) as model:
    result = model.generate(PROMPT, max_new_tokens=64)
    print("drafted accepted rows  draft ms verify ms other ms  text")
    for r in result.rounds:
        text = model.tokenizer.decode(r.tokens)
        times = f"{1e3 * r.draft_s:9.2f} {1e3 * r.verify_s:9.2f} {1e3 * r.other_s:8.2f}"
        print(f"{r.drafted:7d} {r.accepted:8d} {r.width:4d} {times}  {text!r}")
    for name, value in result.stats.as_dict().items():
        print(f"{name:>16}: {value}")
    print(f"price of exactness: a step takes {model.calibration.price_of_exactness:.2f} times a bare one-row step")
