"""`pilotfish.json`: what a bundle says about itself."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator, model_validator

from ..profiling.canary import Canary
from ..sampling.generation import Generation, TokenId

SCHEMA_VERSION = 1
MANIFEST_NAME = "pilotfish.json"

Sha256: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileFact(_Record):
    """What a file in a bundle must be."""

    sha256: Sha256
    bytes: int = Field(ge=0)


class Source(_Record):
    """What a bundle was made from."""

    name: str  # file or repository
    sha256: Sha256
    format: str  # "gguf", "huggingface"


class GreedyAnswer(_Record):
    """What the source goes on with after the canary's tokens, always taking the best."""

    ids: tuple[int, ...]
    gaps: tuple[FiniteFloat, ...]  # logit of each minus the second best


class DraftEntry(_Record):
    """The smaller model that drafts for this one, and what it was measured to bring."""

    path: str  # of its bundle: a folder inside this one ("draft"), or another bundle's path
    model_id: str
    pairing: Literal["identical", "padded", "mapped"]  # how the vocabularies fit
    n_shared: int = Field(ge=0)  # tokens that mean the same in both
    token_map: str | None = None  # file in this bundle, where the pairing is "mapped"
    acceptance: dict[str, FiniteFloat] = {}  # share of drafted tokens accepted, by prompt set
    speed_up: dict[str, FiniteFloat] = {}  # expected on the machine of the export, by prompt set or engine
    pays: bool | None = None  # None: not measured
    note: str | None = None  # what a person should know of this pair


class Manifest(_Record):
    """What `pilotfish.json` says about a bundle. Every path is relative to the folder, with forward slashes."""

    schema_version: int = SCHEMA_VERSION
    model_id: str
    license: str | None = None
    license_file: str | None = None  # the source's own text
    architecture: str
    context_length: int = Field(gt=0)
    source: Source
    files: dict[str, FileFact]  # every file but the manifest; see describe_files
    formats: dict[str, str]  # engine's format -> its file: {"onnx": "model.onnx"}
    tokenizer: str | None = None  # file: "tokenizer.json"
    chat_template: str | None = None  # the jinja2 text itself
    bos_id: int | None = None
    add_bos: bool = False  # whether a prompt without a chat template starts with bos_id
    eos_ids: tuple[int, ...] = ()
    recipe: dict[str, str] = {}  # how it was converted and quantized; "openvino.weights" is of one format only
    canary: Canary | None = None  # a known answer, asked of every device that runs the bundle
    greedy: GreedyAnswer | None = None  # how the source goes on after the canary
    answers: str | None = None  # file: what the source answers to the evaluation text, for comparing without it
    report: dict[str, FiniteFloat] = {}  # what the comparison with the source measured
    reports: dict[str, dict[str, FiniteFloat]] = {}  # the same, format by format
    thresholds: dict[str, dict[str, FiniteFloat]] = {}  # what each format had to keep to
    unverified: tuple[str, ...] = ()  # formats that could not be run where the bundle was made
    kv_hints: dict[str, str] = {}  # cache types worth asking for, by engine: {"openvino": "u8/u4"}
    draft: DraftEntry | None = None
    encoders: dict[str, str] = {}  # format -> file of the encoder: {"onnx": "encoder.onnx"}; {}: a decoder-only model
    decoder_start: tuple[int, ...] = ()  # what every answer of an encoder-decoder model goes on from
    source_limit: int | None = Field(default=None, gt=0)  # tokens, or frames, that the encoder can read; None: no limit
    source_kind: Literal["text", "audio"] = "text"
    suppress_tokens: tuple[TokenId, ...] = ()  # never in an answer
    begin_suppress_tokens: tuple[TokenId, ...] = ()  # never its first
    generation: Generation = Generation()  # the model's other settings for generating

    @field_validator("files")
    @classmethod
    def _inside_the_folder(cls, files: dict[str, FileFact]) -> dict[str, FileFact]:
        for name in files:
            parts = PurePosixPath(name).parts
            odd = "\\" in name or PureWindowsPath(name).drive or name.startswith("/") or ".." in parts
            if odd or not parts or name == MANIFEST_NAME:
                raise ValueError(f"{name!r} is not a path inside the bundle")
        return files

    @model_validator(mode="after")
    def _files_are_listed(self) -> Manifest:
        token_map = self.draft.token_map if self.draft else None
        named = (
            *self.formats.values(),
            *self.encoders.values(),
            self.tokenizer,
            self.license_file,
            self.answers,
            token_map,
        )
        for name in named:
            if name is not None and name not in self.files:
                raise ValueError(f"{name!r} is used but not listed under files")
        for name in (*self.reports, *self.thresholds, *self.unverified):
            if name not in self.formats:
                raise ValueError(f"{name!r} is reported on but not listed under formats")
        if not set(self.encoders) <= set(self.formats):
            raise ValueError("an encoder is listed for a format that the bundle has no decoder in")
        return self

    def recipe_of(self, form: str) -> dict[str, str]:
        """How one format was made. Entries with no format before them are those of "onnx", or of the only one."""
        own = {k[len(form) + 1 :]: v for k, v in self.recipe.items() if k.startswith(f"{form}.")}
        if "onnx" in self.formats and form != "onnx":
            return own
        return {k: v for k, v in self.recipe.items() if k.split(".")[0] not in self.formats} | own
