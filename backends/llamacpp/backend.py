"""llama.cpp: runs GGUF files as they are, on the processor or offloaded to a GPU, through its low-level interface."""

from __future__ import annotations

from collections.abc import Mapping

from ...runtime.errors import PilotfishError, UnsupportedModelError
from ...runtime.files.gguf_model import GgufModel
from ...runtime.files.model_file import ModelFile
from ...runtime.files.open_model import gguf_of
from ...runtime.profiling.canary import Canary
from ...runtime.text.tokenizer import Tokenizer
from .. import require, usable
from ..common.weights import LoadedWeights
from ..protocol import NO_OPTIONS
from .build_command import build_command, rebuild_command
from .check_file import check_file
from .encoder_decoder import LlamaCppEncoderDecoderSession
from .findings import KNOWN, Findings, described
from .library import gpus, version
from .loaded_model import LlamaCppModel
from .placement import LlamaCppOptions, Placement, named_types, parse_options
from .probe import build_verdict
from .rereading import RereadingSession
from .session import LlamaCppSession
from .shape import LlamaCppShape, claimed_shape
from .trial import Request, findings_of, remembered
from .vocabulary import LlamaCppTokenizer

_AS_IT_COMES = ("cpu", None, parse_options({}))  # device, cache and options of who does not say


class LlamaCppBackend:
    """The engine that opens a .gguf file as it is, and the one with the most kinds of GPU."""

    name = "llamacpp"

    @property
    def install(self) -> str:
        return build_command()

    def version(self) -> str | None:
        return version()

    def problem(self) -> str | None:
        if self.version() is None or (verdict := build_verdict()).usable:
            return None
        return f"{verdict.how} Build it anew: {rebuild_command()}"

    def devices(self) -> tuple[str, ...]:
        return ("cpu", *gpus()) if usable(self) else ()

    def formats(self, device: str | None = None) -> tuple[str, ...]:
        return ("gguf",)

    def notes(self) -> dict[str, str]:
        """Whether the installed build survives a batch of quantized rows on this processor, and how that was found.

        Keys "verdict", "how", "system_info" and "build"; empty where the engine is not installed.
        """
        return {} if self.version() is None else build_verdict().facts()

    def check(self, device: str | None, kv_dtype: str | None, options: Mapping[str, object]) -> None:
        chosen = parse_options(dict(options))
        named_types(kv_dtype)
        if self.devices():
            Placement(device or "cpu", chosen)

    def open(
        self,
        model: ModelFile,
        *,
        device: str | None,
        threads: int,
        kv_dtype: str | None,
        options: Mapping[str, object] = NO_OPTIONS,
    ) -> LoadedWeights[LlamaCppModel]:
        chosen = parse_options(dict(options))
        require(self)
        place, verdict = Placement(device or "cpu", chosen), build_verdict()
        file = gguf_of(model)
        shape, found = _looked_at(file, place.device, kv_dtype, chosen)
        opened = LlamaCppModel(file, place, threads, kv_dtype, chosen, verdict, shape, found)
        if opened.info.encoder is not None:
            return LoadedWeights(opened, LlamaCppEncoderDecoderSession)
        return LoadedWeights(opened, LlamaCppSession if found.rewinds is None else RereadingSession)

    def known_answer(self, model: ModelFile) -> Canary | None:
        """What the processor answers token by token; None where a file does not run, or is judged by others."""
        if not usable(self):
            return None
        try:
            return _tried(gguf_of(model), *_AS_IT_COMES).canary
        except PilotfishError:
            return None

    def tokenizer(self, file: GgufModel) -> Tokenizer:
        """llama.cpp's own vocabulary functions. Raises UnsupportedModelError and what require() raises."""
        require(self)
        if not _tried(file, *_AS_IT_COMES).vocabulary:
            raise UnsupportedModelError(f"llama.cpp cannot read the vocabulary of {file}, either.")
        return LlamaCppTokenizer(file.path)

    def looks(self, file: GgufModel, *, cheaply: bool = False) -> dict[str, str]:
        """What sessions over a file can do here, for a person. Raises what open() raises.

        cheaply: the file is not tried for it; empty where it never was.
        """
        require(self)
        if cheaply and not _is_checked(file):
            found = remembered(_request(file, *_AS_IT_COMES), build_verdict())
            return {} if found is None else described(found)
        return described(_looked_at(file, *_AS_IT_COMES)[1])


def _is_checked(model: GgufModel) -> bool:
    try:
        return bool(check_file(model.file))
    except UnsupportedModelError:
        return False


def _looked_at(
    model: GgufModel, device: str, kv_dtype: str | None, options: LlamaCppOptions
) -> tuple[LlamaCppShape, Findings]:
    """The shape of a model, and what it can do: known of a file that can be checked, else found by a trial."""
    file = model.file
    try:
        return check_file(file), KNOWN
    except UnsupportedModelError:
        if file.architecture == "t5":
            raise
    return claimed_shape(file), _tried(model, device, kv_dtype, options)


def _tried(model: GgufModel, device: str, kv_dtype: str | None, options: LlamaCppOptions) -> Findings:
    return findings_of(_request(model, device, kv_dtype, options), build_verdict())


def _request(model: GgufModel, device: str, kv_dtype: str | None, options: LlamaCppOptions) -> Request:
    repacked = build_verdict().extra_buffers
    return Request(path=model.path, device=device, kv_dtype=kv_dtype, options=options.model_dump(), repacked=repacked)


BACKEND = LlamaCppBackend()
