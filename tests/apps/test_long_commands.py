"""`run --document`, `--draft-cache` and `bench long` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Run, own_cache, pilotfish, refused, tiny

__all__ = ["own_cache", "pilotfish", "tiny"]  # fixtures
pytest.importorskip("onnxruntime")
BOOK = "".join(f"Line {i} is about the cat and the dog.\n" for i in range(300))


def test_a_document_is_asked_about(tiny: Path, tmp_path: Path, pilotfish: Run) -> None:
    book = tmp_path / "book.txt"
    book.write_text(BOOK, "utf-8")
    asked = ("run", tiny, "What does the cat say?", "-n", 8, "--document", book, "--max-context", 800)
    found = json.loads(pilotfish(*asked, "--json").out)
    kept = found["document"]["kept"]
    assert found["n_prompt"] <= 600 and 0 < len(kept) < found["document"]["n_segments"]
    assert all(BOOK[part["start"] : part["end"]].startswith("Line") for part in kept)
    shown = pilotfish(*asked)
    assert "the answer rests on" in shown.err and f"{kept[0]['start']}-" in shown.err
    book.write_text(BOOK[:200], "utf-8")
    assert "the whole document fits" in pilotfish(*asked).err
    refused(pilotfish(*asked[:-2], "--document", tmp_path / "none.txt"), "none.txt is not there")
    book.write_text(" ", "utf-8")
    refused(pilotfish(*asked), "the document is empty")
    book.write_text(BOOK, "utf-8")
    refused(pilotfish(*asked[:-1], 200), "Open the model with a larger max_context")


def test_a_draft_cache_needs_a_draft(tiny: Path, pilotfish: Run) -> None:
    refused(pilotfish("run", tiny, "the cat", "--draft-cache", "sinks"), "there is no draft model")
    options = ("run", tiny, "the cat and the dog " * 20, "-n", 24, "--json", "--draft", tiny)
    ours = json.loads(pilotfish(*options, "--draft-cache", "sinks:budget=64,every=32").out)
    theirs = json.loads(pilotfish(*options).out)
    assert ours["token_ids"] == theirs["token_ids"] and ours["kv_bytes"] < theirs["kv_bytes"]


def test_bench_long(tiny: Path, tmp_path: Path, pilotfish: Run) -> None:
    small = ("--max-context", 640, "--segment", 64, "--times", "2", "--depths", 2, "--budget", 400)
    outcome = pilotfish("bench", "long", tiny, *small, "--json")
    found = json.loads(outcome.out)
    assert {x["method"] for x in found["needles"]} == {"truncation", "likelihood", "entropy"}
    assert len(found["needles"]) == 6 and found["curve"] is None
    assert [x["kept"] for x in found["needles"] if x["method"] == "truncation"] == [True, True]
    pytest.importorskip("matplotlib")
    curve = ("--times", "", "--curve", 3000, "--policy", "sinks:budget=128,every=64", "--out", tmp_path)
    shown = pilotfish("bench", "long", tiny, *curve)
    assert shown.code == 0 and "perplexity by context of 2048 tokens" in shown.out
    curves = json.loads((tmp_path / "long.json").read_text("utf-8"))["curve"]
    sinks = curves["sinks:budget=128,every=64"]
    assert len(sinks["loss"]) == 5 > len(curves["full"]["loss"]) == 3 and sinks["last_position"] < 2048
    assert (tmp_path / "long.png").read_bytes()[1:4] == b"PNG"
    refused(pilotfish("bench", "long", tiny, "--times", "1"), "--times is '1'")
    refused(pilotfish("bench", "long", tiny, "--policy", "sink"), "no cache policy 'sink'")


@pytest.mark.slow
def test_bench_cache_measures_a_policy_that_evicts_nothing(tiny: Path, tmp_path: Path, pilotfish: Run) -> None:
    text = tmp_path / "text"
    text.write_text(" ".join(f"the {n} and the hello {n * n % 97} cat" for n in range(400)))
    sizes = ("--length", 700, "--predicted", 32, "--needle-lengths", 700, "--depths", 2, "--keys", 0, "--share", "1/2")
    shown = pilotfish(
        "bench", "cache", tiny, *sizes, "--text", text, "--engine", "onnx", "--policy", "select", "--json"
    )
    full, row = json.loads(shown.out)["rows"]
    assert row["kl"] > 0 and row["kv_bytes"] >= full["kv_bytes"] and row["entries"] == 350 and row["select_s"] == 0
    assert len(row["needles"]) == 2 and row["step_ms_ceiling"] > 0
