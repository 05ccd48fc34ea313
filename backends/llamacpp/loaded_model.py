"""A GGUF file loaded by llama.cpp: what sessions over it share."""

from __future__ import annotations

import dataclasses

from ...runtime.errors import OptionError
from ...runtime.files.gguf_model import GgufModel
from ...runtime.interfaces import Ability, EncoderInfo, ModelInfo
from ..common.weights import still_open
from .context import MAX_ROWS, Context, ContextOptions, Handle
from .findings import ASKED_REWINDS, KNOWN, Findings
from .library import block_bytes, version
from .placement import (
    LlamaCppOptions,
    Placement,
    cache_types,
    keeps_state,
    load_model,
    require_text,
    uses_flash,
    without_flash,
)
from .probe import Verdict
from .shape import LlamaCppShape

# With both in f16, ggml's attention computes single rows beyond 256 entries, and steps of 64 rows and more, by other
# sums than all the rest (ggml-cpu/ops.cpp: use_split_kv_path, the tiled path). With two types there is one way only.
_ALIKE = "f16/bf16"
_ALONE_BEYOND, _MAX_ALIKE = 256, 63  # with both in f16: entries behind which, and rows up to which, sums are those
_WITHOUT_FLASH: frozenset[Ability] = frozenset({"attention"})
_WITH_ENCODER: frozenset[Ability] = frozenset({"encode"})


class LlamaCppModel:
    """One llama_model, shared by its sessions, and freed when the last of them is gone."""

    def __init__(
        self,
        file: GgufModel,
        placement: Placement,
        threads: int,
        kv_dtype: str | None,
        options: LlamaCppOptions,
        verdict: Verdict,
        shape: LlamaCppShape,
        findings: Findings | None = KNOWN,
    ) -> None:
        """findings: None is for who finds out; everything is left open then.

        Raises ModelFileError, OptionError, and UnsupportedModelError for a model that does not continue text.
        """
        encoder = None if shape.decoder_start is None else EncoderInfo((shape.decoder_start,))
        if encoder is not None:
            options = without_flash(options)
            kv_dtype = kv_dtype or "f32"
        kv_dtype = kv_dtype or (None if findings is None else findings.kv_dtype)
        if kv_dtype is None and not placement.offload and options.flash_attention != "off" and options.pair_rows:
            kv_dtype = _ALIKE
        keys, values = cache_types(kv_dtype, shape.head_dim, options.flash_attention)
        repacked = _repacks(options, verdict)
        self._handle: Handle | None = load_model(
            file.path, shape.architecture, shape.vocab_size, placement, options.use_mmap, repacked
        )
        if encoder is None:
            require_text(self._handle, file.path)
        if findings is None:
            findings = Findings(abilities=(), rewinds=ASKED_REWINDS if keeps_state(self._handle) else None)
        self.abilities: frozenset[Ability] = frozenset(findings.abilities)
        self.info = _model_info(file, shape, placement.device, threads, encoder, findings.rewinds)
        flash = uses_flash(options.flash_attention, keys, values)
        if flash is None and not placement.offload:
            flash = True
        entry_bytes = findings.entry_bytes
        if entry_bytes is None:
            elements = shape.cached_layers * shape.kv_heads * shape.head_dim
            entry_bytes = block_bytes(keys, elements) + block_bytes(values, elements)
        self._context_options = ContextOptions(
            *(threads, keys, values, flash, placement.offload, entry_bytes, findings.state_bytes, findings.rewinds)
        )
        if flash is None:  # devices differ, and only a context tells
            flash = self.context(1).flash
            self._context_options = dataclasses.replace(self._context_options, flash=flash)
        flash = flash and findings.flash
        halves = flash and not placement.offload and keys == values == "f16"
        split = halves and threads > 1  # a single row's keys are split among the threads
        pairs = options.pair_rows and findings.rewinds is None  # the copy of a row is forgotten again
        self.pairs_beyond = _ALONE_BEYOND if split and pairs else None
        self.max_rows = _MAX_ALIKE if halves else MAX_ROWS
        if flash:
            self.abilities -= _WITHOUT_FLASH
        if encoder is not None:
            self.abilities |= _WITH_ENCODER
        settings = (
            f"{keys} keys {values} values",
            f"flash attention {'on' if flash else 'off'}",
            placement.described(),
            "" if repacked else "weights not repacked",
            "single rows apart" if split and not pairs else "",
            f"build {verdict.build[:8]}",
        )
        self.info = dataclasses.replace(
            self.info,
            settings=", ".join(part for part in settings if part),
            alike_from=2 if split and not pairs else 1,
        )

    def context(self, n_entries: int, watching: bool = False, source_length: int = 0) -> Context:
        """Memory for so many entries, and for an encoder to read so many tokens.

        Raises EngineError after close(), and where there is no memory.
        """
        model = still_open(self._handle)
        return Context(model, self.info, self._context_options, n_entries, watching, source_length)

    def close(self) -> None:
        self._handle = None  # sessions hold it too: it is freed with the last of their contexts

    def check_open(self) -> None:
        """Raise EngineError after close()."""
        still_open(self._handle)


def _repacks(options: LlamaCppOptions, verdict: Verdict) -> bool:
    """Whether weights are repacked for faster kernels. Raises OptionError where that would end the process."""
    repacked = verdict.extra_buffers if options.use_extra_bufts is None else options.use_extra_bufts
    if repacked and not verdict.extra_buffers:
        raise OptionError(f"use_extra_bufts=True would end this process: {verdict.how} Leave the option out.")
    return repacked


def _model_info(
    file: GgufModel, shape: LlamaCppShape, device: str, threads: int, encoder: EncoderInfo | None, rewinds: int | None
) -> ModelInfo:
    return ModelInfo(
        architecture=shape.architecture,
        vocab_size=shape.vocab_size,
        context_length=shape.context_length,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        hidden_size=shape.hidden_size,
        engine="llamacpp",
        engine_version=str(version()),
        device=device,
        threads=threads,
        digest=file.digest,
        encoder=encoder,
        rewinds=rewinds,
    )
