"""Stop a generation from another thread: between two steps, prompt processing included.

python examples/cancel.py [MODEL]
"""

import queue
import sys
import threading

import pilotfish

MODEL = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
WANTED = 40  # characters after which the reader has seen enough


def write(model: pilotfish.Model, pieces: "queue.Queue[str | None]", cancel: threading.Event) -> None:
    stream = model.stream("Tell me a very long story.", max_new_tokens=None, cancel=cancel)
    for piece in stream:
        pieces.put(piece)
    pieces.put(None)
    assert stream.result is not None
    print(f"\n[{stream.result.finish_reason} after {stream.result.stats.n_tokens} tokens]")


with pilotfish.load(MODEL) as model:
    pieces: "queue.Queue[str | None]" = queue.Queue(maxsize=8)  # a slow reader slows the writer
    cancel = threading.Event()
    writer = threading.Thread(target=write, args=(model, pieces, cancel))
    writer.start()
    shown = 0
    while (piece := pieces.get()) is not None:
        print(piece, end="", flush=True)
        shown += len(piece)
        if shown >= WANTED:
            cancel.set()
    writer.join()
    again = model.generate("And now a short one.", max_new_tokens=16)  # the model stays usable
    print(f"[the next answer: {again.stats.n_tokens} tokens]")
