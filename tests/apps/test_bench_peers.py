"""`bench peers`: other runtimes in processes of their own, which may be missing, die, hang or print what they like."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_line import Run, own_cache, pilotfish, refused, tiny
from small_models import need, tiny_file

from pilotfish.apps.bench.peers.contestants import Contestant
from pilotfish.apps.bench.peers.contract import Answer, Arrivals, Question, Setup
from pilotfish.apps.bench.peers.energy import EnergyMeter
from pilotfish.apps.bench.peers.figures import OVERALL, figures
from pilotfish.apps.bench.peers.measure import Row, Sample, measure, turns
from pilotfish.apps.bench.peers.pilotfish_engine import Pilotfish
from pilotfish.apps.bench.peers.process import PeerFailedError, PeerMissingError, Worker, command_of, environment
from pilotfish.apps.bench.peers.report import page
from pilotfish.runtime.model.model import Model

__all__ = ["own_cache", "pilotfish", "tiny"]  # fixtures
FAKE = """
import os, signal, sys, time
from pilotfish.apps.bench.peers.contract import Answer, NotHereError
from pilotfish.apps.bench.peers.worker import serve
class Fake:
    version = "1.2"
    def answer(self, question):
        how = question.text
        if how == "die": os.kill(os.getpid(), signal.SIGKILL)
        if how == "leave": sys.stderr.write("out of luck\\n"); sys.stderr.flush(); os._exit(3)
        if how == "hang": time.sleep(3600)
        if how == "raise": raise ValueError("this\\ncannot be")
        if how == "print": print("{}"); os.write(1, b"\\xff noise\\n[1]\\n")
        return Answer(question.ids, 2.0, 1.0, 1, 2)
def opened(setup):
    if setup.variant == "missing": raise NotHereError("no package")
    return Fake()
