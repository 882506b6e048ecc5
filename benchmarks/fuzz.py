"""Fuzz recipes, tiles and shards: `python benchmarks/fuzz.py` writes results/fuzz.json."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from hypothesis import HealthCheck, given, settings
from support.hostile_worker import Result, all_sources, all_tiles, run_kinds
from support.mutated_recipes import MUTATED, OVERRIDES, load_or_refuse

EXAMPLES = 5000


def recipes() -> dict[str, object]:
    """Try 5,000 mutated recipes and 5,000 odd overrides; fail if one is neither loaded nor refused in one line."""
    figures: dict[str, object] = {}
    quiet = settings(
        max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        counts: Counter[str] = Counter()
        seconds: list[float] = []

        def count(overrides: list[str] | None) -> None:
            start = time.process_time()
            counts[load_or_refuse(path, overrides)] += 1
            seconds.append(time.process_time() - start)

        @quiet
        @given(MUTATED)
        def mutated(raw: bytes) -> None:
            path.write_bytes(raw)
            count(None)

        @quiet
        @given(OVERRIDES)
        def overridden(override: str) -> None:
            path.write_bytes(Path("recipes/dual8gb.yaml").read_bytes())
            count([override])

        for name, work in (("recipes", mutated), ("overrides", overridden)):
            counts.clear()
            seconds.clear()
            work()
            figures[name] = {**counts, "tried": len(seconds), "longest_cpu_seconds": round(max(seconds), 2)}
    return figures


def summary(results: list[Result], resident: list[list[int]]) -> dict[str, object]:
    slowest = max(results, key=lambda result: result.seconds)
    largest = max(results, key=lambda result: result.peak_mib)
    return {
        "kinds": len(results),
        **Counter(result.outcome.split()[0] for result in results),
        "slowest": [slowest.name, slowest.seconds],
        "most_mib": [largest.name, largest.peak_mib],
        "resident_mib_after_each_repeat": resident,
    }


def main() -> None:
    figures = recipes()
    sources = list(all_sources())
    sources += [f"{name} streamed" for name in sources if name.startswith("parquet")]
    figures["tiles"] = summary(*run_kinds(list(all_tiles()), "tiles"))
    figures["sources"] = summary(*run_kinds(sources, "sources"))
    text = json.dumps(figures, indent=2)
    (Path(__file__).parent / "results" / "fuzz.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
