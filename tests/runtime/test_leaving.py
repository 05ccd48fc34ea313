"""Leaving the interpreter while a thread that nobody waits for is in the middle of an answer."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from pilotfish.testing.tiny_models import tiny_gguf

_NEEDS = {"onnx": "onnxruntime", "openvino": "openvino", "llamacpp": "llama_cpp", "reference": "numpy"}
_HEAD = """
import atexit, sys, threading, time
ended = threading.Event()
if "ended.set()" in sys.argv[3]:
    atexit.register(lambda: ended.wait(60))  # runs after what is registered later: the model is closed by then
if "sibling" in sys.argv[3]:
    atexit.register(lambda: answer())
import pilotfish
model = pilotfish.load(sys.argv[1], engine=sys.argv[2], threads=1)
inside = threading.Event()

def processor(logits, context):
    logits[list(model.tokenizer.eos_ids)] = -float("inf")
    if inside.is_set():
        time.sleep(0.01)  # so that an answer is not over before the process is
    inside.set()
    return logits

def answer(n=1000):
    return model.generate("hello the", max_new_tokens=n, sampling=pilotfish.Sampling(processors=(processor,)))

"""
_ENDS = """
def work():
    reason = answer().finish_reason
    print(reason, flush=True)
    ended.set()
    answer()
    print("asked again", flush=True)

threading.Thread(target=work, daemon=True).start()
inside.wait()
sys.exit(3)
"""
_FAILS = """
threading.Thread(target=lambda: [answer(50) for _ in range(10**6)], daemon=True).start()
inside.wait()
raise ValueError("the program's own fault")
"""
_LOADS = """
from pathlib import Path
from pilotfish import backends
from pilotfish.loading.opening import Place, open_weights
from pilotfish.runtime.files.open_model import open_model
from pilotfish.runtime.profiling.calibrate import calibrate
place = Place(backends.get(sys.argv[2]), None, 1)
weights, _ = open_weights(open_model(Path(sys.argv[1])), place, lambda what, share: None)

def loads():
    while True:
        inside.set()
        pilotfish.load(sys.argv[1], engine=sys.argv[2], threads=1).close()

def measures():
    while True:
        session = weights.session(256)
        calibrate(session)
        session.close()

for work in (loads, measures):
    threading.Thread(target=work, daemon=True).start()
inside.wait()
threading.Event().wait(0.2)
sys.exit(6)
"""
_HELD = """
stream = model.stream("hello the", max_new_tokens=100)
next(stream)
threading.Thread(target=answer, daemon=True).start()
atexit.register(lambda: print("the program's own end", flush=True))
sys.exit(4)
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", seed=10)


def run(code: str, path: Path, engine: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _HEAD + code, str(path), engine, code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.parametrize("engine", list(_NEEDS))
@pytest.mark.usefixtures("module_cache")
def test_the_process_ends_with_its_own_code_and_the_threads_call_is_cancelled(path: Path, engine: str) -> None:
    if find_spec(_NEEDS[engine]) is None:
        pytest.skip(f"{engine} is not installed")
    done = run(_ENDS, path, engine)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (3, "cancelled", "")
    done = run(_FAILS, path, engine)
    assert done.returncode == 1 and done.stderr.rstrip().endswith("ValueError: the program's own fault")
    assert "closed" not in done.stderr  # what the thread asks for afterwards waits for the end, without a word


@pytest.mark.parametrize("engine", ["onnx", "openvino", "llamacpp"])
@pytest.mark.usefixtures("module_cache")
def test_a_thread_that_loads_or_measures_does_not_break_the_end(path: Path, engine: str) -> None:
    if find_spec(_NEEDS[engine]) is None:
        pytest.skip(f"{engine} is not installed")
    for _ in range(3):
        done = run(_LOADS, path, engine)
        assert (done.returncode, done.stderr) == (6, "")


@pytest.mark.usefixtures("module_cache")
def test_a_stream_that_is_open_at_the_end_and_those_who_wait_for_it_do_not_keep_the_process(path: Path) -> None:
    done = run(_HELD, path, "reference")
    assert (done.returncode, done.stdout, done.stderr) == (4, "the program's own end\n", "")


@pytest.mark.usefixtures("module_cache")
def test_the_programs_own_exit_functions_are_told_that_the_model_is_closed(path: Path) -> None:
    code = "model.sibling(policy=None)\natexit.register(lambda: print(answer(3).finish_reason))\nsys.exit(5)"
    done = run(code, path, "reference")
    assert (done.returncode, done.stdout) == (5, "length\n")  # what was registered after the import comes first
    assert "OptionError: this model is closed" in done.stderr
