"""One answer: greedy, then sampled with a seed.

python examples/generate.py [MODEL]     a catalogue name, a .gguf file or a bundle folder
"""

import sys

import pilotfish

MODEL = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"

with pilotfish.load(MODEL) as model:
    result = model.generate("Name three uses of a brick.", max_new_tokens=64)
    print(result.text)
    print(f"[{result.finish_reason}: {result.stats.n_tokens} tokens at {result.stats.decode_tok_s:.1f} tokens/s]\n")

    sampling = pilotfish.Sampling(temperature=0.8, top_p=0.95, repetition_penalty=1.1)
    result = model.generate("Invent a name for a boat.", max_new_tokens=32, sampling=sampling, seed=7, stop=["\n"])
    print(result.text)
    print(f"[{result.finish_reason}: {result.stats.n_tokens} tokens, the same for this seed every time]")
