"""Turns a trained folder into one with int8 weights, small enough to ship, and back into one that transformers reads.

From the folder above this one: python -m correction.pack MODEL PACKED,
and back: python -m correction.pack --back PACKED MODEL
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS, PACKED = "model.safetensors", "weights.int8.safetensors"
BESIDE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
SCALE = ".scale"


def pack(model: Path, out: Path) -> None:
    """Write `out`: each matrix as int8 with one f32 scale per row (its largest weight is 127); rest as is."""
    packed = {}
    for name, weight in load_file(model / WEIGHTS).items():
        if weight.dim() == 2 and "relative" not in name:
            scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
            packed[name] = (weight / scale[:, None]).round().to(torch.int8)
            packed[name + SCALE] = scale
        else:
            packed[name] = weight
    _write(packed, model, out, PACKED)


def unpack(packed: Path, out: Path) -> None:
    """Write `out`, a folder with f32 weights that transformers and `pilotfish export` read."""
    given = load_file(packed / PACKED)
    weights = {
        name: weight.float() * given[name + SCALE][:, None] if name + SCALE in given else weight
        for name, weight in given.items()
        if not name.endswith(SCALE)
    }
    _write(weights, packed, out, WEIGHTS)


def _write(weights: dict[str, torch.Tensor], source: Path, out: Path, file: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name in BESIDE:
        if source != out:
            shutil.copyfile(source / name, out / name)
    temporary = out / (file + ".tmp")
    save_file(weights, temporary, metadata={"format": "pt"})
    temporary.replace(out / file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--back", action="store_true")
    options = parser.parse_args()
    (unpack if options.back else pack)(options.source, options.out)


if __name__ == "__main__":
    main()
