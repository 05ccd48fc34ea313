"""The llama-server binary, where one is on the path: plain, and drafts by n-grams."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from .contract import Answer, Arrivals, NotHereError, Question, Setup, is_gguf

_WAIT_S = 0.2
_HERE = "127.0.0.1"


class LlamaServer:
    """A server of this process alone, asked over a local port. It ends with this process' group."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, setup: Setup, version: str) -> None:
        self._process, self._port, self._setup, self.version = process, port, setup, version
        self.pid = process.pid  # whose memory counts

    @classmethod
    def reads(cls, path: Path, encoder_decoder: bool) -> bool:
        """A GGUF file of a decoder."""
        return not encoder_decoder and is_gguf(path)

    @classmethod
    def open(cls, setup: Setup) -> LlamaServer:
        binary = shutil.which("llama-server")
        if binary is None:
            raise NotHereError("there is no llama-server on the path")
        told = subprocess.run([binary, "--version"], capture_output=True, check=False)
        said = (told.stdout + told.stderr).decode("utf-8", "replace")
        version = next((line.split(":", 1)[1].strip() for line in said.splitlines() if line.startswith("version:")), "")
        with socket.socket() as free:
            free.bind((_HERE, 0))
            port = free.getsockname()[1]
        threads = str(setup.threads)
        line = [binary, "-m", setup.path, "--host", _HERE, "--port", str(port), "-c", str(setup.room)]
        line += ["-t", threads, "-tb", threads, "-np", "1", "-fa", "on"]
        if setup.variant == "ngram":
            line += ["--spec-type", "ngram-simple"]
        process = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno())
        server = cls(process, port, setup, version)
        server._wait()
        return server

    def _wait(self) -> None:
        while True:
            if self._process.poll() is not None:
                raise RuntimeError(f"llama-server ended with code {self._process.returncode}")
            try:
                with urllib.request.urlopen(f"http://{_HERE}:{self._port}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):  # it is loading
                time.sleep(_WAIT_S)

    def answer(self, question: Question) -> Answer:
        """Tokens come in the groups in which it sends them; steps are told by its own count of accepted drafts."""
        setup = self._setup
        asked = {
            "prompt": list(question.ids),
            "n_predict": question.n_tokens,
            "temperature": setup.temperature,
            "seed": setup.seed,
            "top_k": 0,
            "top_p": 1.0,
            "min_p": 0.0,
            "cache_prompt": False,
            "return_tokens": True,
            "stream": True,
        }
        request = urllib.request.Request(
            f"http://{_HERE}:{self._port}/completion", json.dumps(asked).encode(), {"Content-Type": "application/json"}
        )
        arrivals = Arrivals(setup.ends, question.n_tokens)
        accepted: int | None = None
        with urllib.request.urlopen(request) as lines:
            for line in lines:
                if not line.startswith(b"data: "):
                    continue
                told: dict[str, Any] = json.loads(line[6:])
                arrivals.add(told.get("tokens", []))
                timings = told.get("timings", {})
                if setup.variant == "ngram":
                    accepted = timings.get("draft_n_accepted", accepted)
        n = len(arrivals.tokens)
        return arrivals.answer(n if setup.variant == "plain" else None if accepted is None else n - accepted)


ENGINE = LlamaServer
