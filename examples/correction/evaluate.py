"""Measures a trained model on documents that it has not seen, against doing nothing and against a dictionary.

From the folder above this one: python -m correction.evaluate MODEL [--pieces 500] [--text FILE ...] [--json FILE]
MODEL is a trained folder, or a bundle, which then runs as an application would run it, with drafts.
The dictionary row needs `pip install pyspellchecker`.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import T5ForConditionalGeneration

import pilotfish

from .metrics import dictionary, score
from .noise import Noise
from .text import Pieces, documents
from .train import correct

LEVELS = {  # letters with an error, on average: 2 %, 6 % (as trained), none
    "light": Noise(clean=0.0, letter=0.04),
    "as trained": Noise(clean=0.0),
    "right already": Noise(clean=1.0),
}


Corrector = Callable[[Sequence[str]], list[str]]


def corrector_of(path: Path) -> Corrector:
    """What corrects texts with the model at `path`, a trained folder or a bundle."""
    if (path / "pilotfish.json").exists():
        bundle = pilotfish.load(path, threads=1)  # more only wait for one another in a model this small
        return lambda texts: [bundle.generate(text, max_new_tokens=len(text.encode()) + 16).text for text in texts]
    trained = T5ForConditionalGeneration.from_pretrained(path)
    return lambda texts: correct(trained, texts)


def evaluate(
    corrector: Corrector, clean: Sequence[str], seed: int, batch: int = 64
) -> dict[str, dict[str, dict[str, float]]]:
    """Scores by level of noise and by corrector; of right texts, 1 - sentence_accuracy is the share it changed."""
    by_dictionary = dictionary()
    result: dict[str, dict[str, dict[str, float]]] = {}
    for level, noise in LEVELS.items():
        rng = random.Random(seed)
        noisy = [noise.apply(text, rng) for text in clean]
        order = sorted(range(len(noisy)), key=lambda i: len(noisy[i]))  # alike lengths together: less padding
        answers = [""] * len(noisy)
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            for row, answer in zip(rows, corrector([noisy[row] for row in rows]), strict=True):
                answers[row] = answer
        result[level] = {"nothing": score(noisy, clean).row(), "model": score(answers, clean).row()}
        if by_dictionary:
            result[level]["dictionary"] = score([by_dictionary(text) for text in noisy], clean).row()
    return result


def table(result: dict[str, dict[str, dict[str, float]]]) -> str:
    """The scores as a Markdown table."""
    lines = ["| text | corrector | word accuracy | character error rate | sentence accuracy |", "|---|---|---|---|---|"]
    for level, rows in result.items():
        for corrector, row in rows.items():
            figures = " | ".join(f"{100 * value:.2f} %" for value in row.values())
            lines.append(f"| {level} | {corrector} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--pieces", type=int, default=500)
    parser.add_argument("--longest", type=int, default=95, help="characters of a piece (95)")
    parser.add_argument("--text", type=Path, nargs="+", default=[])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file to write the scores to")
    options = parser.parse_args()
    torch.set_num_threads(2)
    texts = documents(options.text)
    unseen = [document for document in texts if document.held_out or options.text]
    rng = random.Random(options.seed)
    pieces = Pieces(unseen, options.longest)
    clean = [pieces.draw(rng) for _ in range(options.pieces)]
    began = time.monotonic()
    result = evaluate(corrector_of(options.model), clean, options.seed)
    print(table(result))
    print(f"{len(clean)} pieces of {len(unseen)} unseen documents, {time.monotonic() - began:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
