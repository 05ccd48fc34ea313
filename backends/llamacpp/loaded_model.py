"""A GGUF file loaded by llama.cpp: what sessions over it share."""

from __future__ import annotations

import dataclasses

from ...runtime.errors import OptionError
from ...runtime.files.gguf_model import GgufModel
from ...runtime.interfaces import Ability, EncoderInfo, ModelInfo
from ..common.weights import still_open
from .check_file import check_file
from .context import MAX_ROWS, Context, ContextOptions, Handle
from .library import version
from .load_model import LlamaCppOptions, Placement, cache_types, load_model, uses_flash, without_flash
from .probe import Verdict

_ABILITIES: frozenset[Ability] = frozenset({"tree", "evict_tokens", "hidden", "fork", "save"})
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
    ) -> None:
        shape = check_file(file.file)
        encoder = None if shape.decoder_start is None else EncoderInfo((shape.decoder_start,))
        if encoder is not None:
            options = without_flash(options)
            kv_dtype = kv_dtype or "f32"
        if kv_dtype is None and not placement.offload and options.flash_attention != "off" and options.pair_rows:
            kv_dtype = _ALIKE
        keys, values = cache_types(kv_dtype, shape.head_dim, options.flash_attention)
        repacked = verdict.extra_buffers if options.use_extra_bufts is None else options.use_extra_bufts
        if repacked and not verdict.extra_buffers:
            raise OptionError(f"use_extra_bufts=True would end this process: {verdict.how} Leave the option out.")
        self._handle: Handle | None = load_model(
            file.path, shape.architecture, shape.vocab_size, placement, options.use_mmap, repacked
        )
        self.info = ModelInfo(
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
            device=placement.device,
            threads=threads,
            digest=file.digest,
            encoder=encoder,
        )
        flash = uses_flash(options.flash_attention, keys, values)
        if flash is None and not placement.offload:
            flash = True
        self._context_options = ContextOptions(threads, keys, values, flash, placement.offload, shape.cached_layers)
        if flash is None:  # devices differ, and only a context tells
            flash = self.context(1).flash
            self._context_options = dataclasses.replace(self._context_options, flash=flash)
        halves = flash and not placement.offload and keys == values == "f16"
        split = halves and threads > 1  # a single row's keys are split among the threads
        self.pairs_beyond = _ALONE_BEYOND if split and options.pair_rows else None
        self.max_rows = _MAX_ALIKE if halves else MAX_ROWS
        self.abilities: frozenset[Ability] = _ABILITIES if flash else _ABILITIES | _WITHOUT_FLASH
        if encoder is not None:
            self.abilities |= _WITH_ENCODER
        settings = (
            f"{keys} keys {values} values",
            f"flash attention {'on' if flash else 'off'}",
            placement.described(),
            "" if repacked else "weights not repacked",
            "single rows apart" if split and not options.pair_rows else "",
            f"build {verdict.build[:8]}",
        )
        self.info = dataclasses.replace(
            self.info,
            settings=", ".join(part for part in settings if part),
            alike_from=2 if split and not options.pair_rows else 1,
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
