"""What llama.cpp says about a vocabulary: metadata goes into a GGUF file without weights, which a process opens.

Run as a process: reads one JSON object {"path", "texts"} per line, and answers each with one; what `Said` holds.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilotfish.exporters.gguf.llama_tokenize import process_environment


@dataclass(frozen=True, slots=True)
class Said:
    """ids: of each text, with special tokens as text; special_ids: with them as tokens; pieces: bytes of each token,
    special ones left out; ends: the tokens that end an answer."""

    ids: list[list[int]]
    special_ids: list[list[int]]
    pieces: list[bytes]
    ends: frozenset[int]
    add_bos: bool
    add_eos: bool
    bos_id: int
    eos_id: int


def ask_llama_cpp(folder: Path, vocabularies: Sequence[Mapping[str, object]], texts: Sequence[str]) -> list[Said]:
    """What it says about each vocabulary, opened by one process."""
    questions = []
    for i, metadata in enumerate(vocabularies):
        path = write_vocabulary(folder / f"vocabulary{i}.gguf", metadata)
        questions.append(json.dumps({"path": str(path), "texts": list(texts)}))
    done = subprocess.run(
        [sys.executable, __file__],
        input="\n".join(questions).encode(),
        capture_output=True,
        check=False,
        env=process_environment(),
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return [_said(json.loads(line)) for line in done.stdout.splitlines()]


def write_vocabulary(path: Path, metadata: Mapping[str, object]) -> Path:
    """A GGUF file with this metadata and no tensors."""
    gguf = importlib.import_module("gguf")
    writer = gguf.GGUFWriter(path, metadata.get("general.architecture", "llama"))
    for key, value in metadata.items():
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, list: writer.add_array}
        if value is not None and key != "general.architecture":
            add[type(value)](key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _said(answer: dict[str, Any]) -> Said:
    pieces = [bytes.fromhex(piece) for piece in answer.pop("pieces")]
    return Said(pieces=pieces, ends=frozenset(answer.pop("ends")), **answer)


def _answer(lib: Any, path: str, texts: list[str]) -> dict[str, object]:
    params = lib.llama_model_default_params()
    params.vocab_only = True
    model = lib.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise SystemExit(f"llama.cpp cannot read {path}")
    vocabulary = lib.llama_model_get_vocab(model)

    def ids(text: str, special: bool) -> list[int]:
        data = text.encode()
        found = (lib.llama_token * (len(data) + 8))()
        n = lib.llama_tokenize(vocabulary, data, len(data), found, len(found), False, special)
        return list(found[:n])

    def piece(token: int) -> str:
        buffer = lib.ctypes.create_string_buffer(512)
        n = lib.llama_token_to_piece(vocabulary, token, buffer, 512, 0, False)
        return bytes(buffer.raw[:n]).hex()

    tokens = range(lib.llama_vocab_n_tokens(vocabulary))
    answer = {
        "ids": [ids(text, False) for text in texts],
        "special_ids": [ids(text, True) for text in texts],
        "pieces": [piece(token) for token in tokens],
        "ends": [token for token in tokens if lib.llama_vocab_is_eog(vocabulary, token)],
        "add_bos": lib.llama_vocab_get_add_bos(vocabulary),
        "add_eos": lib.llama_vocab_get_add_eos(vocabulary),
        "bos_id": lib.llama_vocab_bos(vocabulary),
        "eos_id": lib.llama_vocab_eos(vocabulary),
    }
    lib.llama_model_free(model)
    return answer


def _serve() -> None:
    lib: Any = importlib.import_module("llama_cpp.llama_cpp")

    @lib.llama_log_callback  # type: ignore[untyped-decorator]
    def silent(level: int, text: bytes | None, _: object) -> None:
        pass

    lib.llama_log_set(silent, None)
    lib.llama_backend_init()
    for line in sys.stdin:
        question = json.loads(line)
        print(json.dumps(_answer(lib, question["path"], question["texts"])), flush=True)


if __name__ == "__main__":
    _serve()
