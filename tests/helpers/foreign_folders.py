"""Folders as optimum-intel, optimum and onnxruntime-genai lay them out, of a tiny random model, made without them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pilotfish.runtime.files.decoder_shape import decoder_shape
from pilotfish.runtime.files.gguf_file import GgufFile, read_gguf
from pilotfish.runtime.text.tokenizer_gguf import tokenizer_from_gguf

Array = npt.NDArray[Any]
VOCAB_SIZE = 272  # of tiny_gguf
END = "<|im_end|>"


def ir_folder(source: Path, folder: Path, *, half: bool = False) -> Path:
    """A llama-like GGUF file with f32 weights as optimum-intel writes a decoder. half: its constants are f16."""
    import openvino
    from stateful_ir import stateful_ir

    folder.mkdir(parents=True)
    openvino.save_model(stateful_ir(source), folder / "openvino_model.xml", compress_to_fp16=half)
    write_settings(read_gguf(source), folder)
    return folder


def optimum_folder(source: Path, folder: Path, *, one_scale: bool = False, half: bool = False) -> Path:
    """The same as optimum writes it: attention in plain operators, its past concatenated.

    one_scale: the activations of all rows are rounded by one scale, as dynamic quantization does it. half: the past
    and the logits are f16.
    """
    folder.mkdir(parents=True)
    _Decoder(read_gguf(source), one_scale=one_scale, half=half).save(folder / "model.onnx")
    write_settings(read_gguf(source), folder)
    return folder


def genai_folder(source: Path, folder: Path, *, positions: bool = False, **config: Any) -> Path:
    """The same as onnxruntime-genai's builder writes it: attention that appends to its past in place.

    positions: keys are rotated outside of attention, by positions that are an input. config: further entries of the
    decoder in genai_config.json.
    """
    folder.mkdir(parents=True)
    file = read_gguf(source)
    decoder = _Decoder(file, in_place=True, positions=positions)
    decoder.save(folder / "model.onnx")
    write_tokenizer(file, folder)
    shape, names = decoder_shape(file), ("input_ids", "attention_mask", *(("position_ids",) if positions else ()))
    past = {f"past_{kind}_names": f"past_key_values.%d.{kind}" for kind in ("key", "value")}
    present = {f"present_{kind}_names": f"present.%d.{kind}" for kind in ("key", "value")}
    model = {
        "type": "llama",
        "context_length": shape.context_length,
        "vocab_size": shape.vocab_size,
        "eos_token_id": [_tokenizer(file).id_of(END)],
        "decoder": {
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
            "filename": "model.onnx",
            "head_size": shape.head_dim,
            "hidden_size": shape.hidden_size,
            "num_attention_heads": shape.n_heads,
            "num_key_value_heads": shape.kv_heads,
            "num_hidden_layers": shape.n_layers,
            "inputs": {name: name for name in names} | past,
            "outputs": {"logits": "logits"} | present,
            **config,
        },
    }
    search = {"do_sample": False, "repetition_penalty": 1.0, "past_present_share_buffer": True}
    (folder / "genai_config.json").write_text(json.dumps({"model": model, "search": search}))
    return folder


def write_settings(file: GgufFile, folder: Path, **changes: object) -> None:
    """config.json and the tokenizer."""
    shape = decoder_shape(file)
    settings = {
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.context_length,
        "eos_token_id": _tokenizer(file).id_of(END),
    }
    (folder / "config.json").write_text(json.dumps({**settings, **changes}))
    write_tokenizer(file, folder)


def write_tokenizer(file: GgufFile, folder: Path) -> None:
    _tokenizer(file).save(folder / "tokenizer.json")
    said = {"eos_token": END, "chat_template": file.metadata["tokenizer.chat_template"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def _tokenizer(file: GgufFile) -> Any:
    return tokenizer_from_gguf(file.metadata)


class _Decoder:
    """An ONNX graph, written node by node.

    in_place: GroupQueryAttention instead of plain operators, which rotates keys itself unless positions are an input.
    """

    def __init__(
        self,
        file: GgufFile,
        *,
        in_place: bool = False,
        positions: bool = True,
        one_scale: bool = False,
        half: bool = False,
    ) -> None:
        self.file, self.shape = file, decoder_shape(file)
        self.in_place, self.positions, self.one_scale, self.half = in_place, positions, one_scale, half
        self.nodes: list[Any] = []
        self.constants: dict[str, Array] = {}
        self.outputs: list[tuple[str, list[Any]]] = []

    def save(self, path: Path) -> None:
        import onnx
        from onnx import TensorProto, helper

        s, stored = self.shape, TensorProto.FLOAT16 if self.half else TensorProto.FLOAT
        inputs: list[tuple[str, int, list[Any]]] = [
            ("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"]),
            ("attention_mask", TensorProto.INT64, ["batch_size", "total_sequence_length"]),
        ]
        if self.positions:
            inputs.append(("position_ids", TensorProto.INT64, ["batch_size", "sequence_length"]))
        past = ["batch_size", s.kv_heads, "past_sequence_length", s.head_dim]
        for i in range(s.n_layers):
            inputs += [(f"past_key_values.{i}.{kind}", stored, past) for kind in ("key", "value")]
        self._write()
        graph = helper.make_graph(
            self.nodes,
            "tiny",
            [helper.make_tensor_value_info(name, kind, dims) for name, kind, dims in inputs],
            [helper.make_tensor_value_info(name, stored, dims) for name, dims in self.outputs],
            [onnx.numpy_helper.from_array(x, name) for name, x in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)

    def _write(self) -> None:
        s = self.shape
        table = self._weight("token_embd.weight")
        x = self._op("Gather", self._constant(table), "input_ids")
        shared = self._lengths() if self.in_place else self._mask()
        turn = self._waves() if self.positions else ()
        for i in range(s.n_layers):
            h = self._norm(x, f"blk.{i}.attn_norm.weight")
            x = self._op("Add", x, self._attention(i, h, shared, turn))
            h = self._norm(x, f"blk.{i}.ffn_norm.weight")
            gate = self._product(h, self._weight(f"blk.{i}.ffn_gate.weight"))
            gate = self._op("Mul", gate, self._op("Sigmoid", gate))
            up = self._product(h, self._weight(f"blk.{i}.ffn_up.weight"))
            x = self._op("Add", x, self._product(self._op("Mul", gate, up), self._weight(f"blk.{i}.ffn_down.weight")))
        self._given("logits", "MatMul", self._norm(x, "output_norm.weight"), self._constant(table.T.copy()))
        self.outputs.insert(0, ("logits", ["batch_size", "sequence_length", s.vocab_size]))

    def _lengths(self) -> tuple[str, ...]:
        """What GroupQueryAttention is told: entries of each sequence but one, and how many there are at most."""
        one = self._constant(np.array([1], dtype=np.int64))
        total = self._op("ReduceSum", "attention_mask", one, keepdims=0)
        seen = self._op("Cast", self._op("Sub", total, one), to=6)
        most = self._op("Gather", self._op("Shape", "attention_mask"), self._constant(np.array(1, dtype=np.int64)))
        return seen, self._op("Cast", most, to=6)

    def _mask(self) -> tuple[str, ...]:
        """What scores of plain attention are increased by: (1, 1, n, total)."""
        zero, one = (self._constant(np.array(i, dtype=np.int64)) for i in (0, 1))
        total = self._op("Gather", self._op("Shape", "attention_mask"), one)
        n = self._op("Gather", self._op("Shape", "input_ids"), one)
        row = self._op("Range", self._op("Sub", total, n), total, one)
        column = self._op("Range", zero, total, one)
        hidden = self._op("Greater", column, self._op("Unsqueeze", row, self._constant(np.array([1]))))
        lowest = self._constant(np.float32(np.finfo(np.float32).min))
        return (self._op("Where", hidden, lowest, self._constant(np.float32(0))),)

    def _waves(self) -> tuple[str, ...]:
        """Cosine and sine of every position's angles: (1, 1, n, head_dim)."""
        at = self._op("Cast", self._op("Unsqueeze", "position_ids", self._constant(np.array([1, 3]))), to=1)
        rotation = self.shape.layers[0].rotation
        assert rotation is not None
        angles = self._op("Mul", at, self._constant(np.tile(rotation.inverse_frequencies, 2).astype(np.float32)))
        return self._op("Cos", angles), self._op("Sin", angles)

    def _attention(self, i: int, h: str, shared: tuple[str, ...], turn: tuple[str, ...]) -> str:
        s = self.shape
        q, k = (self._heads(i, h, kind, n) for kind, n in (("q", s.n_heads), ("k", s.kv_heads)))
        v = self._heads(i, h, "v", s.kv_heads)
        if turn:
            q, k = self._rotated(q, turn), self._rotated(k, turn)
        mixed = self._group_query(i, q, k, v, shared) if self.in_place else self._plain(i, q, k, v, shared[0])
        return self._product(mixed, self._weight(f"blk.{i}.attn_output.weight"))

    def _plain(self, i: int, q: str, k: str, v: str, mask: str) -> str:
        s = self.shape
        keys, values = (
            self._given(f"present.{i}.{kind}", "Concat", self._taken(f"past_key_values.{i}.{kind}"), new, axis=2)
            for kind, new in (("key", k), ("value", v))
        )
        self._presents(i)
        group = s.n_heads // s.kv_heads
        wide = []
        for x in (keys, values):
            dims = self._constant(np.array([1, 1, group, 1, 1]))
            x = self._op("Expand", self._op("Unsqueeze", x, self._constant(np.array([2]))), dims)
            wide.append(self._op("Reshape", x, self._constant(np.array([0, s.n_heads, -1, s.head_dim]))))
        scores = self._op("MatMul", q, self._op("Transpose", wide[0], perm=[0, 1, 3, 2]))
        scores = self._op("Mul", scores, self._constant(np.float32(s.head_dim**-0.5)))
        mixed = self._op("MatMul", self._op("Softmax", self._op("Add", scores, mask), axis=-1), wide[1])
        return self._flat(mixed, s.n_heads)

    def _group_query(self, i: int, q: str, k: str, v: str, lengths: tuple[str, ...]) -> str:
        s, rotation = self.shape, self.shape.layers[0].rotation
        assert rotation is not None
        inputs = [self._flat(q, s.n_heads), self._flat(k, s.kv_heads), self._flat(v, s.kv_heads)]
        inputs += [f"past_key_values.{i}.key", f"past_key_values.{i}.value", *lengths]
        if not self.positions:
            angles = np.outer(np.arange(s.context_length), rotation.inverse_frequencies)
            inputs += [self._constant(wave(angles).astype(np.float32)) for wave in (np.cos, np.sin)]
        self._presents(i)
        outputs = [f"mixed_{i}", f"present.{i}.key", f"present.{i}.value"]
        how = {"num_heads": s.n_heads, "kv_num_heads": s.kv_heads, "do_rotary": int(not self.positions)}
        self._node("GroupQueryAttention", inputs, outputs, domain="com.microsoft", **how)
        return outputs[0]

    def _presents(self, i: int) -> None:
        dims = ["batch_size", self.shape.kv_heads, "total_sequence_length", self.shape.head_dim]
        self.outputs += [(f"present.{i}.{kind}", dims) for kind in ("key", "value")]

    def _heads(self, i: int, h: str, kind: str, n: int) -> str:
        matrix = self._weight(f"blk.{i}.attn_{kind}.weight")
        if kind != "v" and self.shape.family.pairs:
            matrix = matrix[self.shape.half_order(n)]
        apart = self._op("Reshape", self._product(h, matrix), self._constant(np.array([0, 0, n, self.shape.head_dim])))
        return self._op("Transpose", apart, perm=[0, 2, 1, 3])

    def _flat(self, x: str, n: int) -> str:
        dims = self._constant(np.array([0, 0, n * self.shape.head_dim]))
        return self._op("Reshape", self._op("Transpose", x, perm=[0, 2, 1, 3]), dims)

    def _rotated(self, x: str, waves: tuple[str, ...]) -> str:
        half = self.shape.head_dim // 2
        low, high = f"low_{len(self.nodes)}", f"high_{len(self.nodes)}"
        self._node("Split", [x, self._constant(np.array([half, half]))], [low, high], axis=-1)
        turned = self._op("Concat", self._op("Neg", high), low, axis=-1)
        return self._op("Add", self._op("Mul", x, waves[0]), self._op("Mul", turned, waves[1]))

    def _norm(self, x: str, name: str) -> str:
        mean = self._op("ReduceMean", self._op("Mul", x, x), self._constant(np.array([-1])))
        root = self._op("Sqrt", self._op("Add", mean, self._constant(np.float32(self.shape.norm_epsilon))))
        return self._op("Mul", self._op("Div", x, root), self._constant(self._weight(name)))

    def _product(self, x: str, matrix: Array) -> str:
        if not self.one_scale:
            return self._op("MatMul", x, self._constant(matrix.T.copy()))
        scale = np.float32(np.abs(matrix).max() / 127)
        codes = np.clip(np.rint(matrix.T / scale), -127, 127).astype(np.int8)
        parts = [f"{name}_{len(self.nodes)}" for name in ("codes", "scale", "zero")]
        self._node("DynamicQuantizeLinear", [x], parts)
        whole = self._op("MatMulInteger", parts[0], self._constant(codes), parts[2])
        both = self._op("Mul", parts[1], self._constant(scale))
        return self._op("Mul", self._op("Cast", whole, to=1), both)

    def _taken(self, name: str) -> str:
        """An input, as f32."""
        return self._op("Cast", name, to=1) if self.half else name

    def _given(self, name: str, kind: str, *inputs: str, **attributes: Any) -> str:
        """What becomes an output, as f32."""
        if not self.half:
            return self._op(kind, *inputs, out=name, **attributes)
        made = self._op(kind, *inputs, **attributes)
        self._op("Cast", made, to=10, out=name)
        return made

    def _weight(self, name: str) -> Array:
        return self.file.tensors[name].values()

    def _constant(self, value: Any) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def _op(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        name = out or f"{kind}_{len(self.nodes)}"
        self._node(kind, list(inputs), [name], **attributes)
        return name

    def _node(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, outputs, **attributes))
