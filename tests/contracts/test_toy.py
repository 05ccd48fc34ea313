"""The toy passes the engine contract: all of it, with two row classes, and where it can do nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from pilotfish.runtime.interfaces import EncoderInfo
from pilotfish.testing import CHECKS, Subject
from pilotfish.testing.toy import ALL, SEEN, ToyWeights

WIDE = (*range(2, 18), 32, 33)


def toy(**options: object) -> Subject:
    """Noise of the toy is absolute, on logits of about 3."""
    made = partial(ToyWeights, **{"vocab_size": 17, "context_length": 256, **options})  # type: ignore[arg-type]
    noise = 0.0 if not options.get("row_noise") else 0.5
    return Subject(made, noise, ((1,), WIDE) if noise else ((1, *WIDE),))


SUBJECTS = {"able": toy(), "two row classes": toy(row_noise=0.05), "can do nothing": toy(abilities=frozenset())}
SUBJECTS["shows keys"] = toy(abilities=ALL | SEEN)
SUBJECTS["reads a source"] = toy(encoder=EncoderInfo(decoder_start=(0,), source_limit=64), abilities=ALL | SEEN)
SUBJECTS["listens"] = toy(
    encoder=EncoderInfo(decoder_start=(0,), source_limit=9, source_kind="audio", bins=4), row_noise=0.05
)
SUBJECTS["copies a source"] = toy(encoder=EncoderInfo(decoder_start=(2, 0)), copying=4.0)
SUBJECTS["reads and does nothing else"] = toy(encoder=EncoderInfo(decoder_start=(0,)), abilities=frozenset())


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", SUBJECTS)
def test_contract(name: str, check: Callable[[Subject], None]) -> None:
    check(SUBJECTS[name])
