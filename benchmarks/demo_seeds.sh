#!/bin/sh
# Train and evaluate the demo with three seeds; print one row per seed. Run `make demo` first, for its tiles.
set -e
for seed in 0 1 2; do
    run=runs/demo_seed_$seed
    rm -rf "$run"
    .venv/bin/accelerate launch --config_file accelerate_configs/cpu.yaml moco_accel/train.py \
        --recipe recipes/cpu_demo.yaml --output-dir "$run" --set run.seed=$seed >&2
    .venv/bin/moco-eval "$run" >&2
    .venv/bin/python -c "import json; print(json.dumps({'seed': $seed} | json.load(open('$run/summary.json'))))"
done
