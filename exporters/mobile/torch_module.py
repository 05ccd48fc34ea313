"""A torch module with a cache of fixed size and explicit positions: what phones' own formats are traced of."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...runtime.interfaces import Tokens
from ..sources.families import window_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HIDDEN = -3e4  # added to a score: nothing is left of it, and half precision still holds it
_SMALLEST = 1e-5  # of what is seen of a channel


class CachedDecoder(torch.nn.Module):
    """Tokens [1, n] and their positions [n] to logits [n, vocab_size]; the entry of a position lies at that place of
    the cache, so that reading a position again takes back what stood there, and all that stood behind is not seen.

    model: of transformers, with eager attention. n_entries: places in the cache.
    by_product: put entries into the cache by a product of zeros and ones, for converters that cannot index.
    """

    def __init__(self, model: PreTrainedModel, n_entries: int, *, by_product: bool = False) -> None:
        super().__init__()
        self.model, self._by_product = model, by_product
        config: Any = model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._layers = range(config.num_hidden_layers)
        self._kinds = getattr(config, "layer_types", None)
        self._window = window_of(config)
        shape = (1, config.num_key_value_heads, n_entries, head_dim)
        for i in self._layers:
            for kind in ("key", "value"):
                self.register_buffer(f"{kind}_{i}", torch.zeros(shape, dtype=model.dtype), persistent=False)
        self.register_buffer("columns", torch.arange(n_entries), persistent=False)

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """Logits after each token."""
        positions = positions.long()
        place = None
        if self._by_product:
            place = (self.get_buffer("columns")[:, None] == positions).to(self.model.dtype)
        keys, values = ([getattr(self, f"{kind}_{i}") for i in self._layers] for kind in ("key", "value"))
        cache = _Cache(keys, values, positions, place)
        model: Any = self.model
        logits: Tensor = model(
            input_ids=input_ids,
            position_ids=positions[None],
            attention_mask=self._masks(positions),
            past_key_values=cache,
            use_cache=True,
        ).logits[0]
        return logits

    def _masks(self, positions: Tensor) -> Tensor | dict[str, Tensor]:
        if not self._kinds:
            return self._mask(positions, self._window)
        windows = {"full_attention": None, "sliding_attention": self._window}
        return {kind: self._mask(positions, window) for kind, window in windows.items() if kind in self._kinds}

    def _mask(self, positions: Tensor, window: int | None) -> Tensor:
        columns, rows = self.get_buffer("columns")[None].to(positions.dtype), positions[:, None]
        seen = columns <= rows
        if window is not None:
            seen = seen & (columns > rows - window)
        return torch.where(seen, 0.0, _HIDDEN).to(self.model.dtype)[None, None]


class _Cache:
    """What transformers' attention asks of a cache."""

    is_compileable = True

    def __init__(self, keys: list[Tensor], values: list[Tensor], positions: Tensor, place: Tensor | None) -> None:
        self._keys, self._values, self._positions, self._place = keys, values, positions, place

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """All entries of a layer, with the new ones at their places."""
        for kept, new in ((self._keys[layer], keys), (self._values[layer], values)):
            if self._place is None:
                kept.index_copy_(2, self._positions, new)
            else:
                kept.mul_(1 - self._place.sum(dim=1, keepdim=True))
                kept.add_(self._place @ new)
        return self._keys[layer], self._values[layer]

    def get_seq_length(self, *_: Any) -> int:
        """0: positions are given."""
        return 0


def own_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that may be quantized; a tied output layer gets weights of its own."""
    made: Any = copy.deepcopy(model)
    if made.lm_head.weight is made.get_input_embeddings().weight:
        made.lm_head.weight = torch.nn.Parameter(made.lm_head.weight.detach().clone(), requires_grad=False)
        made.config.tie_word_embeddings = False
    result: PreTrainedModel = made
    return result


class Smoothed(torch.nn.Module):
    """A linear layer that gets the channels of its input in sizes alike, for roundings with one scale a row.

    Its weights have the factors the other way round: the product is the same.
    Source: Xiao et al. 2022 (SmoothQuant), equation 4, alpha 0.5.
    """

    def __init__(self, linear: torch.nn.Linear, largest: Tensor) -> None:
        super().__init__()
        columns = linear.weight.detach().abs().amax(dim=0).clamp(min=_SMALLEST)
        scale = (largest.clamp(min=_SMALLEST) / columns).sqrt()
        self.register_buffer("inverse", 1 / scale, persistent=False)
        self.linear = linear
        self.linear.weight = torch.nn.Parameter(linear.weight.detach() * scale, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """What the layer gave before."""
        made: Tensor = self.linear(x * self.get_buffer("inverse"))
        return made


def smooth(model: PreTrainedModel, samples: Sequence[Tokens]) -> None:
    """Put Smoothed in the place of every linear layer, as fits what they see when the model reads the samples."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    seen: dict[str, Tensor] = {}

    def look(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Tensor, ...]) -> None:
            found = inputs[0].detach().abs().flatten(0, -2).amax(dim=0)
            seen[name] = torch.maximum(seen[name], found) if name in seen else found

        return hook

    hooks = [module.register_forward_pre_hook(look(name)) for name, module in layers.items()]
    whole: Any = model
    try:
        with torch.inference_mode():
            for tokens in samples:
                whole(input_ids=torch.from_numpy(tokens)[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    for name in seen:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, Smoothed(layers[name], seen[name].clone()))
