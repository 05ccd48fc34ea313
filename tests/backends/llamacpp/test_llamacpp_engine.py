"""The llama.cpp engine: options, builds that die, files that are damaged, memory that is not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from pilotfish.backends.llamacpp import probe as llamacpp_probe
from pilotfish.backends.llamacpp.backend import BACKEND
from pilotfish.backends.llamacpp.probe import TRIAL, Verdict, build_verdict
from pilotfish.runtime.errors import (
    AbilityError,
    EngineError,
    OptionError,
)
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.interfaces import Floats, Weights
from pilotfish.runtime.profiling.calibrate import calibrate
from pilotfish.testing.tiny_models import Sizes, tiny_gguf

pytestmark = pytest.mark.skipif(BACKEND.version() is None, reason="llama-cpp-python is not installed")

SIZES = Sizes(hidden=64, heads=2, kv_heads=1, head_dim=32, ffn=64, context=512)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("model") / "m.gguf", sizes=SIZES)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("cache")
    patch.setenv("PILOTFISH_CACHE", str(folder))
    yield folder
    patch.undo()


def opened(path: Path, kv_dtype: str | None = None, device: str | None = None, **options: object) -> Weights:
    return BACKEND.open(open_model(path), device=device, threads=2, kv_dtype=kv_dtype, options=options)


# Options


def test_an_unknown_option_is_refused_with_those_there_are(model: Path) -> None:
    with pytest.raises(OptionError, match=r"flash.*flash_attention, n_gpu_layers.*use_mmap"):
        opened(model, flash="on")
    with pytest.raises(OptionError, match=r"flash_attention: .*'auto', 'on' or 'off'"):
        opened(model, flash_attention="maybe")


@pytest.mark.parametrize("options", [{"n_gpu_layers": 4}, {"tensor_split": (1.0,)}, {"main_gpu": 0}])
def test_options_for_a_gpu_need_one(model: Path, options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=r"need a GPU"):
        opened(model, **options)


def test_a_device_that_is_not_there_is_named_with_those_that_are(model: Path) -> None:
    with pytest.raises(OptionError, match=r"no device 'cuda7'.*cpu.*CMAKE_ARGS"):
        opened(model, device="cuda7")


def test_cache_types(model: Path) -> None:
    with pytest.raises(OptionError, match=r"f32, f16, bf16, q8_0.*q8_0/f16"):
        opened(model, "q3")
    with pytest.raises(OptionError, match=r"q8_0 need flash attention, .*kv_dtype='q8_0/f16'"):
        opened(model, "q8_0", flash_attention="off")
    with pytest.raises(OptionError, match=r"rounds an f32 cache to f16"):
        opened(model, "f32", flash_attention="on")
    sizes = {}
    for kind in ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "q8_0/f16"):
        weights = opened(model, kind)
        session = weights.session(256)
        assert np.isfinite(session.forward(np.arange(9), n_logits=9).logits).all()
        sizes[kind] = session.nbytes
        assert ("attention" in session.abilities) == (kind == "f32")
        session.close()
        weights.close()
    assert sizes["f32"] == 2 * sizes["f16"] == 2 * 256 * 32 * 2 * SIZES.layers * 2
    assert sizes["q4_0"] == sizes["f16"] * 18 // 64
    assert sizes["q8_0/f16"] == (sizes["q8_0"] + sizes["f16"]) // 2


def test_a_narrow_head_has_no_quantized_cache(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"blocks of 32 numbers.*16 of a head"):
        opened(tiny_gguf(tmp_path / "narrow.gguf"), "q8_0")


def test_what_changes_bits_is_in_the_settings(model: Path) -> None:
    found = set()
    for kind, options in ((None, {}), ("q8_0", {}), (None, {"flash_attention": "off"}), (None, {"pair_rows": False})):
        weights = opened(model, kind, **options)
        found.add(weights.info.settings)
        weights.close()
    assert len(found) == 4


def rows_behind(past: int, width: int, threads: int, path: Path) -> Floats:
    """Logits of a step of so many rows behind so many entries, with both keys and values in f16."""
    weights = BACKEND.open(open_model(path), device=None, threads=threads, kv_dtype="f16")
    session = weights.session()
    tokens = np.random.default_rng(0).integers(0, 270, past + width)
    for start in range(0, past, 30):
        session.forward(tokens[start : min(start + 30, past)], n_logits=0)
    found = session.forward(tokens[past:], n_logits=width).logits.copy()
    session.close()
    weights.close()
    return found


def test_an_f16_cache_gives_a_row_the_same_bits_with_one_thread_and_two(model: Path) -> None:
    expected = rows_behind(300, 65, 1, model)
    for threads in (1, 2):
        for width in (1, 2, 64):
            found = rows_behind(300, width, threads, model)
            assert np.array_equal(found, expected[:width]), (threads, width)


def test_rows_that_are_not_paired_are_known_to_be_apart(model: Path) -> None:
    """A probe of a short text sees nothing of it, and drafts would change the answer behind 256 entries."""
    for kind, pair_rows, alike_from in (("f16", False, 2), ("f16", True, 1), (None, False, 2), (None, True, 1)):
        weights = opened(model, kind, pair_rows=pair_rows)
        assert weights.info.alike_from == alike_from
        assert calibrate(weights.session(256)).rows.rule().minimum >= alike_from
        weights.close()


def test_attention_names_its_way_out(model: Path) -> None:
    weights = opened(model)
    session = weights.session()
    with pytest.raises(AbilityError, match=r"flash_attention.*off"):
        session.forward(np.arange(3), n_logits=1, observe=frozenset({"attention"}))
    session.close()
    weights.close()


def test_a_cache_that_does_not_fit_says_how_much_and_what_to_do(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    weights = opened(model)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000})())
    with pytest.raises(EngineError, match=r"512 entries.*MiB.*max_context.*kv_dtype"):
        weights.session(512)
    weights.close()


def test_logits_outlive_their_session(model: Path) -> None:
    """They lie in memory of llama.cpp, which therefore stays."""
    weights = opened(model)
    session = weights.session()
    logits = session.forward(np.arange(5), n_logits=5).logits
    before = logits.copy()
    session.close()
    weights.close()
    other = opened(model)
    other.session().forward(np.arange(9), n_logits=9)
    assert np.array_equal(logits, before)
    other.close()


def test_rows_have_the_bits_of_any_width_beyond_256_entries(model: Path) -> None:
    """ggml computes a single row otherwise there, unless it is computed as two."""
    weights = opened(model)
    session = weights.session(512)
    tokens = np.random.default_rng(0).integers(0, session.info.vocab_size, 400)
    found = {}
    for width in (1, 2, 5):
        session.truncate(0)
        for start in range(0, 300, 50):
            session.forward(tokens[start : start + 50], n_logits=0)
        steps = [session.forward(tokens[i : i + width], n_logits=width).logits.copy() for i in range(300, 320, width)]
        found[width] = np.concatenate(steps)
        assert session.positions.tolist() == list(range(320))
    assert np.array_equal(found[1], found[2]) and np.array_equal(found[1], found[5])
    session.close()
    weights.close()


# Builds


def dies_with(*deaths: tuple[str, int]) -> Sequence[str]:
    """A trial that ends by these signals in these modes, and else does what the real one does."""
    code = (
        f"import os, runpy, sys; deaths = dict({list(deaths)!r}); mode = sys.argv[1]\n"
        "if mode in deaths: os.kill(os.getpid(), deaths[mode])\n"
        f"runpy.run_module({TRIAL[-1]!r}, run_name='__main__')"
    )
    return (sys.executable, "-c", code)


SIGILL = 4
posix = pytest.mark.skipif(os.name == "nt", reason="signals are sent to a process of its own")


def test_the_installed_build_is_tried_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llamacpp_probe, "_known", {})  # of this process, from other tests
    verdict = build_verdict()
    assert verdict.usable and "CPU" in verdict.system_info
    facts = BACKEND.notes()
    assert facts["verdict"].startswith("works") and facts["how"] and len(facts["build"]) == 64
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("tried again"))
    assert build_verdict() == verdict
    monkeypatch.setattr(llamacpp_probe, "_known", {})
    assert build_verdict() == verdict  # read from the folder


@posix
def test_a_build_that_dies_of_its_repacked_weights_runs_without_them(model: Path) -> None:
    verdict = build_verdict(dies_with(("repacked", SIGILL)))
    assert verdict.usable and not verdict.extra_buffers
    assert "illegal instruction" in verdict.how and verdict.facts()["verdict"] == "works without repacked weights"


@posix
def test_a_build_that_dies_is_refused_with_the_command_that_works(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = dies_with(("repacked", SIGILL), ("plain", SIGILL))
    monkeypatch.setattr("pilotfish.backends.llamacpp.backend.build_verdict", lambda: build_verdict(dead))
    with pytest.raises(EngineError, match=r"died of an illegal instruction.*DGGML_NATIVE=OFF"):
        opened(model)
    assert BACKEND.devices() == ()
    assert BACKEND.notes()["verdict"] == "dies"


def test_a_trial_that_gives_no_answer_is_not_remembered(tmp_path: Path) -> None:
    log = tmp_path / "runs"
    command = (sys.executable, "-c", f"open({str(log)!r}, 'a').write('x'); print('hello')")
    for runs in (2, 4):
        verdict = build_verdict(command)
        assert not verdict.usable and "gave no answer" in verdict.how
        assert len(log.read_text()) == runs


def test_a_damaged_verdict_counts_as_none(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdict = build_verdict()
    for path in (cache / "builds").glob("*.json"):
        path.write_text(json.dumps({"usable": "yes"}))
    monkeypatch.setattr(llamacpp_probe, "_known", {})
    assert build_verdict() == verdict
    assert isinstance(verdict, Verdict)
