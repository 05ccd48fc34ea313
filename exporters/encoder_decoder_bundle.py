"""A bundle out of an encoder-decoder that is in memory: after a training, in a test."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..runtime.files.bundle import describe_files, write_manifest
from ..runtime.files.generation_settings import checked_settings, languages_of, warn_of
from ..runtime.files.manifest import Manifest, Source
from ..runtime.files.staging import new_bundle
from ..runtime.interfaces import Tokens
from ..runtime.progress import Progress
from ..runtime.text.tokenizer import Tokenizer
from .openvino.compress import Compression
from .openvino.encoder_decoder import DECODER as OV_DECODER
from .openvino.encoder_decoder import ENCODER as OV_ENCODER
from .openvino.encoder_decoder import compress_encoder_decoder_openvino, trace_encoder_decoder_openvino
from .quantize.weight_form import Activations, WeightForm, as_they_come
from .sources.encoder_decoder_families import encoder_decoder_facts
from .torch_to_onnx.encoder_decoder import DECODER, ENCODER, export_encoder_decoder_onnx

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FILES = {
    "onnx": (f"onnx/{DECODER}", f"onnx/{ENCODER}"),
    "openvino": (f"openvino/{OV_DECODER}", f"openvino/{OV_ENCODER}"),
}


def export_encoder_decoder(
    model: PreTrainedModel,
    folder: Path,
    form: WeightForm | None = None,
    *,
    model_id: str,
    to: tuple[Literal["onnx", "openvino"], ...] = ("onnx",),
    tokenizer: Path | None = None,
    activations: Activations = "int8",
    samples: Sequence[Tokens] = (),
    license: str | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write a bundle for the engines named; its manifest.

    model: a T5, BART, mBART, Pegasus, Marian or Whisper model of transformers, in f32 on the CPU. form: None is int8.
    tokenizer: a tokenizer.json. samples: as in export_encoder_decoder_onnx.
    Not compared with the model: `pilotfish export` does that, from a folder.
    Raises UnsupportedModelError, EngineMissingError, OptionError and CacheWriteError; the folder is as it was then.
    """
    generation: Any = getattr(model, "generation_config", None)
    form = form or WeightForm("int8")
    said = generation.to_diff_dict() if generation is not None else {}
    facts = encoder_decoder_facts(model.config, said)
    languages = None if tokenizer is None else languages_of(Tokenizer.from_file(tokenizer))
    rules = checked_settings(said, int(model.config.vocab_size), languages)
    warn_of(rules.generation, model_id)
    with new_bundle(folder) as building:
        recipe: dict[str, str] = {}
        for name in to:
            (building / name).mkdir()
        if "onnx" in to:
            recipe |= export_encoder_decoder_onnx(
                model, building / "onnx", form, activations=activations, samples=samples, progress=progress
            )
        if "openvino" in to:
            wanted = Compression(form)
            made = trace_encoder_decoder_openvino(model, building / "openvino", wanted)
            made |= compress_encoder_decoder_openvino(building / "openvino", wanted) | {
                "activations": as_they_come(activations)
            }
            recipe |= {f"openvino.{key}": value for key, value in made.items()}
        if tokenizer is not None:
            shutil.copyfile(tokenizer, building / "tokenizer.json")
        manifest = Manifest(
            model_id=model_id,
            license=license,
            architecture=str(model.config.model_type),
            context_length=facts.context_length,
            source=Source(name=model_id, sha256=_digest(model), format="huggingface"),
            files=describe_files(building),
            formats={name: _FILES[name][0] for name in to},
            encoders={name: _FILES[name][1] for name in to},
            decoder_start=facts.decoder_start,
            source_limit=facts.source_limit,
            source_kind=facts.source_kind,
            suppress_tokens=rules.suppress_tokens,
            begin_suppress_tokens=rules.begin_suppress_tokens,
            generation=rules.generation,
            eos_ids=facts.eos_ids,
            tokenizer=None if tokenizer is None else "tokenizer.json",
            recipe=recipe,
        )
        write_manifest(building, manifest)
    return manifest


def _digest(model: Any) -> str:
    found = hashlib.sha256(model.config.to_json_string().encode())
    for name, values in sorted(model.state_dict().items()):
        found.update(name.encode())
        found.update(values.detach().contiguous().numpy().tobytes())
    return found.hexdigest()
