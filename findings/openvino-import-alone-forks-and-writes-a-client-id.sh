#!/usr/bin/env bash
# "import openvino" alone forks the process, starts a thread and writes a client id into the home folder.
#
# Expected: importing a library loads it. Reports of usage, if any, belong to its command-line tools.
# Instead: the import starts a thread, forks the process to send an event, and puts a file with an id under ~/intel.
#   Nothing is converted or compiled, nobody was asked. Here the home folder is a temporary one, so what is written
#   goes with it.
# Versions: openvino 2026.4.1 with its hard dependency openvino-telemetry 2025.2.0.
# Matters to: programs that import engines on a user's behalf: a fork in a process that already runs threads of
#   another engine, or that counts its children, is theirs to explain.
# Output of 2026-11-30:
#   openvino 2026.4.1-22982-e213a147257-releases/2026/4
#   after the import: forks 1, threads started 1, files in the home folder ['intel/openvino_ga_cid', 'intel/stats']
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv" && "$folder/venv/bin/pip" install --quiet openvino==2026.4.1 \
    openvino-telemetry==2025.2.0 numpy==2.4.6 || exit 2
mkdir "$folder/home"
HOME=$folder/home "$folder/venv/bin/python" - <<'PY'
import os
import sys
import threading
import time
from pathlib import Path

forks = []
os.register_at_fork(before=lambda: forks.append(1))
before = threading.active_count()

import openvino

threads = threading.active_count() - before
for _ in range(200):  # the fork is the thread's, so it may come a moment later
    if forks:
        break
    time.sleep(0.1)
files = sorted(str(path.relative_to(Path.home())) for path in Path.home().rglob("*") if path.is_file())
print("openvino", openvino.__version__)
print(f"after the import: forks {len(forks)}, threads started {threads}, files in the home folder {files}")
sys.exit(0 if forks and files else 1)
PY
