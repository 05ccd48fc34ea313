"""The table of families in docs/models.md is what the code's lists and the families of the tests say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("tokenizers")

import tiny_foreign
from expert_files import MIXTURES
from family_files import MADE
from tiny_encoder_decoders import CONFIGS
from tiny_families import families_of
from torch_answers import WINDOWS

from pilotfish import backends
from pilotfish.backends.openvino.gguf_graph import _PROVEN
from pilotfish.exporters.formats import FORMATS
from pilotfish.exporters.sources.encoder_decoder_families import ENCODER_DECODERS
from pilotfish.exporters.sources.families import SUPPORTED
from pilotfish.runtime.files.decoder_families import FAMILIES

ROOT = Path(__file__).parents[2]
ENGINES = ("onnx", "openvino", "llamacpp", "reference")
BEGIN, END = "<!-- families: tests/docs/test_families_table.py -->\n", "<!-- end of families -->"
NAMES = {  # by model_type of transformers, as people call them
    "llama": "Llama",
    "mistral": "Mistral",
    "ministral3": "Ministral 3",
    "qwen2": "Qwen 2",
    "qwen3": "Qwen 3",
    "gemma": "Gemma 1",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3",
    "gemma4_text": "Gemma 4",
    "phi3": "Phi-3 and 4",
    "granite": "Granite",
    "smollm3": "SmolLM3",
    "olmo2": "OLMo 2",
    "mixtral": "Mixtral",
    "qwen3_moe": "Qwen3-MoE",
    "qwen2_moe": "Qwen2-MoE",
    "olmoe": "OLMoE",
    "granitemoe": "Granite-MoE",
    "gpt_oss": "gpt-oss",
    "t5": "T5",
    "mt5": "mT5",
    "umt5": "UMT5",
    "bart": "BART",
    "mbart": "mBART",
    "plbart": "PLBart",
    "blenderbot": "Blenderbot",
    "blenderbot-small": "Blenderbot-small",
    "m2m_100": "NLLB and M2M100",
    "pegasus": "Pegasus",
    "marian": "Marian",
    "whisper": "Whisper",
}
REAL = {"llama"}  # families of the decoders that tests marked `real` read
HELD = {"llama", "qwen2"}  # architectures that the llamacpp engine passes the contract with, in tests/contracts
AGAINST_TRANSFORMERS = {made.architecture for made in MADE.values()}
OPENED = {  # families that are opened, and the name of their architecture
    kind: arch for arch, family in FAMILIES.items() if family.folder for kind in family.folder.silent
}
UNEXPORTED = [kind for kind in OPENED if kind not in SUPPORTED]
COMPARED = {MADE[name].model_type for name in MIXTURES}  # with llama.cpp on the same files, in tests/backends/llamacpp
WRITTEN = {SUPPORTED[family].architecture for family in families_of("gguf")}  # and read by llama.cpp


def cell(how: str | None, evicts: bool = True) -> str:
    return "-" if how is None else f"{how} d{' e' if evicts else ''}"


def from_gguf(kind: str, engine: str) -> str:
    """A family's .gguf files on an engine."""
    arch, family = OPENED[kind], FAMILIES[OPENED[kind]]
    tried = arch in tiny_foreign.FAMILIES
    written = arch in WRITTEN if kind in SUPPORTED else kind in COMPARED
    proven = written if engine == "llamacpp" else arch in AGAINST_TRANSFORMERS
    how = "R" if kind in REAL else "T" if proven else "P" if tried and engine == "llamacpp" else None
    if engine == "llamacpp":
        return cell(how, evicts=arch in HELD or kind in COMPARED or (tried and arch not in tiny_foreign.STATES))
    if engine == "openvino":
        return cell(how if arch in _PROVEN else None, evicts=family.windows is None)
    return cell(how)


def exported(kind: str, form: str) -> str:
    """A family exported to a format, on the engine of that format."""
    how = None if kind not in SUPPORTED or kind not in families_of(form) else "R" if kind in REAL else "T"
    return cell(how, evicts=form != "openvino" or kind not in WINDOWS)


def encoder_decoder(kind: str) -> list[str]:
    tested = kind in {family for family, _ in CONFIGS.values()}
    held = {name: cell("T" if tested and kind in form.encoder_decoders else None) for name, form in FORMATS.items()}
    files = dict.fromkeys(ENGINES, "-") | {"llamacpp": held["gguf"]}
    return [*files.values(), *held.values()]


def rows() -> Iterator[str]:
    yield f"| family | .gguf on {' | '.join(ENGINES)} | exported: {' | '.join(FORMATS)} |"
    yield f"|---|{'---|' * (len(ENGINES) + len(FORMATS))}"
    for kind in (*SUPPORTED, *UNEXPORTED):
        files = [from_gguf(kind, engine) for engine in ENGINES]
        yield f"| {NAMES[kind]} | {' | '.join([*files, *(exported(kind, form) for form in FORMATS)])} |"
    for kind in ENCODER_DECODERS:
        yield f"| {NAMES[kind]} | {' | '.join(encoder_decoder(kind))} |"


def others() -> Iterator[str]:
    """Architectures that run on llama.cpp alone."""
    names = sorted(name for name, family in tiny_foreign.FAMILIES.items() if family.architecture not in FAMILIES)
    for rewinds, what in ((None, "P d e"), (4, "P d, up to 4 tokens at a time"), (0, "P")):
        found = [name for name in names if tiny_foreign.STATES.get(name) == rewinds]
        yield f"- {what}: {', '.join(found)}"


def generated() -> str:
    return "\n".join(
        [*rows(), "", "Any other .gguf file that llama.cpp runs, on llamacpp. Tried here:", "", *others(), ""]
    )


def test_the_table_is_what_the_lists_say() -> None:
    """To make it anew: replace what stands between the two comments by what this prints."""
    page = (ROOT / "docs" / "models.md").read_text("utf-8")
    stated = page.partition(BEGIN)[2].partition(END)[0].strip()
    print(f"{BEGIN}\n{generated()}\n{END}")
    assert stated == generated().strip()


def test_every_family_is_proven_somewhere() -> None:
    """None is claimed that no test has made a model of, and none that is made is missing."""
    assert set(NAMES) == {*SUPPORTED, *UNEXPORTED, *ENCODER_DECODERS}
    assert {one.architecture for one in SUPPORTED.values()} | {OPENED[kind] for kind in UNEXPORTED} == set(FAMILIES)
    assert set(FAMILIES) == AGAINST_TRANSFORMERS
    assert set(tiny_foreign.STATES.values()) == {0, 4}
    assert {family for family, _ in CONFIGS.values()} == set(ENCODER_DECODERS)


def test_every_engine_has_a_column() -> None:
    """A new one needs a line in from_gguf() that says which families it is proven with."""
    assert tuple(backends._BUILT_IN) == ENGINES


def test_the_readme_names_the_same_families() -> None:
    section = (ROOT / "README.md").read_text("utf-8").partition("\n## Engines and models\n")[2].partition("\n## ")[0]
    text = " ".join(section.split())
    for start, kinds in (("Decoders: ", (*SUPPORTED, *UNEXPORTED)), ("Encoder-decoders: ", ENCODER_DECODERS)):
        found = re.search(rf"{start}(.*?)\.", text)
        assert found is not None, f"no sentence that begins with {start!r}"
        assert sorted(re.split(r", (?:and )?| \(", found[1])) == sorted(NAMES[kind] for kind in kinds)
