#!/usr/bin/env bash
# The demo's recipe at its lr and at a hundred times that: what loss, features and kNN say. After `make demo`.
#   benchmarks/collapse.sh > benchmarks/results/collapse.jsonl
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mktemp -d)
for lr in 4e-3 0.4; do
  .venv/bin/python moco_accel/train.py --recipe recipes/cpu_demo.yaml --output-dir "$out/$lr" \
    --set optimizer.base_lr=$lr --set optimizer.lr=$lr >&2
  .venv/bin/python - "$out/$lr" <<'PYTHON'
import json, sys
from pathlib import Path

from moco_accel.run_health import verdict
from moco_accel.run_rows import read_logged

logged = read_logged(Path(sys.argv[1]))
for examined in logged.evaluations:
    row = max((row for row in logged.rows if row["step"] < examined["step"]), key=lambda row: row["step"])
    found = verdict(logged.recipe, row, examined)
    print(json.dumps({"lr": logged.recipe.optimizer.lr, "loss": row["loss"], "level": found.level, "text": found.text, **examined}))
PYTHON
done
