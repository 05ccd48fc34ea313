"""Gated MLPs, and mixtures of them, in plain numpy f32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ...runtime.files.decoder_family import CLAMP, CLAMPED_SLOPE, Activation

Matrix: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Mlp:
    """A gated MLP; matrices are (outputs, inputs)."""

    gate: Matrix
    up: Matrix
    down: Matrix
    gate_bias: Matrix | None = None
    up_bias: Matrix | None = None
    down_bias: Matrix | None = None

    def of(self, x: Matrix, activation: Activation) -> Matrix:
        """What it makes of rows."""
        gate, up = _linear(x, self.gate, self.gate_bias), _linear(x, self.up, self.up_bias)
        return _linear(_GATED[activation](gate, up), self.down, self.down_bias)


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture: of `n` MLPs each row passes those `used` that the router scores highest.

    whole: shares are among those that are picked, otherwise among all. expert: makes one, for models too large to be
    held in f32. shared_gate: (1, inputs), whose sigmoid weighs the MLP that every row passes.
    """

    router: Matrix
    router_bias: Matrix | None
    expert: Callable[[int], Mlp]
    used: int
    whole: bool
    shared_gate: Matrix | None = None

    def of(self, x: Matrix, activation: Activation) -> Matrix:
        """What the experts add up to for rows."""
        scores = _linear(x, self.router, self.router_bias)
        picked = np.argsort(-scores, axis=-1, kind="stable")[:, : self.used]
        chosen = np.take_along_axis(scores, picked, axis=-1)
        of_all = _softmax(scores)
        shares = _softmax(chosen) if self.whole else np.take_along_axis(of_all, picked, axis=-1)
        found = np.zeros_like(x)
        for i in np.unique(picked):
            rows, places = np.nonzero(picked == i)
            found[rows] += shares[rows, places, None] * self.expert(int(i)).of(x[rows], activation)
        return found


def active(x: Matrix, activation: Activation) -> Matrix:
    """GELU or SiLU of x."""
    return gelu(x) if activation == "gelu" else silu(x)


def mlp_of(x: Matrix, mlp: Mlp | None, experts: Experts | None, activation: Activation) -> Matrix:
    """What a layer's MLP, its mixture or both make of rows."""
    every = np.zeros_like(x) if mlp is None else mlp.of(x, activation)
    if experts is None:
        return every
    if experts.shared_gate is not None:
        every = every / (1.0 + np.exp(-(x @ experts.shared_gate.T)))
    return np.asarray(every + experts.of(x, activation), dtype=np.float32)


def _linear(x: Matrix, weight: Matrix, bias: Matrix | None) -> Matrix:
    return x @ weight.T if bias is None else x @ weight.T + bias


def _softmax(x: Matrix) -> Matrix:
    shares = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=-1, keepdims=True), dtype=np.float32)


def silu(x: Matrix, slope: float = 1.0) -> Matrix:
    with np.errstate(over="ignore"):
        return np.asarray(x / (1.0 + np.exp(np.float32(-slope) * x)), dtype=np.float32)


def gelu(x: Matrix) -> Matrix:
    """The form with tanh. Source: Hendrycks and Gimpel 2016."""
    inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3)
    return np.asarray(np.float32(0.5) * x * (1 + np.tanh(inner)), dtype=np.float32)


def _clamped(gate: Matrix, up: Matrix) -> Matrix:
    inner = silu(np.minimum(gate, np.float32(CLAMP)), CLAMPED_SLOPE)
    return np.asarray(inner * (np.clip(up, -CLAMP, CLAMP) + np.float32(1.0)), dtype=np.float32)


_GATED: dict[Activation, Callable[[Matrix, Matrix], Matrix]] = {
    "silu": lambda gate, up: silu(gate) * up,
    "gelu": lambda gate, up: gelu(gate) * up,
    "clamped": _clamped,
}
