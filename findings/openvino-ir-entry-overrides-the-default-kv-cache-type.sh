#!/usr/bin/env bash
# An entry inside an IR silently overrides the CPU plugin's default type of the key-value cache.
#
# Expected: a model that is compiled without properties gets the plugin's defaults, as Core.get_property tells them: a
#   cache in u8.
# Instead: an entry runtime_options/KV_CACHE_PRECISION of the model wins over the default, though not over a property
#   that is given. optimum-intel writes f16 there for models that it did not quantize, so the same weights saved by
#   two tools get caches of two sizes, while Core.get_property says u8 for both.
# Versions: openvino 2026.4.1.
# Matters to: who promises memory or exactness for a cache that nobody configured.
# Output of 2026-11-30:
#   openvino 2026.4.1-22982-e213a147257-releases/2026/4
#   no entry: u8; entry f16: f16; entry f16 and property u8: u8; Core.get_property: u8
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet openvino==2026.4.1 openvino-telemetry==2025.2.0 numpy==2.4.6 || exit 2
cd "$folder"
HOME=$folder "$folder/venv/bin/python" - <<'PY'
import sys

import numpy as np
import openvino
from openvino import opset13

core = openvino.Core()
x = opset13.parameter([1, 4], np.float32)
model = openvino.Model([opset13.relu(x)], [x])


def cache_type(**properties):
    return core.compile_model("saved.xml", "CPU", properties).get_property("KV_CACHE_PRECISION").get_type_name()


openvino.save_model(model, "saved.xml")
plain = cache_type()
model.set_rt_info("f16", ["runtime_options", "KV_CACHE_PRECISION"])
openvino.save_model(model, "saved.xml")
entry, given = cache_type(), cache_type(KV_CACHE_PRECISION="u8")
said = core.get_property("CPU", "KV_CACHE_PRECISION").get_type_name()
print("openvino", openvino.__version__)
print(f"no entry: {plain}; entry f16: {entry}; entry f16 and property u8: {given}; Core.get_property: {said}")
sys.exit(0 if (plain, entry, given, said) == ("u8", "f16", "u8", "u8") else 1)
PY
