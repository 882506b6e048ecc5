"""Explain in one line why a run ends by itself: a rank that stalls or dies, or a loader worker that is killed.

Show also where a process that makes no progress is: the main thread's position, and stacks that a signal requests.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist

from moco_accel.processes.heartbeats import Heartbeat
from moco_accel.processes.phases import CHECKPOINT, DATA, EVALUATION, START, progress

MIB = 1 << 20
_PACKAGE = Path(__file__).parents[1]
_DUMP_SECONDS = 0.5
_LONG_PHASES = {CHECKPOINT, EVALUATION}  # one piece of work each; the time depends on disks and labels
_HOW_TO_RESUME = "--resume continues from the last checkpoint"
_OUT_OF_HOST_MEMORY = "the kernel killed processes because host memory ran out"
_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (.+?)\. |exited unexpectedly)"
)
_WORKER_ERROR = re.compile(r"Caught (\w+) in DataLoader worker process (\d+)\.")
_MORE_SHARED_MEMORY = (
    "shared memory (/dev/shm) is full: docker run --shm-size=2g gives a container more, --set data.num_workers=0 works "
    "without it"
)
_MORE_OPEN_FILES = (
    "too many files are open: ulimit -n 65536 before the launch allows more, --set data.num_workers=0 needs fewer"
)
_LIMITS = {
    "unable to allocate shared memory": _MORE_SHARED_MEMORY,
    "Too many open files": _MORE_OPEN_FILES,
    "items of ancdata": _MORE_OPEN_FILES,
}
_CONNECTION = re.compile(r"gloo|NCCL|Connection (?:closed|reset)|Broken pipe")
_STATES = {
    "T": "it is stopped (SIGSTOP, or a debugger)",
    "t": "it is stopped (a debugger)",
    "D": "it is in the kernel, which waits for a disk or a driver",
}


def allowed_seconds(phase: str, stall_seconds: float | None, median_step_seconds: float | None) -> float:
    """Return how long a rank may be in `phase` without progress; infinity means no limit.

    The limit is `stall_seconds` or ten steps, whichever is longer. It is ten times as long for a checkpoint, an
    evaluation and the first step, whose duration is unknown, and four times for the first batch (workers start, disks
    are cold).

    Args:
        phase: Empty: how long a rank may send no heartbeat.
        stall_seconds: `run.stall_seconds` of the recipe; None: no limit.
        median_step_seconds: None before the first step is done.
    """
    if stall_seconds is None or phase == START:
        return math.inf
    limit = max(stall_seconds, 10 * (median_step_seconds or 0.0))
    is_first = median_step_seconds is None and phase != ""
    if phase in _LONG_PHASES or (is_first and phase != DATA):
        return 10 * limit
    return 4 * limit if is_first else limit


def find_stall(
    beats: dict[int, Heartbeat], silence: dict[int, float], max_silence: float, own_host: str
) -> tuple[list[int], str] | None:
    """Find out if the run has stopped making progress.

    Args:
        beats: The last heartbeat of each rank.
        silence: Seconds since each rank's last message.
        max_silence: Seconds without a message until a rank counts as stalled.
        own_host: `host_id` of the caller.

    Returns:
        The ranks to blame and the message for the user; None while the run makes progress.
    """
    hosts = {own_host, *(beat.host for beat in beats.values())}
    names = {rank: describe_rank(rank, beat.host, hosts) for rank, beat in beats.items()}
    silent = [rank for rank in beats if silence[rank] > max_silence]
    if silent:
        lost_hosts = {beats[rank].host for rank in silent} - {"", own_host}  # name their other silent ranks too
        silent += [r for r in beats if r not in silent and beats[r].host in lost_hosts and silence[r] > max_silence / 2]
        texts = [_describe_silent(names[r], beats[r], silence[r], beats[r].host in lost_hosts) for r in silent]
        return silent, f"{' and '.join(texts)}; {_HOW_TO_RESUME}"
    if all(beat.waits and beat.seconds > beat.limit for beat in beats.values()):
        return list(beats), _describe_deadlock(beats)
    busy = {rank: beat for rank, beat in beats.items() if not beat.waits}
    late = [rank for rank in busy if busy[rank].seconds > busy[rank].limit]
    if not late:
        return None
    # ranks that wait for each other on a GPU look busy, so any that is long without progress may be the cause
    suspects = sorted((r for r in busy if busy[r].seconds > busy[r].limit / 2), key=lambda r: -busy[r].seconds)
    return suspects, (
        f"{' and '.join(_describe_slow(names[r], busy[r]) for r in suspects)}, limit {busy[late[0]].limit:.0f} s; "
        f"{_HOW_TO_RESUME}, a larger run.stall_seconds waits longer"
    )


def describe_rank(rank: int, host: str, hosts: set[str]) -> str:
    """Name a rank, and its host if there are several hosts."""
    return f"rank {rank} on {host.partition(' ')[0]}" if host and len(hosts - {""}) > 1 else f"rank {rank}"


def _describe_slow(name: str, beat: Heartbeat) -> str:
    position = f" ({beat.position})" if beat.position else ""
    return f"{name} has stalled: {beat.seconds:.0f} s in {beat.phase}{position}"


def _describe_silent(name: str, beat: Heartbeat, seconds: float, is_lost_host: bool) -> str:
    what = "cannot be reached (its host or the network is down, or it hangs)" if is_lost_host else "has stalled"
    position = f"; {beat.position}" if beat.position else ""
    return f"{name} (process {beat.pid}) {what}: no heartbeat for {seconds:.0f} s, last phase {beat.phase}{position}"


def _describe_deadlock(beats: dict[int, Heartbeat]) -> str:
    phases = ", ".join(f"rank {rank} in {beat.phase}" for rank, beat in beats.items())
    return f"all ranks wait for each other ({phases}): this is a bug in moco-accel; {_HOW_TO_RESUME}"


def describe_lost_rank(name: str, beat: Heartbeat | None, killed_for_memory: bool) -> str:
    """Describe a rank, named by `describe_rank`, that closed its connection without a message."""
    which = f"{name} (process {beat.pid}, last phase {beat.phase})" if beat else name
    return f"{which} died: {_OUT_OF_HOST_MEMORY if killed_for_memory else 'killed, or crashed'}; {_HOW_TO_RESUME}"


def describe_failed_rank(name: str, error: str) -> str:
    """Describe a rank, named by `describe_rank`, that reported an error."""
    return f"{name} failed ({error}); see its error message; {_HOW_TO_RESUME}"


def describe_error(error: BaseException) -> str:
    """Return an error's type and the first line of its text."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}" if text else type(error).__name__


