"""What a model thinks before it answers, told apart from the answer.

Source: the chat templates of Qwen 3, DeepSeek R1, SmolLM3, GLM 4.5 and others, which write thoughts between <think> and
</think>, begin the answer inside of them or not, and have a switch named enable_thinking or thinking; Gemma 4's, whose
thoughts are a channel; and the Harmony format of gpt-oss, where the answer is one, too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import OptionError
from ..interfaces import Tokens
from .chat_template import ChatTemplate
from .tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Marks:
    """What stands around thoughts. answer: what may stand before an answer without any."""

    begin: str
    end: str
    answer: str | None = None


THINK = Marks("<think>", "</think>")
GEMMA = Marks("<|channel>thought\n", "<channel|>")
_FINAL = "<|channel|>final<|message|>"
HARMONY = Marks("<|channel|>analysis<|message|>", f"<|end|><|start|>assistant{_FINAL}", _FINAL)
_SWITCHES = ("enable_thinking", "thinking")
_TAIL = 8  # tokens of a prompt among which a beginning of thoughts is looked for


def marks_of(template: ChatTemplate | None) -> Marks | None:
    """The marks of the thoughts that a template knows, so that answers may hold some; None for a template that does
    not."""
    source = "" if template is None else template.source
    known = ((THINK, THINK.end), (HARMONY, "<|channel|>analysis"), (GEMMA, GEMMA.end))
    return next((marks for marks, sign in known if sign in source), None)


def switched(template: ChatTemplate | None, thinking: bool | None) -> dict[str, object]:
    """What a template has to be told for a model to think, or not to; nothing for None.

    Raises OptionError where the template has no such switch.
    """
    if thinking is None:
        return {}
    source = "" if template is None else template.source
    names = [name for name in _SWITCHES if re.search(rf"\b{name}\b", source)]
    if not names:
        raise OptionError(
            "thinking is given, but this model's chat template has no switch for it; leave it out, or say in the "
            "prompt what is wanted."
        )
    return dict.fromkeys(names, thinking)


def begins_inside(marks: Marks, tokenizer: Tokenizer, context: Tokens) -> bool:
    """Whether a prompt ends where thoughts begin, so that the answer goes on with them."""
    return tokenizer.decode(context[-_TAIL:].tolist(), special=True).rstrip().endswith(marks.begin.rstrip())


def special_marks(marks: Marks, tokenizer: Tokenizer) -> frozenset[int]:
    """The special tokens among the marks, whose text would not be shown."""
    pieces = tokenizer.split_special(marks.begin + marks.end)
    return frozenset(piece for piece in pieces if isinstance(piece, int))


class Thoughts:
    """Parts a text that arrives in pieces: thoughts stand at its beginning, up to the end mark.

    inside: the text begins inside of them, without a mark.
    """

    def __init__(self, marks: Marks, *, inside: bool) -> None:
        self._marks = marks
        self._read = self._look_for_end if inside else self._look_for_beginning
        self._held = ""  # not known yet to be of the one or of the other
        self._thought: list[str] = []
        self._said: list[str] = []

    @property
    def thought(self) -> str | None:
        """The thoughts so far; None where there were none."""
        return "".join(self._thought).strip() or None

    @property
    def said(self) -> str:
        """The answer so far."""
        return "".join(self._said)

    def push(self, piece: str) -> str:
        """What is certain to be of the answer now."""
        self._held += piece
        return self._read()

    def finish(self) -> str:
        """What was still held back, once nothing follows."""
        if self._read == self._look_for_beginning:
            return self._say()
        if self._read == self._look_for_end:
            self._thought.append(self._held)
        return ""

    def _look_for_beginning(self) -> str:
        text, begin, answer = self._held.lstrip(), self._marks.begin, self._marks.answer
        if text.startswith(begin):
            self._held, self._read = text[len(begin) :], self._look_for_end
        elif answer is not None and text.startswith(answer):
            self._held, self._read = text[len(answer) :], self._say
        elif begin.startswith(text) or (answer is not None and answer.startswith(text)):
            return ""
        else:
            self._read = self._say
        return self._read()

    def _look_for_end(self) -> str:
        end = self._marks.end
        thought, mark, rest = self._held.partition(end)
        keep = 0 if mark else next((n for n in range(len(end) - 1, 0, -1) if thought.endswith(end[:n])), 0)
        self._thought.append(thought[: len(thought) - keep])
        self._held = rest if mark else thought[len(thought) - keep :]
        if not mark:
            return ""
        self._read = self._skip_space
        return self._read()

    def _skip_space(self) -> str:
        """Blank lines between thoughts and answer are of neither."""
        self._held = self._held.lstrip()
        if not self._held:
            return ""
        self._read = self._say
        return self._read()

    def _say(self) -> str:
        text, self._held = self._held, ""
        if text:
            self._said.append(text)
        return text
