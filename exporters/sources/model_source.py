"""A model to export: what it is, and how its weights come into torch."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ...runtime.errors import EngineMissingError, ModelFileError, UnsupportedModelError
from ...runtime.files.generation_settings import Generating
from ...runtime.install import install_command
from ...runtime.progress import Share
from ...runtime.text.tokenizer import Tokenizer
from .encoder_decoder_families import EncoderDecoderFacts

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel


EXPORT_EXTRA = f"Add it with: {install_command('export')}"
_COMPUTED = re.compile(  # what old files store of models that compute it anew
    r"(model\.)?(encoder|decoder)\.(version|embed_positions\.(weights|_float_tensor))"
)


class StoredWeights(Protocol):
    """Weights in a file, by the names that transformers gives them."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every tensor that belongs to the model."""

    def read_into(self, name: str, target: torch.Tensor) -> None:
        """Fill f32 memory of its shape with one tensor."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that can be exported: a family that is known, and files that were checked as far as headers go.

    sha256: digest of weights and configuration. architecture: transformers' model_type. eos_ids: the one that chat
    templates write comes first.
    """

    path: Path
    format: Literal["huggingface", "gguf"]
    sha256: str
    model_id: str
    license: str | None
    architecture: str
    context_length: int
    tokenizer: Tokenizer
    chat_template: str | None
    bos_id: int | None
    add_bos: bool
    eos_ids: tuple[int, ...]
    settings: Mapping[str, Any] = field(repr=False)  # as config.json has them
    weights: StoredWeights = field(repr=False)
    pickled: Mapping[str, torch.Tensor] | None = field(default=None, repr=False)  # the weights, if not in safetensors
    encoder_decoder: EncoderDecoderFacts | None = None  # of an encoder-decoder
    generating: Generating = field(default_factory=Generating)

    def config(self) -> PretrainedConfig:
        """transformers' configuration, made anew. Raises EngineMissingError and ModelFileError."""
        return build_config(self.settings, self.path)

    def torch_model(self, progress: Share | None = None) -> PreTrainedModel:
        """The model in f32 on the CPU, in eval mode, with eager attention.

        Memory: one f32 copy. Raises ModelFileError where a tensor is missing, odd, or left over, before
        any is read.
        """
        if self.encoder_decoder is not None:
            return load_encoder_decoder(self.config(), self.path, self.encoder_decoder, self.pickled)
        return load_model(self.config(), self.weights, self.path, progress or (lambda share: None))


def build_config(settings: Mapping[str, Any], path: Path) -> PretrainedConfig:
    """The configuration that config.json's entries describe."""
    try:
        from transformers import CONFIG_MAPPING
    except ImportError as error:
        raise EngineMissingError(f"exporting needs the package {error.name}. {EXPORT_EXTRA}") from error
    values = copy.deepcopy(dict(settings))
    try:
        return CONFIG_MAPPING[values.pop("model_type")](**values)
    except Exception as error:  # whatever the validation of a damaged file meets first
        raise ModelFileError(f"{path}: its configuration is not one of a {settings['model_type']}: {error}.") from error


def load_model(config: PretrainedConfig, weights: StoredWeights, path: Path, progress: Share) -> PreTrainedModel:
    """A model of this configuration, filled tensor by tensor."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.initialization import no_init_weights
    except ImportError as error:
        raise EngineMissingError(f"exporting needs the package {error.name}. {EXPORT_EXTRA}") from error
    make: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):  # sizes are compared before they are believed
        wanted = {name: tuple(p.shape) for name, p in make(config).named_parameters(remove_duplicate=False)}
    _check_shapes(wanted, weights.shapes(), config.tie_word_embeddings, path)
    without_values: Any = no_init_weights
    with without_values():  # memory that is never written is never taken: the peak is what is filled below
        model: PreTrainedModel = make(config, dtype=torch.float32, attn_implementation="eager")
    model.tie_weights()
    parameters = dict(model.named_parameters())
    for done, (name, parameter) in enumerate(parameters.items()):
        with torch.no_grad():
            weights.read_into(name, parameter)
        progress((done + 1) / len(parameters))
    model.requires_grad_(False)
    model.train(False)
    return model


def load_encoder_decoder(
    config: PretrainedConfig, path: Path, facts: EncoderDecoderFacts, tensors: Mapping[str, torch.Tensor] | None = None
) -> PreTrainedModel:
    """An encoder-decoder in f32 on the CPU, read by transformers, which knows what of it is tied and what is computed.

    tensors: the weights, where they are not in safetensors files. Nothing is fetched, and no other file is read.
    Raises ModelFileError where a tensor is missing or odd.
    """
    try:
        import torch
        from transformers import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING
    except ImportError as error:
        raise EngineMissingError(f"exporting needs the package {error.name}. {EXPORT_EXTRA}") from error
    hears = facts.source_kind == "audio"
    classes: Any = MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING if hears else MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING
    try:
        with _silent():
            model, loaded = classes[type(config)].from_pretrained(
                path if tensors is None else None,
                config=config,
                state_dict=None if tensors is None else dict(tensors),
                dtype=torch.float32,
                attn_implementation="eager",
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelFileError(f"{path} cannot be read as a {config.model_type}: {error}") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        odd = sorted(name for name in map(str, loaded[what]) if not _COMPUTED.fullmatch(name))
        if odd:
            raise ModelFileError(
                f"{path} does not hold what its configuration says: {what.replace('_keys', '')} is {odd[0]}. "
                "Fetch or copy the model again."
            )
    model.requires_grad_(False)
    model.train(False)
    return model  # type: ignore[no-any-return]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """transformers shows bars and warnings of its own; whether tensors are missing is checked here."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _unfit(path: Path, what: str) -> ModelFileError:
    return ModelFileError(
        f"{path} does not fit config.json: {what}. Some of it is damaged, or another model's: fetch or copy all of it "
        "again."
    )


def _check_shapes(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], tied: bool, path: Path
) -> None:
    output = "lm_head.weight"
    for name, shape in wanted.items():
        if name == output and tied:
            continue
        if name not in found:
            raise _unfit(path, f"it has no tensor {name}")
        if found[name] != shape:
            raise _unfit(path, f"tensor {name} has shape {found[name]}, but {shape} was expected")
    unknown = sorted(found.keys() - wanted.keys())
    if unknown:
        raise UnsupportedModelError(
            f"{path} has the tensor {unknown[0]}, which this family as built here would ignore."
        )
