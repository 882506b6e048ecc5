"""Why a run ends by itself, in one line each: a process that stalls or is gone, a loader worker that was killed."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist

from moco_accel.processes.heartbeats import Beat
from moco_accel.processes.phases import CHECKPOINT, DATA, EVALUATION, START

MIB = 1 << 20
_LONG = {CHECKPOINT, EVALUATION}  # of one piece each, and as long as disks and labels ask for
_GO_ON = "--resume goes on from the last checkpoint"
_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: (.+?)\. |exited unexpectedly)"
)
_CONNECTION = re.compile(r"gloo|NCCL|Connection (?:closed|reset)|Broken pipe")


def allowed_seconds(phase: str, stall_seconds: float | None, median_step_seconds: float | None) -> float | None:
    """How long a process may be in `phase` without getting on; None: as long as it likes.

    `stall_seconds`, or ten steps where that is more; four times as much for the first batch (workers start, disks are
    cold), ten times for what is done in one piece. `median_step_seconds` is None before the first step is done.
    """
    if stall_seconds is None or phase == START:
        return None
    limit = max(stall_seconds, 10 * (median_step_seconds or 0.0))
    if phase in _LONG:
        return 10 * limit
    return 4 * limit if phase == DATA and median_step_seconds is None else limit


def stalled(
    beats: dict[int, Beat], silent: dict[int, float], most_silent: float | None, here: str | None = None
) -> tuple[list[int], str] | None:
    """Whether a run stands still. `silent`: seconds since each rank last said anything; `here`: who judges' host."""
    here = next(iter(beats.values())).host if here is None else here
    names = {
        rank: named(rank, beat.host, {here, *(each.host for each in beats.values())}) for rank, beat in beats.items()
    }
    mute = [rank for rank in beats if most_silent is not None and silent[rank] > most_silent]
    if mute and most_silent is not None:
        away = {beats[rank].host for rank in mute} - {"", here}  # with one of a host, all are lost that fall silent
        mute += [r for r in beats if r not in mute and beats[r].host in away and silent[r] > most_silent / 2]
        said = [_mute(names[r], beats[r], silent[r], beats[r].host in away) for r in mute]
        return mute, f"{' and '.join(said)}; {_GO_ON}"
    if all(beat.waits and _lateness(beat) > 1 for beat in beats.values()):
        return list(beats), _stuck(beats)
    busy = {rank: beat for rank, beat in beats.items() if not beat.waits}
    late = [rank for rank in busy if _lateness(busy[rank]) > 1]
    if not late:
        return None
    limit = beats[late[0]].limit
    # where they wait for each other on a card, which no phase tells, it may be any that stands still
    still = sorted((rank for rank in busy if _lateness(busy[rank]) > 0.5), key=lambda rank: -busy[rank].seconds)
    return still, (
        f"{' and '.join(_slow(names[rank], busy[rank]) for rank in still)}, where {limit:.0f} s are allowed; {_GO_ON}, "
        "a larger run.stall_seconds waits longer"
    )


def named(rank: int, host: str, hosts: set[str]) -> str:
    """A rank, and its host if there are several."""
    return f"rank {rank} on {host.partition(' ')[0]}" if host and len(hosts - {""}) > 1 else f"rank {rank}"


def _lateness(beat: Beat) -> float:
    return beat.seconds / beat.limit if beat.limit else 0.0


def _slow(name: str, beat: Beat) -> str:
    where = f" ({beat.where})" if beat.where else ""
    return f"{name} has stalled: {beat.seconds:.0f} s in {beat.phase}{where}"


def _mute(name: str, beat: Beat, seconds: float, is_away: bool) -> str:
    what = "cannot be reached (its host or the network is down, or it hangs)" if is_away else "has stalled"
    where = f"; {beat.where}" if beat.where else ""
    return f"{name} (process {beat.pid}) {what}: no word for {seconds:.0f} s, the last from {beat.phase}{where}"


def _stuck(beats: dict[int, Beat]) -> str:
    phases = ", ".join(f"rank {rank} in {beat.phase}" for rank, beat in beats.items())
    return f"all ranks wait for each other ({phases}) and none gets on: this is a mistake of ours; {_GO_ON}"


def gone(name: str, beat: Beat | None, killed_for_memory: bool) -> str:
    """Of a process that has closed its connection without a word; `name`: see `named`."""
    which = f"{name} (process {beat.pid}, last in {beat.phase})" if beat else name
    why = "the kernel has killed for want of host memory" if killed_for_memory else "killed, or crashed"
    return f"{which} is gone: {why}; {_GO_ON}"


def failed(name: str, what: str) -> str:
    """Of a process that has said that it ends with an error."""
    return f"{name} failed ({what}), as its own error says; {_GO_ON}"


def in_words(error: BaseException) -> str:
    """An error in one line."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:300]}" if text else type(error).__name__


def is_lost_connection(error: BaseException) -> bool:
    """Whether it is another process's end, and none of this one's own doing."""
    if isinstance(error, dist.DistError):
        return True
    return type(error) is RuntimeError and bool(_CONNECTION.search(str(error)))


def lost_worker(error: BaseException, reading: list[tuple[int, int]], killed_for_memory: bool) -> str | None:
    """What to say of a loader worker that died; None if `error` is another one. `reading`: see `phases`."""
    found = _WORKER.search(str(error)) if isinstance(error, RuntimeError) else None
    if found is None:
        return None
    process, how = found[1].strip(), found[2] or "killed, or crashed"
    at = "".join(f", at tile {tile}" for worker, tile in reading if str(worker) == process)
    if "Bus error" in how:
        helps = "shared memory is full: a larger /dev/shm (docker run --shm-size) helps, or fewer data.num_workers"
    else:
        who = (
            "the kernel has killed for want of host memory"
            if killed_for_memory
            else "most often for want of host memory"
        )
        memory = host_memory()
        free = f" ({memory[0] // MIB} MiB of {memory[1] // MIB} are free now)" if memory else ""
        helps = f"{who}{free}; fewer data.num_workers or a smaller data.shuffle_buffer_mib take less"
    return f"loader worker {process} is gone{at}: {how}; {helps}; {_GO_ON}"


def host_memory() -> tuple[int, int] | None:
    """Available and total bytes; None where the system does not tell."""
    with suppress(OSError, KeyError, ValueError):
        rows = dict(row.split(":") for row in Path("/proc/meminfo").read_text().splitlines())
        available, total = (int(rows[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal"))
        return available, total
    return None


def kills_for_memory() -> int:
    """How many processes the kernel has killed for want of memory, since it started."""
    with suppress(OSError, StopIteration, ValueError):
        rows = Path("/proc/vmstat").read_text().splitlines()
        return next(int(row.split()[1]) for row in rows if row.startswith("oom_kill "))
    return 0
