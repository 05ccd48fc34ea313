"""What every export is asked: three texts that are read, and eight prompts that are answered.

The prose is from the first chapters of Darwin's *On the Origin of Species* (1859), in the public domain; the rest was
written for this. Weights are not calibrated on it: a bundle must not be measured on what it was fitted to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...runtime.errors import ChatTemplateError
from ...runtime.interfaces import Tokens
from ...runtime.text.chat_template import ChatTemplate, encode_chat
from ...runtime.text.tokenizer import Tokenizer
from ..sources.families import window_of

if TYPE_CHECKING:
    from ..sources.model_source import ModelSource

_WIDEST_WINDOW = 2048  # a longer text than this would take longer than all the rest

PROSE = """\
When on board H.M.S. Beagle, as naturalist, I was much struck with certain facts in the distribution of the \
inhabitants of South America, and in the geological relations of the present to the past inhabitants of that \
continent. These facts seemed to me to throw some light on the origin of species, that mystery of mysteries, as \
it has been called by one of our greatest philosophers. On my return home, it occurred to me, in 1837, that \
something might perhaps be made out on this question by patiently accumulating and reflecting on all sorts of \
facts which could possibly have any bearing on it. After five years' work I allowed myself to speculate on the \
subject, and drew up some short notes; these I enlarged in 1844 into a sketch of the conclusions, which then \
seemed to me probable: from that period to the present day I have steadily pursued the same object. I hope that \
I may be excused for entering on these personal details, as I give them to show that I have not been hasty in \
coming to a decision.

When we look to the individuals of the same variety or sub-variety of our older cultivated plants and animals, \
one of the first points which strikes us, is, that they generally differ much more from each other, than do the \
individuals of any one species or variety in a state of nature. When we reflect on the vast diversity of the \
plants and animals which have been cultivated, and which have varied during all ages under the most different \
climates and treatment, I think we are driven to conclude that this greater variability is simply due to our \
domestic productions having been raised under conditions of life not so uniform as, and somewhat different from, \
those to which the parent-species have been exposed under nature.
"""

CODE = '''\
from dataclasses import dataclass


@dataclass
class Account:
    owner: str
    balance: float = 0.0

    def deposit(self, amount: float) -> None:
        """Add money to the account."""
        if amount <= 0:
            raise ValueError("the amount must be positive")
        self.balance += amount

    def withdraw(self, amount: float) -> None:
        """Take money out of the account."""
        if amount > self.balance:
            raise ValueError("there is not enough money in the account")
        self.balance -= amount


def transfer(source: Account, target: Account, amount: float) -> None:
    source.withdraw(amount)
    target.deposit(amount)


def total(accounts: list[Account]) -> float:
    result = 0.0
    for account in accounts:
        result += account.balance
    return result


def test_transfer() -> None:
    alice, bob = Account("Alice", 100.0), Account("Bob")
    transfer(alice, bob, 30.0)
    assert alice.balance == 70.0
    assert bob.balance == 30.0
    assert total([alice, bob]) == 100.0
'''

TALK = """\
Visitor: Good morning. Is this the right platform for the train to the coast?
Guard: It is, but you have a little time. The next one leaves at twenty past ten, and it is only five to.
Visitor: Then I can still get a coffee. Do I have to change anywhere?
Guard: Once, at the junction. You get out, cross the bridge, and the local train is waiting on the other side. \
It waits for you, so there is no need to run.
Visitor: That is good to know. Last year I missed it and had to stay the night.
Guard: Last year they were repairing the bridge. It is finished now. How long are you staying?
Visitor: Only until Sunday. My sister lives there, and her daughter is getting married on Saturday.
Guard: Then I hope the weather holds. They say it will rain on Friday and be fine after that.
"""

TEXTS = {"prose": PROSE, "code": CODE, "talk": TALK}

PROMPTS = {
    "chat": (
        "What is the capital of France, and what is it known for?",
        "Give me three tips for sleeping better.",
        "Explain in two sentences why the sea is salty.",
    ),
    "code": (
        "Write a Python function that returns the n-th Fibonacci number.",
        "Write a Python function that checks whether a string is a palindrome.",
        "What does the SQL statement SELECT name FROM users WHERE age > 30 do?",
    ),
    "copy": (
        "Repeat this sentence exactly: The quick brown fox jumps over the lazy dog near the old stone bridge.",
        "Correct the spelling and change nothing else: Teh train leaves at ten oclock and arives in the evning.",
    ),
}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The texts and prompts as tokens of one model."""

    texts: dict[str, Tokens]
    prompts: tuple[Tokens, ...]
    n_scored: int  # rows of each text, from its end, that are compared: of a shorter text all

    def scored(self, name: str) -> int:
        """How many rows of this text are compared."""
        return min(self.n_scored, len(self.texts[name]))


def evaluation_of(source: ModelSource) -> Evaluation:
    """The texts and prompts for a model, one of them longer than its sliding window, if it has one of this size."""
    window = window_of(source.config())
    length = source.context_length
    if source.encoder_decoder is not None:  # read by the encoder, and after the answer's first tokens by the decoder
        length = min(length, source.encoder_decoder.source_limit or length) - len(source.encoder_decoder.decoder_start)
    return evaluation_for(
        source.tokenizer,
        source.chat_template,
        length,
        window=window if window is not None and window <= _WIDEST_WINDOW else None,
    )


def evaluation_for(
    tokenizer: Tokenizer, template: str | None, context_length: int, *, per_text: int = 176, window: int | None = None
) -> Evaluation:
    """The texts cut to so many tokens each, and the prompts as the model's chat template writes them.

    window: entries a sliding-window layer sees; the prose is repeated until it is longer, as far as the context goes.
    """
    texts = {name: tokenizer.encode(text)[: min(per_text, context_length)] for name, text in TEXTS.items()}
    if window is not None and window >= per_text:
        prose = tokenizer.encode(PROSE)
        long = prose[[i % len(prose) for i in range(min(window + per_text // 2, context_length))]]
        texts["beyond the window"] = long
    room = max(1, context_length // 2)
    prompts = tuple(_prompt(tokenizer, template, text)[-room:] for texts in PROMPTS.values() for text in texts)
    return Evaluation(texts, prompts, per_text)


def _prompt(tokenizer: Tokenizer, template: str | None, text: str) -> Tokens:
    if template is not None:
        try:
            return encode_chat(tokenizer, ChatTemplate(template), [{"role": "user", "content": text}])
        except ChatTemplateError:  # a template that wants more than a message of the user; the text alone will do
            pass
    return tokenizer.encode(text)
