"""Watchdog: end a run that cannot continue by itself. A rank that dies or stalls ends all ranks, with one message.

A thread on each rank sends its phase to rank 0 every second, whatever the main thread does. Rank 0 decides. The thread
ends the process with `os._exit`, because the main thread may wait forever, in a read or for a GPU.
"""

from __future__ import annotations

import faulthandler
import math
import os
import signal
import statistics
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict, replace
from multiprocessing import connection
from pathlib import Path
from types import TracebackType

from moco_accel.common.errors import UserError
from moco_accel.processes import diagnosis, heartbeats
from moco_accel.processes.control_group import ControlGroup
from moco_accel.processes.heartbeats import Heartbeat, HeartbeatLink, Message
from moco_accel.processes.phases import DATA, START, enter_phase, progress, waiting_for_peers
from moco_accel.processes.signals import kill_workers

_BEAT_SECONDS = 1.0
_MAX_TICK_SECONDS = 2.0  # if more has passed, this process, or the machine, was stopped in between
_POSITION_AFTER_SECONDS = 5.0
_ERROR_SECONDS = 10.0  # for a failing rank to show its error before the others show theirs
_VERDICT_SECONDS = 15.0
_EXIT_CODE = 2
_LOW_MEMORY_SHARE = 0.03
_SHARE_OF_FIRST_STEP = 0.2


