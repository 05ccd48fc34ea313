"""Where tests find each other and the real weights."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # real_weights.py and friends are plain modules

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("PILOTFISH_ENGINE", "onnx")  # tests that try out engines say so
os.environ.setdefault("PILOTFISH_THREADS", "2")
