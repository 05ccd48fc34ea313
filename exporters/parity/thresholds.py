"""How far an export may be from its source before it is refused, by how its weights are stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from ...runtime.checks import real
from ...runtime.errors import OptionError
from ...runtime.files.manifest import Manifest
from ..quantize.weight_form import WeightForm
from .parity import Parity

_ORDER = ("fp32", "fp16", "int8", "int4")


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What an export must keep to. Each was set at two to three times what a right export was seen to need."""

    agreement: float  # at least: share of rows with the same best token, near-ties of the source counted as the same
    kl: float  # at most, nats a token
    relative_difference: float  # at most, of logits, in units of their spread
    perplexity_ratio: float  # at most

    @classmethod
    def for_weights(
        cls,
        form: WeightForm | None,
        activations: str,
        rounding: Parity | None = None,
        min_agreement: float | None = None,
    ) -> Thresholds:
        """What an export of this form must keep to.

        form: None is a GGUF file's own quantization, which adds nothing of its own.
        activations: "f32" where they are not rounded, which is worth a few per cent in the logits.
        rounding: what rounding the weights costs by itself: an export twice as far off has another fault. None: such
            a measure is not to be had, and the defaults hold.
        min_agreement: instead of the default. Raises OptionError where it is no share.
        """
        if min_agreement is not None:
            real("min_agreement", min_agreement, "a share between 0 and 1", lambda x: 0 <= x <= 1)
        stored = "fp32" if form is None else max(form.layers, form.embedding_form, form.output_form, key=_ORDER.index)
        if activations != "f32" and (form is None or stored in ("int8", "int4")):
            stored = max(stored, "int8", key=_ORDER.index)
        found = _DEFAULTS[stored]
        if rounding is not None and rounding.relative_difference is not None and stored in ("int8", "int4"):
            noise = _DEFAULTS["int8"] if activations != "f32" else _DEFAULTS["fp16"]
            drift = max(rounding.kl, abs(math.log(rounding.perplexity_ratio)))  # either way: its sign is luck
            found = cls(
                agreement=found.agreement,
                kl=2 * rounding.kl + noise.kl / 2,
                relative_difference=1.5 * rounding.relative_difference + noise.relative_difference / 2,
                perplexity_ratio=noise.perplexity_ratio * math.exp(2 * drift),
            )
        return found if min_agreement is None else replace(found, agreement=min_agreement)

    @classmethod
    def of(cls, kept: Mapping[str, float]) -> Thresholds:
        """What facts() gave."""
        return cls(**{name: float(kept[name]) for name in cls.__dataclass_fields__})

    def facts(self) -> dict[str, float]:
        """Numbers for the manifest."""
        return asdict(self)

    def problems(self, parity: Parity) -> tuple[str, ...]:
        """What is wrong with an export, in words; empty where nothing is."""
        found = []
        if not parity.agreement >= self.agreement:
            found.append(f"top-1 agreement is {parity.agreement:.3f}, at least {self.agreement:g} is needed")
        for name, label in (
            ("kl", "KL divergence"),
            ("relative_difference", "the relative difference of logits"),
            ("perplexity_ratio", "perplexity over the source's"),
        ):
            value, limit = getattr(parity, name), getattr(self, name)
            if value is not None and not value <= limit:  # not a number is a problem, too
                found.append(f"{label} is {value:.3g}, at most {limit:g} is allowed")
        return tuple(found)


_DEFAULTS = {  # fp32 and fp16 leave room for a KV cache in f16, the default of two engines
    "fp32": Thresholds(agreement=0.995, kl=2e-4, relative_difference=0.01, perplexity_ratio=1.002),
    "fp16": Thresholds(agreement=0.99, kl=1e-3, relative_difference=0.02, perplexity_ratio=1.01),
    "int8": Thresholds(agreement=0.95, kl=0.03, relative_difference=0.15, perplexity_ratio=1.05),
    "int4": Thresholds(agreement=0.75, kl=0.6, relative_difference=0.5, perplexity_ratio=1.6),
}


def thresholds_of(manifest: Manifest, form: str) -> Thresholds:
    """What one format of a bundle has to keep to. Raises OptionError where the bundle does not say."""
    kept = manifest.thresholds.get(form)
    if kept is None or set(kept) != set(Thresholds.__dataclass_fields__):
        raise OptionError(f"the bundle does not say what its {form} must keep to; export the model again.")
    return Thresholds.of(kept)
