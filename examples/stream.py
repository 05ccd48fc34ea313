"""Text as it is decided, and what the stream knows at its end.

python examples/stream.py [MODEL] [PROMPT]
"""

import sys

import pilotfish

MODEL = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
PROMPT = sys.argv[2] if len(sys.argv) > 2 else "Explain in two sentences why the sea is salty."

with pilotfish.load(MODEL) as model:
    stream = model.stream(PROMPT, max_new_tokens=80)
    for piece in stream:  # never half a character, never a part of a stop string
        print(piece, end="", flush=True)
    print()
    result = stream.result  # there once the iteration has ended
    assert result is not None
    print(f"[{len(result.rounds)} rounds for {len(result.token_ids)} tokens]", file=sys.stderr)
