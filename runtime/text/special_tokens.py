"""Special tokens that are known by their text, whatever a file says about them. Source: llama.cpp, llama-vocab.cpp."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# Where code is filled in: what stands before, after and in the gap, and what ends the text of a file.
FILL_IN: Mapping[str, frozenset[str]] = {
    "fim_pre": frozenset(
        {"<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>"}  # noqa: RUF001
        | {"<|code_prefix|>", "<|prefix|>"}
    ),
    "fim_suf": frozenset(
        {"<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>"}  # noqa: RUF001
        | {"<|code_suffix|>", "<|suffix|>"}
    ),
    "fim_mid": frozenset(
        {"<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>"}  # noqa: RUF001
        | {"<|code_middle|>", "<|middle|>"}
    ),
    "fim_pad": frozenset({"<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"}),
    "fim_rep": frozenset({"<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"}),
    "fim_sep": frozenset({"<|file_sep|>"}),
}
FILL_IN_ENDS = ("fim_pad", "fim_rep", "fim_sep")  # the kinds of those that an answer ends at
TURN_ENDS = frozenset(
    {
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
        *("<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>"),
        *("<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~["),  # noqa: RUF001
    }
)
END_TEXTS = TURN_ENDS.union(*(FILL_IN[kind] for kind in FILL_IN_ENDS))


def ends_among(ids: Mapping[str, int], named: Iterable[int] = ()) -> frozenset[int]:
    """The tokens that end an answer: those that a file names, and those known by their text.

    ids: tokens by their text.
    """
    ends = {*named, *(ids[text] for text in END_TEXTS & ids.keys())}
    texts = {text for text, i in ids.items() if i in ends}
    if ends_harmony_turns(texts):
        ends.discard(ids.get("<|end|>", -1))
    if has_plain_strike(texts):
        ends.discard(ids.get("</s>", -1))
    return frozenset(ends)


def ends_harmony_turns(ends: set[str]) -> bool:
    """Whether "<|end|>" ends only a part of an answer, as in gpt-oss and Solar Open."""
    calls = bool(ends & {"<|call|>", "<|calls|>"})
    return calls and bool(ends & {"<|return|>", "<|flush|>"})


def has_plain_strike(ends: set[str]) -> bool:
    """Whether "</s>" is a tag that the model writes, as in Gemma 4 and PLaMo."""
    return bool(ends & {"<|tool_response>", "<|plamo:eos|>"})