serve(opened)
"""
GARBAGE = "print('hello'); print('[1, 2]'); print('{\\\"opened\\\": \\\"9\\\", \\\"seconds\\\": 0}'); input()"
QUESTION = Question("what", (7, 8, 9), 3)
ANSWER = Answer((7, 8, 9), 2.0, 1.0, 1, 2)
ON_PATH = sys.platform != "win32"


def setup_of(contestant: Contestant) -> Setup:
    return Setup(contestant.variant, contestant.weights, None, 1, 64, (2,))


def fake(name: str, variant: str = "plain", code: str = FAKE) -> Contestant:
    return Contestant(name, variant, (sys.executable, "-c", code), "w")


def run(contestants: list[Contestant], texts: list[str], repeats: int = 1, limit_s: float = 300.0) -> list[Row]:
    questions = [Question(text, (7, 8, 9), 3) for text in texts]
    return measure(
        contestants,
        questions,
        setup_of,
        repeats=repeats,
        limit_s=limit_s,
        meter=None,
        progress=lambda what, share: None,
    )


def test_a_runtime_that_prints_does_not_disturb_its_answers() -> None:
    (row,) = run([fake("noisy")], ["warm", "print"])
    assert row.state == "ran" and row.version == "1.2"
    assert [[s.answer for s in samples] for samples in row.samples.values()] == [[ANSWER], [ANSWER]]
    worker = Worker((sys.executable, "-c", GARBAGE), 300.0)
    try:
        assert worker.ask({})["opened"] == "9", "lines that are no objects are passed over"
    finally:
        worker.close()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("die", "failed: its process died of SIGKILL"),
        ("leave", "failed: its process ended with code 3: out of luck"),
        ("raise", "failed: this cannot be"),
    ],
)
@pytest.mark.skipif(not ON_PATH, reason="signals")
def test_one_that_fails_is_out_and_the_others_go_on(how: str, said: str) -> None:
    rows = run([fake("a"), fake("b", code=FAKE.replace("how = question.text", "how = 'fine'"))], ["warm", how, "last"])
    assert (rows[0].state, rows[0].samples) == (said, {})
    assert rows[1].state == "ran" and sorted(rows[1].samples) == [0, 1, 2]


def test_one_that_hangs_is_out_after_its_time_and_ends() -> None:
    hangs = "import sys, time; sys.stdin.readline(); time.sleep(3600)"
    worker = Worker((sys.executable, "-c", hangs), 0.3)
    with pytest.raises(PeerFailedError, match=r"no answer within 0\.3 s"):
        worker.ask({"open": {}})
    assert not psutil.pid_exists(worker.pid)
    worker.close()


def test_one_that_is_missing_says_so_and_one_that_does_not_start_too() -> None:
    missing, nowhere = run([fake("gone", "missing"), Contestant("b", "plain", ("/no/such/python",), "w")], ["hi"])
    assert missing.state == "not installed: no package" and not missing.samples
    assert nowhere.state.startswith("failed: /no/such/python does not start: ")
    worker = Worker((sys.executable, "-c", FAKE), 300.0)
    try:
        with pytest.raises(PeerMissingError):
            worker.ask({"open": {**vars_of(setup_of(fake("x", "missing")))}})
    finally:
        worker.close()


def vars_of(setup: Setup) -> dict[str, object]:
    return {name: getattr(setup, name) for name in Setup.__slots__}


def test_every_row_answers_a_prompt_before_the_next_is_asked() -> None:
    assert list(turns(2, 2, 3)) == [(0, 0), (0, 1), (1, 0), (1, 1), (0, 1), (0, 0), (1, 1), (1, 0),
                                    (0, 0), (0, 1), (1, 0), (1, 1)]  # fmt: skip
    measured = run([fake("a"), fake("b")], ["p", "q"], repeats=2)
    assert all([len(samples) for samples in row.samples.values()] == [2, 2] for row in measured)


def test_a_worker_needs_no_pilotfish_in_its_interpreter(tmp_path: Path) -> None:
    """An interpreter of its own finds what it is told by path, not what this process finds."""
    variables = environment(1, own=False)
    assert "PYTHONPATH" not in variables
    line = command_of("llama_server_engine", sys.executable)
    line[1:1] = ["-S"]  # nothing that is installed is found
    worker = Worker(line, 300.0, {**variables, "PATH": str(tmp_path)})
    try:
        with pytest.raises(PeerMissingError, match="no llama-server on the path"):
            worker.ask({"open": {**vars_of(setup_of(fake("x"))), "ends": [2]}})
    finally:
        worker.close()


def test_tokens_are_counted_up_to_the_end_and_timed_without_the_prompt() -> None:
    arrivals = Arrivals({2}, 10)
    assert not arrivals.add([5]) and not arrivals.add([6, 7]) and arrivals.add([8, 2, 9])
    answer = arrivals.answer(arrivals.steps)
    assert answer.tokens == (5, 6, 7, 8, 2) and answer.n_first == 1 and answer.steps == 3
    assert ANSWER.rate == 2 / (2.0 - 1.0) and ANSWER.whole_rate == 1.5
    assert Answer((1, 2), 4.0, 4.0, 2).rate == 0.5, "all at once: nothing but the whole time is known"


def row_of(family: str, variant: str, seconds: list[float], tokens: tuple[int, ...] = (1, 2, 3, 4, 5)) -> Row:
    row = Row(fake(family, variant), version="1", peak_bytes=1 << 20)
    for i, s in enumerate(seconds):
        row.samples[i] = [Sample(Answer(tokens, 1.0 + s, 1.0, 1, 2, s / 2 if family == "pilotfish" else None), 10.0)]
    return row


def test_figures_are_against_the_fastest_plain_decoding_of_others() -> None:
    rows = [
        row_of("pilotfish", "plain", [0.5, 0.5]),
        row_of("pilotfish", "default", [1.0, 4.0]),
        row_of("slow", "plain", [8.0, 8.0]),
        row_of("fast", "plain", [2.0, 4.0]),
        row_of("fast", "lookup", [1.0, 1.0], (1, 2, 3, 4, 6)),
    ]
    rows.append(Row(fake("gone"), "failed: it is gone"))
    found = figures(rows, ["code", "chat"], greedy=True)
    assert list(found) == ["code", "chat", OVERALL]
    whole = found[OVERALL]
    assert isinstance(whole, dict) and whole["fastest_plain"] == "fast plain" and len(whole["rows"]) == 5
    ours = whole["rows"]["pilotfish"]
    assert (ours["tokens_per_s"], ours["times_fastest"], ours["lowest_times_fastest"]) == (2.5, 1.5, 1.0)
    assert ours["ratio_of_means"] == pytest.approx((5 / 2 + 5 / 5) / (5 / 3 + 5 / 5))
    assert (ours["tokens_per_step"], ours["same_text"], ours["joules_per_token"]) == (2.5, 2, 2.0)
    assert ours["ceiling_tokens_per_s"] == 8 / 2.5 and ours["ceiling_times_fastest"] == pytest.approx(3.2 / 1.5)
    assert whole["rows"]["fast lookup"]["same_text"] == 0
    assert "same_text" not in whole["rows"]["fast plain"] and "ceiling_tokens_per_s" not in whole["rows"]["fast plain"]
    drawn = figures(rows, ["code", "code"], greedy=False)
    assert list(drawn) == ["code"] and isinstance(drawn["code"], dict)
    assert "same_text" not in drawn["code"]["rows"]["pilotfish"], "drawn texts differ by right"


def test_the_page_needs_no_other_file() -> None:
    pytest.importorskip("matplotlib")
    rows = [row_of("pilotfish", "plain", [1.0]), row_of("<b>", "plain", [2.0])]
    peers = {r.contestant.name: {"state": "ran", "version": "1", "load_s": 1.0, "peak_bytes": 5} for r in rows}
    facts = {"machine": "m", "instruction_sets": [], "model": "m", "threads": 1, "new_tokens": 5, "repeats": 1}
    sets = figures(rows, ["code"], greedy=True)
    text = page({**facts, "temperature": 0.0, "seed": 0, "date": "today", "peers": peers, "sets": sets})
    assert "&lt;b&gt; plain" in text and "<b>" not in text and 'src="data:image/png;base64,' in text
    assert "http" not in text.split("base64,")[0]


def test_joules_are_of_packages_and_survive_a_counter_that_begins_again(tmp_path: Path) -> None:
    assert EnergyMeter.find(tmp_path) is None
    for name in ("intel-rapl:0", "intel-rapl:0:0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "max_energy_range_uj").write_text("10000000\n")
        (tmp_path / name / "energy_uj").write_text("9000000\n")
    meter = EnergyMeter.find(tmp_path)
    assert meter is not None
    meter.begin()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("1000000\n")
    assert meter.joules() == 2.0


SERVER = """#!{python}
import http.server, json, os, sys, time
if "--version" in sys.argv: sys.exit("version: 77 (abc)")
open({pids!r}, "a").write(f"{{os.getpid()}}\\n")
port = int(sys.argv[sys.argv.index("--port") + 1])
wide = 3 if "--spec-type" in sys.argv else 1
class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        {act}
        self.send_response(200); self.end_headers()
        n = asked["n_predict"]
        for start in range(0, n, wide):
            told = {{"tokens": [5] * min(wide, n - start)}}
            self.wfile.write(b"data: " + json.dumps(told).encode() + b"\\n\\n")
        self.wfile.write(b'data: {{"tokens": [], "timings": {{"draft_n_accepted": 4}}}}\\n\\n')
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
INTERRUPT = "import psutil; psutil.Process().parent().parent().send_signal(2); time.sleep(3600)"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a program llama-server first on the path that does this with a prompt; the file with its process ids."""
    if not ON_PATH:
        pytest.skip("needs a program that is a script")
    folder, pids = tmp_path / "bin", tmp_path / "pids"

    def put(act: str) -> Path:
        folder.mkdir()
        (folder / "llama-server").write_text(SERVER.format(python=sys.executable, pids=str(pids), act=act))
        (folder / "llama-server").chmod(0o755)
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
        return pids

    return put


def ended(pids: Path) -> bool:
    numbers = [int(line) for line in pids.read_text().split()]
    alive = [psutil.Process(n) for n in numbers if psutil.pid_exists(n)]
    return bool(numbers) and all(process.status() == psutil.STATUS_ZOMBIE for process in alive)


FEW = ("--sets", "code,json", "--per-set", 1, "--tokens", 6, "--repeats", 1, "--engine", "onnx", "--threads", 1)


def test_the_command(tiny: Path, tmp_path: Path, pilotfish: Run, server: Callable[[str], Path]) -> None:
    pytest.importorskip("onnxruntime")
    pids = server("pass")
    out = ("--out", tmp_path / "out") if find_spec("matplotlib") else ()
    outcome = pilotfish("bench", "peers", tiny, "--peers", "llama-server,onnxruntime-genai", *FEW, *out, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    peers = report["peers"]
    names = ["pilotfish plain", "pilotfish", "pilotfish inexact", "llama-server plain", "llama-server ngram"]
    assert list(peers) == [*names, "onnxruntime-genai"]
    assert all(peers[name]["state"] == "ran" for name in names), peers
    assert peers["onnxruntime-genai"]["state"].startswith("no weights: ")
    assert peers["llama-server plain"]["version"] == "77 (abc)"
    assert list(report["sets"]) == ["code", "json", OVERALL]
    rows = report["sets"]["code"]["rows"]
    assert report["sets"]["code"]["fastest_plain"] == "llama-server plain" and list(rows) == names
    assert rows["llama-server ngram"]["tokens_per_step"] == 3.0 and rows["llama-server ngram"]["same_text"] == 1
    assert rows["pilotfish"]["same_text"] == 1 and rows["pilotfish"]["ceiling_tokens_per_s"] > 0
    assert ended(pids)
    if out:
        assert json.loads((tmp_path / "out" / "peers.json").read_text()) == report
        assert (tmp_path / "out" / "peers.html").read_text().startswith("<!doctype html>")


def test_a_peer_that_dies_ends_up_as_a_row(tiny: Path, pilotfish: Run, server: Callable[[str], Path]) -> None:
    pytest.importorskip("onnxruntime")
    pids = server("os._exit(9)")
    outcome = pilotfish("bench", "peers", tiny, "--peers", "llama-server", *FEW)
    assert outcome.code == 0 and outcome.out.count("failed: ") == 2, outcome.out
    assert "1 is pilotfish plain" in outcome.out
    assert ended(pids)


def test_ctrl_c_ends_everything_that_was_started(tiny: Path, server: Callable[[str], Path]) -> None:
    pytest.importorskip("onnxruntime")
    pids = server(INTERRUPT)
    line = ["bench", "peers", tiny, "--peers", "llama-server", *FEW]
    code = f"import sys; sys.argv = {['pilotfish', *map(str, line)]!r}; from pilotfish.apps.entry import main; main()"
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=600,
        env=variables,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert done.returncode == 130 and done.stdout == "" and "Traceback" not in done.stderr, done.stderr
    assert ended(pids)


def test_what_cannot_be_measured_is_one_line(tiny: Path, tmp_path: Path, pilotfish: Run) -> None:
    other = tmp_path / "other"
    other.write_text(f"#!{sys.executable}\n")  # a program that does not look at `-c`
    other.chmod(0o755)
    for line, words in (
        ([tiny, "--peers", "toaster"], "there is no peer 'toaster'; there are pilotfish, openvino-genai"),
        ([tiny, "--sets", "toaster"], "there is no prompt set 'toaster'"),
        ([tiny, "--weights", "toaster=x"], "--weights is 'toaster=x', but must be NAME=PATH"),
        ([tiny, "--weights", "ctranslate2=nowhere"], "there is no file or folder nowhere"),
        ([tiny, "--weights", f"openvino-genai={tmp_path}"], "is not what openvino-genai reads"),
        ([tiny, "--python", "transformers=nowhere"], "there is no program nowhere"),
        ([tiny, "--python", f"transformers={other}"], f"{other} is no Python"),
        ([tiny, "--tokens", 1], "--tokens is 1, but a speed takes 2 or more"),
        ([tiny, "--limit", "nan"], "--limit is nan"),
        ([tiny, "--limit", "1e20"], "--limit is 1e+20"),
        ([tiny, "--tokens", 10**6], "--tokens is 1000000"),
        ([tiny, "--draft", "nowhere.gguf"], "no file or folder nowhere.gguf"),
        (["nowhere.gguf"], "no file or folder nowhere.gguf"),
    ):
        refused(pilotfish("bench", "peers", *line), words)


def test_where_nothing_runs_the_first_row_says_why(tiny: Path, pilotfish: Run) -> None:
    outcome = pilotfish("bench", "peers", tiny, "--peers", "pilotfish", *FEW, "--limit", "1e-6")
    refused(outcome, "no row ran", "pilotfish plain failed: no answer within 1e-06 s")


@pytest.mark.parametrize("engine", ["onnx", "openvino", "llamacpp"])
def test_we_read_a_prompt_from_its_first_token_on_every_time(
    engine: str, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(engine)
    model = tiny_file(tmp_path, 512)
    setup = Setup("default", str(model), None, 1, 128, (), engine=engine)
    ours = Pilotfish.open(setup)
    answers, reused = [], []
    generate = Model.generate

    def watched(*given: Any, **more: Any) -> Any:
        result = generate(*given, **more)
        reused.append(result.stats.n_reused)
        return result

    monkeypatch.setattr(Model, "generate", watched)
    for _ in range(2):
        answers.append(ours.answer(Question("the cat and the dog", (), 12)))
    ours._model.close()
    assert reused == [0, 0] and answers[0].tokens == answers[1].tokens


PACKAGES = {
    "llama-cpp-python": ("llama_cpp",),
    "transformers": ("transformers", "torch", "accelerate"),  # which it reads .gguf files with
    "openvino-genai": ("openvino_genai",),
}


@pytest.mark.parametrize("family", PACKAGES)
def test_a_runtime_that_is_here_says_the_same_with_drafts_and_without(
    family: str, tmp_path: Path, pilotfish: Run
) -> None:
    pytest.importorskip("onnxruntime")
    if not all(map(find_spec, PACKAGES[family])):
        pytest.skip(f"{family} is not installed")
    model = tiny_file(tmp_path, 512)
    outcome = pilotfish("bench", "peers", model, "--peers", family, *FEW, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    states = {name: row["state"] for name, row in report["peers"].items()}
    assert set(states.values()) == {"ran"}, states
    rows = report["sets"][OVERALL]["rows"]
    assert rows[f"{family} plain"]["tokens"] > 0 and rows[f"{family} lookup"]["tokens_per_step"] >= 1.0
