"""Where the real SmolLM2 is, for tests marked `real`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pilotfish.fetching.fetch import model_path


def smollm2() -> Path:
    """Its .gguf file: PILOTFISH_TEST_MODEL, or the one the product has fetched; else the test is skipped."""
    path = Path(os.environ.get("PILOTFISH_TEST_MODEL") or model_path("smollm2-135m"))
    if not path.is_file():
        pytest.skip("no SmolLM2: set PILOTFISH_TEST_MODEL or run `pilotfish pull smollm2-135m`")
    return path


def whisper() -> Path:
    """A Whisper tiny.en as CTranslate2 keeps it, or a Hugging Face folder of it: PILOTFISH_TEST_WHISPER; else the test
    is skipped."""
    path = Path(os.environ.get("PILOTFISH_TEST_WHISPER", ""))
    if not os.environ.get("PILOTFISH_TEST_WHISPER") or not path.is_dir():
        pytest.skip("no Whisper: set PILOTFISH_TEST_WHISPER to the folder of whisper-tiny.en")
    return path


def annalog() -> Path:
    """ANNalog's unpacked package, program and weights: PILOTFISH_TEST_ANNALOG; else the test is skipped."""
    path = Path(os.environ.get("PILOTFISH_TEST_ANNALOG", ""))
    if not (path / "ckpt_and_vocab" / "Lev_extended.pt").is_file():
        pytest.skip("no ANNalog: set PILOTFISH_TEST_ANNALOG to the folder that its package unpacks to")
    return path


STORY = (
    "The lighthouse keeper climbed the stairs every evening at dusk, lit the lamp, and wrote the weather into his "
    "book. One night the lamp would not burn, so he carried lanterns to the rocks and sang until the ships turned away."
)


CODE = (
    "def total(prices, tax):\n    result = 0\n    for price in prices:\n        result = result + price\n"
    "    result = result + result * tax\n    return result\n"
)


PROMPTS = {
    "copy 1": f"Repeat the following text word for word, three times:\n\n{STORY}",
    "copy 2": f"Copy this text exactly, then copy it again:\n\n{STORY}",
    "copy 3": f"Correct only the spelling and return the whole text:\n\n{STORY.replace('keeper', 'keper')}",
    "copy 4": f"Replace the word lamp by the word light and return the whole text:\n\n{STORY}",
    "code 1": f"Rename the variable result to amount and show the whole function:\n\n{CODE}",
    "code 2": f"Add a docstring to this function and show all of it:\n\n{CODE}",
    "code 3": "Write a Python class Stack with the methods push, pop, peek and is_empty.",
    "code 4": "Write a Python function that counts the words in a text file, and a test for it.",
    "chat 1": "What should I pack for a weekend of hiking in October?",
    "chat 2": "Explain to a child why the sky is blue.",
    "chat 3": "How can I ask my neighbour to be quieter at night?",
    "chat 4": "What is the difference between a lease and a loan?",
    "chat 5": "Tell me a short story about a fox and a clock.",
    "chat 6": "Qu'est-ce que la photosynthèse ? Réponds en français.",
    "list 1": "List the numbers from 1 to 60, separated by commas.",
    "list 2": "List twenty fruits, one per line, each with its colour.",
    "list 3": "Write a multiplication table of 7, from 7 x 1 to 7 x 20.",
    "list 4": "List the months, with the number of days of each, as a Markdown table.",
    "list 5": 'Write ten records as JSON: {"id": 1, "name": "Ann", "age": 30}, and so on.',
    "list 6": "Write the alphabet, one letter per line, each with an animal that begins with it.",
}
