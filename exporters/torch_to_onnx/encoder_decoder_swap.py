"""A Hugging Face encoder-decoder with traced modules in the place of its own, for as long as it is being exported."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...runtime.errors import UnsupportedModelError
from ..quantize.weight_form import WeightForm
from .decoder_swap import Swapped, close, put, stand_in
from .encoder_decoder_modules import (
    Attention,
    EncoderDecoderTrace,
    Gather,
    RelativeBias,
    Role,
    TracedPositions,
    TracedSourcePositions,
    attend_encoder,
    attend_past,
    attend_source,
    gather,
)

_NO_MASKS = "pilotfish_traced"  # a kind of attention that no model knows, so that none makes masks for it
_PROJECTIONS = (("q", "k", "v", "o"), ("q_proj", "k_proj", "v_proj", "out_proj"))


@dataclass(frozen=True, slots=True)
class Operators:
    """What a model is traced into. attend: of every role, before its last projection; stand_in: of a module, None where
    it stays."""

    attend: Mapping[Role, Callable[[EncoderDecoderTrace, Attention, Tensor], Tensor]]
    gather: Gather
    stand_in: Callable[[SwappedEncoderDecoder, str, nn.Module], nn.Module | None]


def onnx_operators(form: WeightForm, accuracy_level: int) -> Operators:
    """Those of ONNX Runtime, with weights in this form."""
    return Operators(
        {"encoder": attend_encoder, "decoder": attend_past, "cross": attend_source},
        gather,
        lambda state, name, module: stand_in(state, name, module, form, accuracy_level),
    )


@dataclass(slots=True, kw_only=True)
class SwappedEncoderDecoder(Swapped):
    """The model while it is traced. encoder_bias, decoder_bias: of models with relative positions, one for all layers
    or one for each. cross: by layer."""

    operators: Operators
    cross: list[Attention] = field(default_factory=list)
    encoder_bias: tuple[RelativeBias, ...] = ()
    decoder_bias: tuple[RelativeBias, ...] = ()
    encoder_decoder: EncoderDecoderTrace | None = None

    def step(self) -> EncoderDecoderTrace:
        """The step that is being traced."""
        assert self.encoder_decoder is not None
        return self.encoder_decoder


@contextlib.contextmanager
def swapped_encoder_decoder(model: PreTrainedModel, operators: Operators) -> Iterator[SwappedEncoderDecoder]:
    """The model with every module exchanged that these operators stand for; afterwards it is as it was.

    Each stand-in is compared on random input with what it stands for: a family that computes otherwise is an
    UnsupportedModelError.
    """
    state = SwappedEncoderDecoder(model=model, operators=operators)
    attentions = {name: Attention.of(name, *found) for name, found in _attentions(model)}
    for attention in attentions.values():
        _check_attention(attention)
    state.encoder_bias = _relative_bias(attentions, "encoder")
    state.decoder_bias = _relative_bias(attentions, "decoder")
    new = dict(_stand_ins(state))
    before = {name: model.get_submodule(name) for name in new}
    with contextlib.ExitStack() as undo:
        for name, module in new.items():
            undo.callback(put, model, name, before[name])
            put(model, name, module)
        for attention in attentions.values():
            attention.module.forward = _forward(state, attention)
            undo.callback(attention.module.__dict__.pop, "forward")
        state.cross = [a for a in attentions.values() if a.role == "cross"]
        _hook(state, undo)
        for config in {id(c): c for part in model.modules() if (c := getattr(part, "config", None))}.values():
            undo.callback(setattr, config, "_attn_implementation", config._attn_implementation)
            config._attn_implementation = _NO_MASKS
        yield state


def _attentions(model: Any) -> Iterator[tuple[str, tuple[Any, str, tuple[str, ...]]]]:
    """Name, module, role and names of the projections of every attention, in the order of layers."""
    for name, module in model.named_modules():
        for names in _PROJECTIONS:
            if all(isinstance(getattr(module, p, None), nn.Linear) for p in names):
                crossed = name.endswith(("EncDecAttention", "encoder_attn"))
                side = "decoder" if ".decoder." in f".{name}" else "encoder"
                yield name, (module, "cross" if crossed else side, names)


def _stand_ins(state: SwappedEncoderDecoder) -> Iterator[tuple[str, nn.Module]]:
    model = state.model
    for name, module in model.named_modules(remove_duplicate=False):
        leaf = name.rpartition(".")[2]
        if leaf == "embed_positions":
            if ".decoder." in f".{name}":
                yield name, TracedPositions(_positions(name, module), state.step, state.operators.gather)
            elif not hasattr(module, "weight"):  # it counts tokens in a way that is not traced
                yield name, TracedSourcePositions(_positions(name, module), state.operators.gather)
        elif leaf == "relative_attention_bias" or type(module).__name__.endswith("RotaryEmbedding"):
            continue
        elif type(module).__name__ == "NewGELUActivation":
            yield name, nn.GELU(approximate="tanh")
        elif (new := state.operators.stand_in(state, name, module)) is not None:
            yield name, new


@torch.no_grad()
def _positions(name: str, module: Any) -> Tensor:
    """What a module gives for every position, (positions, width): learned, or computed once (M2M100)."""
    if hasattr(module, "weight"):
        table = module.weight.detach().float()[int(getattr(module, "offset", 0)) :]
        places = torch.tensor([2, 0, 5])
        found = module(torch.zeros(1, 3), 0, position_ids=places)
    else:
        table = module.weights.detach().float()[int(module.padding_idx) + 1 :][: int(module.num_positions)]
        places = torch.arange(3)
        found = module(inputs_embeds=torch.zeros(1, 3, 1))
    if not close(table[places], found.reshape(3, -1)):
        raise UnsupportedModelError(f"{name} is a {type(module).__name__} that is not a table of positions: not yet.")
    return table.contiguous()


@torch.no_grad()
def _check_attention(attention: Attention) -> None:
    """Raise UnsupportedModelError where this is not softmax(q k^T * scale) v with four projections."""
    draw, module = torch.Generator().manual_seed(0), attention.module
    width = attention.projection(0).in_features
    x, y = (torch.randn(1, n, width, generator=draw) for n in (3, 5))
    if "encoder_hidden_states" in signature(module.forward).parameters:  # UMT5
        mask = -module.compute_bias(3, 5) if module.has_relative_attention_bias else None
        theirs = module(x, encoder_hidden_states=y, attention_mask=mask)[0]
    else:
        relative = hasattr(module, "has_relative_attention_bias")
        zeros = {"position_bias": torch.zeros(1, attention.n_heads, 3, 5)} if relative else {}
        theirs = module(x, key_value_states=y, **zeros)[0]
    q, k, v = (attention.heads(i, source) for i, source in enumerate((x, y, y)))
    mixed = torch.softmax(q @ k.transpose(2, 3) * attention.scaling, dim=-1) @ v
    if not close(attention.projection(3)(mixed.transpose(1, 2).reshape(1, 3, -1)), theirs):
        raise UnsupportedModelError(f"{attention.name} is a {type(module).__name__} of another kind: not yet.")


def _relative_bias(attentions: dict[str, Attention], role: str) -> tuple[RelativeBias, ...]:
    own = [a for a in attentions.values() if a.role == role]
    found = [a for a in own if getattr(a.module, "has_relative_attention_bias", False)]
    if len(found) not in (0, 1, len(own)):
        raise UnsupportedModelError("some layers have a relative bias of their own, and others have none: not yet.")
    return tuple(RelativeBias.of(one.module) for one in found)


def _forward(state: SwappedEncoderDecoder, attention: Attention) -> Callable[..., tuple[Tensor, None]]:
    """What an attention module does while it is traced."""
    step = state.operators.attend[attention.role]

    def forward(hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
        return attention.projection(3)(step(state.step(), attention, hidden_states)), None

    return forward


def _hook(state: SwappedEncoderDecoder, undo: contextlib.ExitStack) -> None:
    """Remember what the decoder gives out, and let the head see the wanted rows only."""

    def remember(_: nn.Module, __: Any, found: Any) -> None:
        state.step().hidden = found.last_hidden_state[0]

    def choose(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        rows = state.step().logit_rows
        assert rows is not None
        return (inputs[0][0].index_select(0, rows),)

    undo.callback(state.model.get_decoder().register_forward_hook(remember).remove)
    undo.callback(state.model.get_output_embeddings().register_forward_pre_hook(choose).remove)