def is_lost_connection(error: BaseException) -> bool:
    """Check if `error` is the consequence of another rank's end."""
    is_of_gloo = type(error) is RuntimeError and _CONNECTION.search(str(error)) is not None
    return is_of_gloo or isinstance(error, dist.DistError)


def describe_lost_worker(
    error: BaseException, current_tiles: list[tuple[int, int]], killed_for_memory: bool
) -> str | None:
    """Describe the death of a loader worker that read one of `current_tiles`; None if `error` is a different one."""
    found = _WORKER.search(str(error)) if isinstance(error, RuntimeError) else None
    if found is None:
        return None
    process, how = found[1].strip(), found[2] or "killed, or crashed"
    at = "".join(f" at tile {tile}" for worker, tile in current_tiles if str(worker) == process)
    if "Bus error" in how:
        advice = _MORE_SHARED_MEMORY
    else:
        memory = read_host_memory()
        free = f" ({memory[0] // MIB} MiB of {memory[1] // MIB} are free now)" if memory else ""
        why = _OUT_OF_HOST_MEMORY if killed_for_memory else "most often because host memory ran out"
        advice = f"{why}{free}; fewer data.num_workers or a smaller data.shuffle_buffer_mib need less"
    return f"loader worker {process} died{at}: {how}; {advice}; {_HOW_TO_RESUME}"


def describe_loader_error(error: BaseException) -> tuple[str, str] | None:
    """Describe an error of a loader worker, or of passing on what it loaded; None if `error` is a different one.

    Returns:
        The message for the user, and the worker's traceback if the cause is unknown.
    """
    found, text = _WORKER_ERROR.match(str(error)), str(error)
    text = " ".join((text.rpartition(f"{found[1]}: ")[2] if found else text).split())
    if found and found[1] == "UserError":
        return text, ""
    reason = f"loader worker {found[2]} failed: {found[1]}: " if found else "tiles cannot be passed on: "
    for limit, remedy in _LIMITS.items():
        if limit in text:
            return f"{reason}{text[:300]}; {remedy}; {_HOW_TO_RESUME}", ""
    return (f"{reason}{text[:300]}; {_HOW_TO_RESUME}", str(error)) if found else None


def read_host_memory() -> tuple[int, int] | None:
    """Return available and total bytes; None where the system does not report them."""
    with suppress(OSError, KeyError, ValueError):
        rows = dict(row.split(":") for row in Path("/proc/meminfo").read_text().splitlines())
        available, total = (int(rows[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal"))
        return available, total
    return None


def count_oom_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory since it started."""
    with suppress(OSError, StopIteration, ValueError):
        rows = Path("/proc/vmstat").read_text().splitlines()
        return next(int(row.split()[1]) for row in rows if row.startswith("oom_kill "))
    return 0


def main_thread_stack() -> traceback.StackSummary:
    """Return the main thread's stack, from any thread."""
    return traceback.extract_stack(sys._current_frames()[threading.main_thread().ident or 0])


def describe_position() -> str:
    """Return where the main thread is, and which tiles are being read."""
    frames = main_thread_stack()
    ours = [frame for frame in frames if Path(frame.filename).is_relative_to(_PACKAGE)] or frames
    places = [f"{frame.name} at {Path(frame.filename).name}:{frame.lineno}" for frame in (ours[-1], frames[-1])]
    tiles = [f"process {process} reads tile {tile}" for process, tile in progress.current_tiles()]
    return ", ".join([*(tiles if progress.phase == DATA else []), *dict.fromkeys(places)])


def dump_worker_stacks() -> None:
    """Let loader workers print their stacks."""
    for worker in multiprocessing.active_children():
        with suppress(OSError):
            os.kill(worker.pid or 0, signal.SIGUSR2)
    time.sleep(_DUMP_SECONDS)


def kill_with_stack_dump(pid: int) -> None:
    """Kill a process of this machine, after it had time to print its stack."""
    with suppress(OSError):
        os.kill(pid, signal.SIGUSR2)
        time.sleep(_DUMP_SECONDS)
        os.kill(pid, signal.SIGKILL)


def describe_process_state(pid: int) -> str:
    """Return the state of a process of this host if it explains why no heartbeat comes, else an empty string."""
    with suppress(OSError, IndexError):
        return _STATES.get(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0], "")
    return ""
