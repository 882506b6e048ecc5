#!/usr/bin/env bash
# Train the demo's recipe at its lr and at 100 times that; print loss, features and kNN of each evaluation. Run `make demo` first.
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

from moco_accel.checkpoints.run_log import read_run_log
from moco_accel.training.run_health import assess_health

log = read_run_log(Path(sys.argv[1]))
for evaluation in log.evaluations:
    row = max((row for row in log.rows if row["step"] < evaluation["step"]), key=lambda row: row["step"])
    found = assess_health(log.recipe, row, evaluation)
    print(json.dumps({"lr": log.recipe.optimizer.lr, "loss": row["loss"], "level": found.level, "text": found.text, **evaluation}))
PYTHON
done
