"""The commands that build llama.cpp for this processor, at first and anew."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from ...runtime.install import install_command
from ..common.packages import reinstall

_AVX512 = ("avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw")  # what GGML_AVX512 takes for granted
_BEYOND = {"avx512vbmi": "VBMI", "avx512_vnni": "VNNI", "avx512_bf16": "BF16"}


def build_flags() -> str:
    """Flags for CMake. Not GGML_NATIVE on x86: gcc 12 then makes AMX kernels that end in an illegal instruction."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "-DLLAVA_BUILD=OFF"
    flags, here = ["-DGGML_NATIVE=OFF", "-DLLAVA_BUILD=OFF"], _processor_flags()
    if here.issuperset(_AVX512):
        flags += ["-DGGML_AVX512=ON", *(f"-DGGML_AVX512_{name}=ON" for flag, name in _BEYOND.items() if flag in here)]
    return " ".join(flags)


def build_command() -> str:
    """What to type, in the shell of this system."""
    return _with_flags(install_command("llamacpp"))


def rebuild_command() -> str:
    """The same where a build is installed that does not run: pip compiles instead of taking one that it kept."""
    return _with_flags(reinstall("llama_cpp", "--no-binary {name}"))


def _with_flags(command: str) -> str:
    return (
        f"$env:CMAKE_ARGS='{build_flags()}'; {command}"
        if os.name == "nt"
        else f"CMAKE_ARGS='{build_flags()}' {command}"
    )


def _processor_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:  # not Linux: the flags that every processor of the last ten years has
        return set()
    return {flag for line in lines if line.startswith("flags") for flag in line.partition(":")[2].split()}
