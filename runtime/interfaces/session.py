"""Sessions: weights that an engine has opened, one cache over them, and what each can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from .distribution import Floats, Indices, Tokens

Ability: TypeAlias = Literal[
    "tree", "evict_tokens", "evict_heads", "attend", "attention", "queries", "keys", "hidden", "fork", "save", "encode"
]
Observation: TypeAlias = Literal["hidden", "queries", "attention"]
Observations: TypeAlias = frozenset[Observation]
UNOBSERVED: Observations = frozenset()


@dataclass(frozen=True, slots=True)
class EncoderInfo:
    """What the encoder of an encoder-decoder model reads, and how the context of its answers begins."""

    decoder_start: tuple[int, ...]  # tokens that every answer goes on from
    source_limit: int | None = None  # tokens, or frames of sound, that it can read; None: no limit of its own
    source_kind: Literal["text", "audio"] = "text"
    bins: int | None = None  # of a frame of sound


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What an engine knows about the weights it opened, and where they run."""

    architecture: str
    vocab_size: int
    context_length: int  # tokens the model was trained for
    n_layers: int
    n_heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    engine: str  # its name among the backends
    engine_version: str
    device: str
    threads: int
    digest: str  # of the weights, so that what was measured is remembered for the right model
    settings: str = ""  # whatever else changes bits or speed: cache type, activation type
    widths: tuple[int, ...] = ()  # ascending: the only ones of decode steps, others are padded to them; (): any
    encoder: EncoderInfo | None = None  # None: a decoder-only model
    rewinds: int | None = None  # last entries that a session forgets cheaply, once after each step; None: all
    uneven: bool = (
        False  # layers keep entries of different sizes, or share them: nothing is shown of all of them at once
    )
    alike_from: int = 1  # rows: narrower steps have bits of their own, though rounding may hide it in most tokens


@dataclass(frozen=True, slots=True)
class Step:
    """What one forward pass gave back. The arrays belong to the caller until the session's next forward pass."""

    logits: Floats  # (n_logits, vocab_size)
    hidden: Floats | None = None  # (n, hidden_size), after the final norm; observed
    queries: Floats | None = None  # (n_layers, n_heads, n, head_dim), after rotation; observed
    attention: Floats | None = None  # (n_layers, n_heads, n, n_entries), softmax; observed


@runtime_checkable
class Session(Protocol):
    """One KV cache over some weights: one sequence, used from one thread at a time."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def abilities(self) -> frozenset[Ability]: ...

    @property
    def max_context(self) -> int:
        """How many entries the cache can hold."""
        ...

    @property
    def positions(self) -> Indices:
        """Position of every entry, ascending; has gaps once something was evicted.

        Where heads keep entries of their own: the last position that any of them keeps there.
        """
        ...

    @property
    def nbytes(self) -> int:
        """Bytes allocated for the cache as stored."""
        ...

    def encode(self, source: Tokens | Floats) -> None:
        """Read what the answers are about, (n,) tokens or (bins, frames) of sound, and empty the cache.

        The encoder runs once; keys and values of its result are computed once, and every later step sees them. Steps
        before the first encode() are refused with an OptionError. fork() shares the result. Ability "encode".
        Raises AbilityError, OptionError, and ContextFullError for a source that is too long, before anything changes.
        """
        ...

    def forward(
        self, tokens: Tokens, *, n_logits: int, parents: Indices | None = None, observe: Observations = UNOBSERVED
    ) -> Step:
        """Append the tokens and return logits of the last `n_logits` of them (0: none).

        parents: None for a chain. For a tree (ability "tree") one row index per token: parents[0] == 0 and
            parents[r] < r; a row sees the cache, its ancestors and itself, and its position is its parent's + 1.
        Raises ContextFullError, AbilityError or OptionError before anything changes.
        """
        ...

    def truncate(self, n_tokens: int) -> None:
        """Forget every entry at a position >= n_tokens. Cheap, where ModelInfo.rewinds says so; where it does not, the
        tokens that stay are run again."""
        ...

    def accept(self, rows: Indices) -> None:
        """After a tree: keep, of the last forward pass, only these rows, a path from row 0 downwards.

        A tree must be settled, by this or by truncating to before its first branch, before anything else is done.
        """
        ...

    def keep(self, entries: Indices) -> None:
        """Evict every entry but these (ascending indices into `positions`); final.

        entries: (n,) for all layers and heads (ability "evict_tokens"), or (n_layers, kv_heads, n), equally many for
            each, ability "evict_heads".
        """
        ...

    def attend(self, entries: Indices | None) -> None:
        """Let later steps see only these entries and those that they append; None: all again. None is evicted.

        entries: (n,), ascending indices into `positions`; the last one among them. An engine may ask for whole blocks:
            all that lie between two multiples of a number that divides 32. It ends where something is evicted, restored
            or forgotten of the entries that were there. Ability "attend".
        """
        ...

    def keys_values(self, layer: int) -> tuple[Floats, Floats]:
        """Keys (after rotation) and values of a layer, each (kv_heads, n_entries, head_dim); a view. Ability "keys"."""
        ...

    def fork(self, entries: Indices | None = None, max_context: int | None = None) -> Session:
        """A new session with the same entries, independent of this one from here on. Ability "fork".

        entries: take these alone, as keep() would leave them, and by the same abilities.
        max_context: of the new session; None is as many as this one's.
        """
        ...

    def save(self) -> bytes:
        """The entries, for restore() by a session of the same weights, engine, device and settings. Ability "save"."""
        ...

    def restore(self, state: bytes) -> None:
        """Hold the saved entries instead of the present ones; the next step gives the bits it would have given.

        Raises OptionError for what save() has not made or what other weights or settings made, ContextFullError
        where the entries do not fit, each before anything changes. Ability "save".
        """
        ...

    def close(self) -> None:
        """Free the cache. A second close does nothing."""
        ...


@runtime_checkable
class Weights(Protocol):
    """Weights opened by one engine on one device. Sessions share them."""

    @property
    def info(self) -> ModelInfo: ...

    def session(self, max_context: int | None = None) -> Session:
        """An empty cache. `max_context` defaults to the model's context length."""
        ...

    def close(self) -> None: ...
