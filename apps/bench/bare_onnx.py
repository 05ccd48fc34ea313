"""ONNX Runtime's own plain decoding of the same graph, for the benchmark only: a bare loop with bound memory."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from ...exporters.onnx.import_model import import_model
from ...runtime.files.model_file import ModelFile
from ...runtime.files.open_model import decoder_of


class OnnxRuntime:
    """One session, one fixed cache, one row a step."""

    def __init__(self, session: Any, capacity: int) -> None:
        import onnxruntime

        self._value = onnxruntime.OrtValue.ortvalue_from_numpy
        self._session, self._capacity = session, capacity
        pasts = [x for x in session.get_inputs() if x.name.startswith("past_")]
        shape = (1, pasts[0].shape[1], capacity, pasts[0].shape[3])
        self._cache = {x.name: self._value(np.zeros(shape, dtype=np.float32)) for x in pasts}
        self._n_vocab = next(x.shape[1] for x in session.get_outputs() if x.name == "logits")
        self._zeros = np.zeros(capacity * 256, dtype=np.float32)

    @classmethod
    def open(cls, model: ModelFile, threads: int, max_context: int) -> OnnxRuntime | None:
        """The peer, or None where ONNX Runtime is not installed or the model is no .gguf file."""
        try:
            import onnxruntime
        except Exception:  # it is missing, or broken in whatever way
            return None
        if model.formats != ("gguf",):
            return None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        graph = import_model(decoder_of(model)).path / "model.onnx"
        return cls(onnxruntime.InferenceSession(str(graph), options, ["CPUExecutionProvider"]), max_context)

    def decode(self, prompt: list[int], n_tokens: int) -> tuple[tuple[int, ...], float]:
        """Greedy tokens and the seconds that they took, the prompt not counted."""
        done = 0
        while done < len(prompt) - 1:
            part = prompt[done : min(done + 256, len(prompt) - 1)]
            binding = self._bind(np.array([part]), np.arange(done, done + len(part))[None])
            self._step(binding, done, len(part))
            done += len(part)
        ids, positions = np.array([[prompt[-1]]]), np.array([[done]])
        binding = self._bind(ids, positions)
        tokens: list[int] = []
        began = time.perf_counter()
        for position in range(done, done + n_tokens):
            positions[0, 0] = position
            self._step(binding, position, 1)
            ids[0, 0] = int(self._logits.argmax())
            tokens.append(int(ids[0, 0]))
        return tuple(tokens), time.perf_counter() - began

    def _bind(self, ids: Any, positions: Any) -> Any:
        binding = self._session.io_binding()
        self._logits = np.zeros((1, self._n_vocab), dtype=np.float32)
        self._held = (ids, positions, np.array([ids.shape[1] - 1]))
        for name, array in zip(("input_ids", "position_ids", "logit_rows"), self._held, strict=True):
            binding.bind_ortvalue_input(name, self._value(array))
        binding.bind_ortvalue_output("logits", self._value(self._logits))
        for name, value in self._cache.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past", "present"), value)
        return binding

    def _step(self, binding: Any, past: int, width: int) -> None:
        total = past + width
        bias = self._zeros[: width * total].reshape(1, 1, width, total)
        binding.bind_ortvalue_input("bias", self._value(bias))
        self._session.run_with_iobinding(binding)

    def close(self) -> None:
        """Free the session."""
        self._cache.clear()
        self._session = None
