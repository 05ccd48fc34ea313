"""`pilotfish demo`: one answer, streamed with its accepted drafts in colour, and what speculation brought."""

from __future__ import annotations

from statistics import median

import psutil
from rich.console import Console
from rich.text import Text

from ..fetching.catalogue import ON_HUB, SURE
from ..runtime.errors import DownloadError
from ..runtime.model.model import Model
from ..runtime.model.result import Stats
from .demo_choice import demo_model, sure_model
from .terminal import LoadProgress, console, output, show_table, show_text

_POEM = """The little fish swims far ahead,
the big one follows where it led,
and when the guess is right, they glide
together on the evening tide.
"""
_REPEAT = f"Repeat this poem:\n\n{_POEM}"  # which the smallest model can
_EXPLAIN = f"Repeat this poem, then say in one sentence what it is about.\n\n{_POEM}"
_N_TOKENS = 160
_PASSES = 3


def chosen_demo(named: str | None, threads: int | None) -> tuple[Model, str]:
    """The model of the demo, opened, and its name; which one and why is said. named: what the user wants instead."""
    from ..loading.load import load

    if named is not None:
        with LoadProgress() as progress:
            return load(named, threads=threads, progress=progress), named
    choice = demo_model()
    while True:
        show_text(console(), f"{choice.name}: {choice.why}; --model names another", style="dim")
        try:
            with LoadProgress() as progress:
                return load(choice.name, threads=threads, progress=progress), choice.name
        except DownloadError:
            if choice.name == SURE:
                raise
            choice = sure_model("the hub has stopped answering")


def run_demo(model: Model, called: str, prompt: str | None) -> None:
    """Stream the answer, then measure plain and speculative decoding in turn on the same prompt.

    called: the name of the model, which decides what it is asked where there is no prompt.
    """
    out = output()
    asked = prompt or (_REPEAT if called == SURE else _EXPLAIN)
    thinking = False if called in ON_HUB and ON_HUB[called].thinks else None
    out.print(Text(asked.strip(), style="dim"), "\n")
    stream = model.stream(asked, max_new_tokens=_N_TOKENS, thinking=thinking)
    seen = 0
    for piece in stream:
        new = stream.rounds[seen:]
        seen = len(stream.rounds)
        out.print(Text(piece, style="green" if any(r.accepted for r in new) else ""), end="")
    out.print("\n")
    plain = model.sibling(policy=None)
    bare = model.sibling(policy=None, exact=False)
    try:
        stats: dict[str, list[Stats]] = {"speculative": [], "plain": [], "one row": []}
        texts: dict[str, str] = {}
        variants = (("plain", plain), ("speculative", model), ("one row", bare))
        with LoadProgress() as progress:
            for turn in range(_PASSES):
                for i, (name, variant) in enumerate(variants):
                    progress("measuring", (turn + i / len(variants)) / _PASSES)
                    result = variant.generate(asked, max_new_tokens=_N_TOKENS, thinking=thinking)
                    stats[name].append(result.stats)
                    texts[name] = result.text
    finally:
        plain.close()
        bare.close()
    _show(out, stats)
    same = "the same text, token by token" if texts["plain"] == texts["speculative"] else "A DIFFERENT TEXT: a bug"
    show_text(out, f"Speculative and plain decoding gave {same}. Green: rounds in which drafts were accepted.")
    show_text(
        out, "Drafts come from the text so far, so answers that repeat their prompt gain most; see pilotfish bench run."
    )
    memory = psutil.Process().memory_info().rss / 2**20
    last = stats["speculative"][-1]
    show_text(
        out, f"KV cache {last.kv_bytes / 2**20:.0f} MiB, process {memory:.0f} MiB, {last.engine} on {last.device}."
    )


def _show(out: Console, stats: dict[str, list[Stats]]) -> None:
    base = median(s.decode_tok_s for s in stats["plain"])
    rows = []
    labels = {
        "plain": "plain (exact, no drafts)",
        "speculative": "speculative (the same bits)",
        "one row": "plain, one-row steps (bits may differ)",
    }
    for name, label in labels.items():
        rate, last = median(s.decode_tok_s for s in stats[name]), stats[name][-1]
        drafts = f"{last.accepted} of {last.drafted}" if last.drafted else "-"
        rows.append((label, f"{rate:.1f}", f"{rate / base:.2f}", drafts, f"{last.tokens_per_round:.2f}"))
    show_table(out, ("decoding", "tokens/s", "times plain", "accepted drafts", "tokens per step"), rows)
