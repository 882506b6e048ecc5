"""Fake `srun` and `scontrol` for one machine; the name of the file decides which.

`srun` starts SLURM_NTASKS tasks, and ends all when one fails. If STOP_WHEN names a file, the tasks get SIGTERM once it
is not empty, as at the end of a job's time, unless the job was queued again before.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def srun(words: list[str]) -> int:
    command = words[next(place for place, word in enumerate(words) if not word.startswith("--")) :]
    stop_when = Path(os.environ.get("STOP_WHEN", os.devnull))  # which is not a file
    stopping = not Path(os.environ["REQUEUED"]).exists()
    numbers = [{"SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)} for n in range(int(os.environ["SLURM_NTASKS"]))]
    tasks = [subprocess.Popen(command, env=os.environ | number) for number in numbers]
    code = 0
    while any(task.poll() is None for task in tasks):
        code = code or next((task.returncode for task in tasks if task.poll()), 0)
        if code or (stopping and stop_when.is_file() and stop_when.stat().st_size):
            stopping = False
            for task in tasks:
                task.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    return code or max(abs(task.returncode) for task in tasks)


def scontrol(words: list[str]) -> int:
    if words[:2] == ["show", "hostnames"]:
        print("127.0.0.1")
        return 0
    assert words[0] == "requeue", words
    with Path(os.environ["REQUEUED"]).open("a") as file:
        file.write(f"{words[1]}\n")
    return 0


if __name__ == "__main__":
    sys.exit({"srun": srun, "scontrol": scontrol}[Path(sys.argv[0]).name](sys.argv[1:]))