class Watchdog:
    """Watches all ranks of a run from a thread on each. Create it on all ranks at once, and use it as a context.

    Args:
        stall_seconds: `run.stall_seconds` of the recipe; None: no limit.
    """

    def __init__(self, control_group: ControlGroup, rank: int, size: int, stall_seconds: float | None) -> None:
        self._rank, self._size, self._stall_seconds = rank, size, stall_seconds
        self._links: dict[int, HeartbeatLink] = heartbeats.connect_ranks(control_group, rank, size) if size > 1 else {}
        if size > 1 and not self._links and rank == 0:
            _write("ranks cannot watch each other: no connection for heartbeats can be made to MASTER_ADDR")
        self._beats = dict.fromkeys(self._links, Heartbeat("", 0, progress.phase, 0.0, math.inf))
        self._silence = dict.fromkeys(self._links, 0.0)
        self._failing: dict[int, tuple[str, float]] = {}  # each one's error, and seconds left to show it
        self._finished: set[int] = set()
        self._steps: deque[float] = deque(maxlen=31)
        self._step_begun: float | None = None
        self._ticks, self._seconds = progress.ticks, 0.0
        self._host, self._kills_before, self._has_warned = heartbeats.host_id(), diagnosis.count_oom_kills(), False
        self._all_finished, self._is_over, self._judges = threading.Event(), threading.Event(), True
        self._is_leaving = False

    def __enter__(self) -> Watchdog:
        enter_phase(START)
        if not faulthandler.is_enabled():
            faulthandler.enable(file=2)
        faulthandler.register(signal.SIGUSR2, file=2)  # a process that hangs can still be asked for its stack
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._is_leaving = True
            self._send_all({"bye": True})
            with waiting_for_peers():  # a rank that ends before the others seems to have died
                self._all_finished.wait()
            self._is_over.set()
            return
        lost_connection = bool(self._links) and diagnosis.is_lost_connection(error)
        if lost_connection:
            time.sleep(_VERDICT_SECONDS)  # within it, the thread ends this process with the cause
        self._judges = False
        message = diagnosis.describe_lost_worker(error, progress.current_tiles(), self._killed_for_memory())
        if message is None and (explained := diagnosis.describe_loader_error(error)):
            message, worker_traceback = explained
            if worker_traceback:
                _write(worker_traceback)
        self._send_all({"failing": message.partition(";")[0] if message else diagnosis.describe_error(error)})
        if self._links:  # the thread keeps the connections open until this process has shown its error
            nowhere = Path(os.devnull).open("w")  # noqa: SIM115 - it has to stay open
            faulthandler.dump_traceback_later(2 * _VERDICT_SECONDS, exit=True, file=nowhere)
        else:
            self._is_over.set()
        if lost_connection:
            raise UserError(f"another rank can no longer be reached ({diagnosis.describe_error(error)})") from None
        if message:
            raise UserError(message) from None

    def begin_steps(self) -> None:
        """Record the start of the first optimizer step; limits depend on how long steps take."""
        self._step_begun = time.perf_counter()

    def record_step(self) -> None:
        """Record the end of an optimizer step."""
        now = time.perf_counter()
        if self._step_begun is not None:
            # the first one compiles and warms up: later ones take less, and its share stands for them
            self._steps.append((now - self._step_begun) * (1.0 if self._steps else _SHARE_OF_FIRST_STEP))
        self._step_begun = now

    def _watch(self) -> None:
        try:
            self._run_thread()
        finally:
            self._all_finished.set()  # an error here must not keep the run from ending
            for link in self._links.values():
                link.socket.close()

    def _run_thread(self) -> None:
        last, turns = time.monotonic() - _BEAT_SECONDS, 0
        while not self._is_over.is_set():
            self._receive()
            now = time.monotonic()
            if now - last < _BEAT_SECONDS:
                continue
            turns, passed, last = turns + 1, min(now - last, _MAX_TICK_SECONDS), now
            self._send_all(asdict(self._own_beat(passed)))
            if self._judges:
                self._silence = {rank: seconds + passed for rank, seconds in self._silence.items()}
                self._failing = {rank: (error, left - passed) for rank, (error, left) in self._failing.items()}
                self._end_if_stalled()
            if turns % 5 == 0 and os.environ.get("LOCAL_RANK", "0") == "0":
                self._warn_of_low_memory()

    def _receive(self) -> None:
        if self._finished >= set(self._links):
            self._all_finished.set()
        if not self._links:
            self._is_over.wait(_BEAT_SECONDS)
            return
        ready = connection.wait([link.socket for link in self._links.values()], _BEAT_SECONDS)
        for rank, link in list(self._links.items()):
            if link.socket in ready:
                for message in link.receive():
                    self._handle(rank, message)
                if not link.is_open:
                    del self._links[rank]
                    if self._judges and not self._is_leaving and rank not in self._finished:
                        self._end_after_loss(rank)

    def _handle(self, rank: int, message: Message) -> None:
        if "end" in message and self._judges:
            self._end(message["end"], message["blamed"])
        elif "bye" in message:
            self._finished.add(rank)
            del self._beats[rank], self._silence[rank]
        elif "failing" in message:
            self._failing[rank] = (str(message["failing"]), _ERROR_SECONDS)
        elif "phase" in message and rank in self._beats:
            with suppress(TypeError):
                self._beats[rank], self._silence[rank] = Heartbeat(**message), 0.0

    def _end_after_loss(self, rank: int) -> None:
        """End the run after a rank closed its connection without finishing."""
        beat, silence = self._beats[rank], self._silence[rank]
        if rank in self._failing:
            self._end(diagnosis.describe_failed_rank(self._name(rank), self._failing[rank][0]), [rank])
        max_silence = self._allowed("")
        if silence > max_silence / 2:  # it had stalled, and another rank has killed it
            _, line = diagnosis.find_stall({rank: beat}, {rank: silence}, silence / 2, self._host) or ([], "")
            self._end(line, [rank])
        for_memory = beat.host == self._host and self._killed_for_memory()
        self._end(diagnosis.describe_lost_rank(self._name(rank), beat if beat.pid else None, for_memory), [rank])

    def _name(self, rank: int) -> str:
        hosts = {self._host, *(beat.host for beat in self._beats.values())}
        return diagnosis.describe_rank(rank, self._beats[rank].host, hosts)

    def _end_if_stalled(self) -> None:
        for rank, (error, left) in self._failing.items():
            if left < 0:
                self._end(diagnosis.describe_failed_rank(self._name(rank), error), [rank])
        if self._rank == 0:
            beats, silence = {0: self._own_beat(0.0), **self._beats}, {0: 0.0, **self._silence}
        else:  # the other ranks only check that rank 0 still sends
            beats = {rank: replace(beat, limit=math.inf) for rank, beat in self._beats.items()}
            silence = self._silence
        max_silence = self._allowed("")
        for rank, seconds in silence.items():
            if seconds > max_silence and beats[rank].host == self._host:
                beats[rank] = replace(beats[rank], position=diagnosis.describe_process_state(beats[rank].pid))
        if beats and (stall := diagnosis.find_stall(beats, silence, max_silence, self._host)):
            blamed, line = stall
            silent = [rank for rank in blamed if silence[rank] > max_silence]
            self._end(line, blamed, silent)

    def _own_beat(self, passed: float) -> Heartbeat:
        if progress.ticks != self._ticks:
            self._ticks, self._seconds = progress.ticks, 0.0
        else:
            self._seconds += passed
        position = diagnosis.describe_position() if self._seconds >= _POSITION_AFTER_SECONDS else ""
        limit = self._allowed(progress.phase)
        return Heartbeat(self._host, os.getpid(), progress.phase, self._seconds, limit, progress.waits, position)

    def _allowed(self, phase: str) -> float:
        median = statistics.median(self._steps) if self._steps else None
        return diagnosis.allowed_seconds(phase, self._stall_seconds, median)

    def _killed_for_memory(self) -> bool:
        return diagnosis.count_oom_kills() > self._kills_before

    def _send_all(self, message: Message) -> None:
        for link in list(self._links.values()):
            link.send(message)

    def _end(self, line: str, blamed: list[int], silent: list[int] | None = None) -> None:
        """Print why the run ends, and end this process; rank 0 makes the others do the same."""
        if self._rank in blamed:
            _write("".join(diagnosis.main_thread_stack().format()))
        _write(f"error: {line}" if self._size == 1 else f"error on rank {self._rank}: {line}")
        for rank in silent or []:
            if self._beats[rank].host == self._host:
                diagnosis.kill_with_stack_dump(self._beats[rank].pid)
        if self._rank in blamed and progress.phase == DATA:
            diagnosis.dump_worker_stacks()
        kill_workers()
        if self._rank == 0:
            self._end_others(line, blamed)
        os._exit(_EXIT_CODE)

    def _end_others(self, line: str, blamed: list[int]) -> None:
        """Send the message to the other ranks, and wait up to a second until they have ended."""
        self._send_all({"end": line, "blamed": blamed})
        deadline = time.monotonic() + _BEAT_SECONDS
        while any(link.is_open for link in self._links.values()) and time.monotonic() < deadline:
            for link in self._links.values():
                list(link.receive())
            time.sleep(_BEAT_SECONDS / 50)

    def _warn_of_low_memory(self) -> None:
        memory = diagnosis.read_host_memory()
        if memory and memory[0] < _LOW_MEMORY_SHARE * memory[1] and not self._has_warned:
            self._has_warned = True
            _write(
                f"warning: host memory is nearly used up, {memory[0] // diagnosis.MIB} MiB of "
                f"{memory[1] // diagnosis.MIB} are free; the kernel will kill the largest process. Fewer "
                "data.num_workers need less"
            )


def _write(text: str) -> None:
    """Write to stderr directly; the console may be in the middle of a line."""
    begin = "\n" if os.isatty(2) else ""
    os.write(2, f"{begin}{text.rstrip()}\n".encode())
