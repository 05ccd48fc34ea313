#!/usr/bin/env bash
# llguidance refuses the JSON schema that pydantic writes for a field of type Path, bytes, SecretStr or set.
#
# Expected: JSON Schema says that an unknown "format" is an annotation to be ignored, so what pydantic writes for
#   everyday types of fields is a usable grammar; what llguidance does not know it ignores, as it does
#   contentEncoding.
# Instead: with its default options it refuses "format" of any name it does not know (path, binary, password, base64,
#   ipvanyaddress, regex) and uniqueItems, and with the one field the whole class. datetime, UUID, URLs and Decimal
#   compile.
# Versions: llguidance 1.9.1, pydantic 2.14.4.
# Matters to: who offers "give me an answer of this class": it fails by the type of one field, and when the question
#   is asked.
# Output of 2026-11-30:
#   llguidance 1.9.1 pydantic 2.14.4
#   datetime: compiles
#   UUID: compiles
#   HttpUrl: compiles
#   Decimal: compiles
#   Path: Unknown format: path
#   bytes: Unknown format: binary
#   SecretStr: Unknown format: password
#   Base64Bytes: Unknown format: base64
#   set: Unimplemented keys: ["uniqueItems"]
#   contentEncoding, no format: compiles
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet llguidance==1.9.1 pydantic==2.14.4 || exit 2
"$folder/venv/bin/python" - <<'PY'
import datetime
import decimal
import importlib.metadata
import json
import pathlib
import sys
import uuid

import pydantic
from llguidance import LLMatcher

works = {"datetime": datetime.datetime, "UUID": uuid.UUID, "HttpUrl": pydantic.HttpUrl, "Decimal": decimal.Decimal}
fails = {
    "Path": pathlib.Path,
    "bytes": bytes,
    "SecretStr": pydantic.SecretStr,
    "Base64Bytes": pydantic.Base64Bytes,
    "set": set[int],
}


def refusal(schema):
    """Why llguidance refuses the schema; nothing where it takes it."""
    return LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(json.dumps(schema)), None)


print("llguidance", importlib.metadata.version("llguidance"), "pydantic", pydantic.VERSION)
found = {}
for name, kind in (works | fails).items():
    schema = pydantic.create_model("Answer", field=(kind, ...)).model_json_schema()
    found[name] = not refusal(schema)
    print(f"{name}: {refusal(schema) or 'compiles'}")
ignored = not refusal({"type": "string", "contentEncoding": "base64"})
print("contentEncoding, no format:", "compiles" if ignored else "refused")
sys.exit(0 if {name for name in found if found[name]} == set(works) and ignored else 1)
PY
