"""A model's own settings for generating, as a bundle keeps them: what transformers' generate() would heed."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

TokenId: TypeAlias = Annotated[int, Field(ge=0)]
Word: TypeAlias = Annotated[tuple[TokenId, ...], Field(min_length=1)]
Penalty: TypeAlias = Annotated[FiniteFloat, Field(gt=0)]
Count: TypeAlias = Annotated[int, Field(ge=0)]


class Generation(BaseModel):
    """Settings by the names that transformers' GenerationConfig gives them; the defaults change nothing.

    Lengths named `length` are of the whole context, those named `new_tokens` of what transformers counts as generated:
    a forced first token is generated there, and stands in decoder_start here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    repetition_penalty: Penalty = 1.0
    encoder_repetition_penalty: Penalty = 1.0
    no_repeat_ngram_size: Count = 0
    encoder_no_repeat_ngram_size: Count = 0
    bad_words_ids: tuple[Word, ...] = ()  # of more than one token; those of one are suppress_tokens
    sequence_bias: tuple[tuple[Word, FiniteFloat], ...] = ()
    min_length: Count = 0
    min_new_tokens: Count | None = None  # goes before min_length
    max_length: Count | None = None
    max_new_tokens: Count | None = None  # goes before max_length
    forced_eos_token_id: tuple[TokenId, ...] = ()  # as the last token that there is room for
    exponential_decay_length_penalty: tuple[int, Penalty] | None = None
    num_beams: Annotated[int, Field(ge=1)] = 1  # for inspection: beams are searched when they are asked for
    length_penalty: FiniteFloat = 1.0
    early_stopping: bool | Literal["never"] = False
    languages: dict[str, TokenId] = {}  # what an answer can be asked for in, and the token that asks for it
    language_in_source: bool = False  # whether that token stands before the source, and not before the answer
    tasks: dict[str, TokenId] = {}  # the same of what a recording can be turned into
    no_timestamps_token_id: TokenId | None = None  # asks a recording's answer for no times; the next one says 0.00
    max_initial_timestamp_index: Count | None = None  # the latest time that an answer begins with
    unheeded: tuple[str, ...] = ()  # settings of the source that nothing here does

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Every token that is named."""
        words = (*self.bad_words_ids, *(word for word, _ in self.sequence_bias))
        asking = (*self.languages.values(), *self.tasks.values())
        silent = () if self.no_timestamps_token_id is None else (self.no_timestamps_token_id,)
        return (*(i for word in words for i in word), *self.forced_eos_token_id, *asking, *silent)
