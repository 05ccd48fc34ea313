"""Cache policies on encoder-decoder models: they compress what the answer leaves behind, never the source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cache_runs import FIRST, MORE

import pilotfish
from pilotfish.runtime.cache.policies.by_name import POLICIES
from pilotfish.runtime.errors import OptionError
from pilotfish.runtime.model.model import Model
from pilotfish.runtime.speculation.draft_length import Fixed

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

pytestmark = pytest.mark.usefixtures("module_cache")
DEMO = Path(__file__).resolve().parents[3] / "apps" / "demos" / "correct"  # a T5 that was really trained
TEXT = "I has a apple and the the dog are run to quick over their house becuase it were hungri and it dont know. "
SMALL = "budget=24,every=8,sinks=2,window=6"


def settings(name: str) -> str:
    return ",".join([f"{name}:{SMALL}", *(given for part, given in MORE.items() if part in name)])


def crossed(model: Model) -> int:
    """Bytes of the source's keys and values."""
    session = model.target.session(64)
    empty = session.nbytes
    session.encode(model.encode(TEXT))
    found = session.nbytes - empty
    session.close()
    return found


@pytest.mark.parametrize("name", [*POLICIES, *FIRST])
def test_drafts_change_nothing_and_the_source_stays(name: str) -> None:
    with (
        pilotfish.load(DEMO, "onnx", cache=settings(name), threads=1) as model,
        model.sibling(policy=None) as plain,
        model.sibling(policy=Fixed(4)) as drafting,
    ):
        theirs, ours = (m.generate(TEXT, max_new_tokens=100) for m in (plain, drafting))
        assert ours.token_ids == theirs.token_ids and ours.stats.accepted > 20
        assert ours.stats.kv_entries <= 32 < len(ours.token_ids)
        assert ours.text.startswith("I has a ") and "dog" in ours.text, "it lost sight of the source"
        assert ours.stats.kv_bytes > crossed(model) > 0, "the source is part of what is allocated"
        again = drafting.generate(TEXT[:60], max_new_tokens=20)
        assert again.token_ids == plain.generate(TEXT[:60], max_new_tokens=20).token_ids


def test_a_trial_of_a_smaller_cache() -> None:
    with (
        pilotfish.load(DEMO, "onnx", cache=f"sinks:{SMALL}", quality=0.5, threads=1) as model,
        model.sibling(policy=None) as plain,
        model.sibling(policy=Fixed(4)) as drafting,
    ):
        theirs, ours = (m.generate(TEXT, max_new_tokens=100) for m in (plain, drafting))
        assert ours.token_ids == theirs.token_ids and ours.stats.trial == theirs.stats.trial
        assert ours.stats.trial is not None and ours.stats.trial.dropped_at is not None
        other = drafting.generate(TEXT[::-1], max_new_tokens=20)
        assert other.stats.trial is not None and other.stats.trial.dropped_at is None, "another source, another trial"
        assert other.token_ids == plain.generate(TEXT[::-1], max_new_tokens=20).token_ids


def test_what_cannot_be_had_says_so() -> None:
    with pytest.raises(OptionError, match="or in int8 of decoders"):
        pilotfish.load(DEMO, "onnx", kv_dtype="int8")
    with pilotfish.load(DEMO, "onnx", cache=f"sinks:{SMALL}", threads=1) as model:
        with pytest.raises(OptionError, match="cache policy; load the model with cache=None"):
            model.generate(TEXT, beams=2)
        assert isinstance(model.encode(TEXT), np.ndarray)
