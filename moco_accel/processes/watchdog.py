"""Ends a run that cannot go on by itself: a process that dies or stalls takes the others with it, and all say which.

A thread in each process tells the first one, every second, what its process is at (`phases`), however busy that is;
the first one judges. It ends the process from outside: the main thread may wait for ever, in a read or for a card.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import statistics
import threading
import time
import traceback
from collections import deque
from contextlib import suppress
from dataclasses import asdict, replace
from multiprocessing import connection
from pathlib import Path
from types import TracebackType

from moco_accel.common.errors import UserError
from moco_accel.processes import diagnosis, heartbeats, stack_dump
from moco_accel.processes.control_group import Agreement
from moco_accel.processes.heartbeats import Beat, Link, Message
from moco_accel.processes.phases import DATA, START, enter, progress, waiting
from moco_accel.processes.signals import end_workers

_BEAT_SECONDS = 1.0
_LONGEST_TICK = 2.0  # more has passed only if this process, or all of the machine, was stopped in between
_WORTH_SAYING = 5.0
_LAST_WORDS_SECONDS = 10.0  # for a failing process to show its error before the others show theirs
_VERDICT_SECONDS = 15.0
_ENDED = 2
_LITTLE_MEMORY = 0.03


class Watch:
    """Watches all processes of a run, from within each; use it as a context. Make it on all of them at once."""

    def __init__(self, agreement: Agreement, rank: int, size: int, stall_seconds: float | None) -> None:
        self._rank, self._size, self._stall_seconds = rank, size, stall_seconds
        self._links: dict[int, Link] = heartbeats.connect(agreement, rank, size) if size > 1 else {}
        if size > 1 and not self._links and rank == 0:
            _write("processes cannot watch each other: no connection beside the tensors' can be made to MASTER_ADDR")
        self._beats = dict.fromkeys(self._links, Beat("", 0, progress.phase, 0.0, None))
        self._silent = dict.fromkeys(self._links, 0.0)
        self._failing: dict[int, tuple[str, float]] = {}  # what each said, and for how much longer it may speak
        self._have_said_bye: set[int] = set()
        self._steps: deque[float] = deque(maxlen=31)
        self._step_begun: float | None = None
        self._ticks, self._seconds = progress.ticks, 0.0
        self._host, self._kills_before, self._has_warned = heartbeats.this_host(), diagnosis.kills_for_memory(), False
        self._have_left, self._is_over, self._judges = threading.Event(), threading.Event(), True
        self._leaves = False

    def __enter__(self) -> Watch:
        enter(START)
        if not faulthandler.is_enabled():
            faulthandler.enable(file=2)
        faulthandler.register(signal.SIGUSR2, file=2)  # who no longer answers can still be asked where it is
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._leaves = True
            self._tell_all({"bye": True})
            with waiting():  # who ends too early seems to have died
                self._have_left.wait()
            self._is_over.set()
            return
        lost = bool(self._links) and diagnosis.is_lost_connection(error)
        if lost:
            time.sleep(_VERDICT_SECONDS)  # within which the thread ends this process, with the cause
        self._judges = False
        words = diagnosis.lost_worker(error, progress.reading(), self._killed_for_memory())
        self._tell_all({"failing": words.partition(";")[0] if words else diagnosis.in_words(error)})
        if self._links:  # the thread goes on and keeps the connections: they end when all has been said
            nowhere = Path(os.devnull).open("w")  # noqa: SIM115 - it has to stay open
            faulthandler.dump_traceback_later(2 * _VERDICT_SECONDS, exit=True, file=nowhere)
        else:
            self._is_over.set()
        if lost:
            raise UserError(f"another process can no longer be reached ({diagnosis.in_words(error)})") from None
        if words:
            raise UserError(words) from None

    def step_done(self) -> None:
        """Tells how long steps take, from the second one on."""
        now = time.perf_counter()
        if self._step_begun is not None:
            self._steps.append(now - self._step_begun)
        self._step_begun = now

    def _watch(self) -> None:
        try:
            self._watch_on()
        finally:
            self._have_left.set()  # whatever happens here, the run ends
            for link in self._links.values():
                link.socket.close()

    def _watch_on(self) -> None:
        last, turns = time.monotonic() - _BEAT_SECONDS, 0
        while not self._is_over.is_set():
            self._listen()
            now = time.monotonic()
            if now - last < _BEAT_SECONDS:
                continue
            turns, passed, last = turns + 1, min(now - last, _LONGEST_TICK), now
            self._tell_all(asdict(self._beat(passed)))
            if self._judges:
                self._age(passed)
                self._judge()
            if turns % 5 == 0 and os.environ.get("LOCAL_RANK", "0") == "0":
                self._warn_of_little_memory()

    def _listen(self) -> None:
        if self._have_said_bye >= set(self._links):
            self._have_left.set()
        if not self._links:
            self._is_over.wait(_BEAT_SECONDS)
            return
        ready = connection.wait([link.socket for link in self._links.values()], _BEAT_SECONDS)
        for rank, link in list(self._links.items()):
            if link.socket in ready:
                for message in link.receive():
                    self._take(rank, message)
                if not link.is_open:
                    del self._links[rank]
                    if self._judges and not self._leaves and rank not in self._have_said_bye:
                        self._lose(rank)

    def _take(self, rank: int, message: Message) -> None:
        if "end" in message and self._judges:
            self._end(message["end"], message["blamed"])
        elif "bye" in message:
            self._have_said_bye.add(rank)
            del self._beats[rank], self._silent[rank]
        elif "failing" in message:
            self._failing[rank] = (str(message["failing"]), _LAST_WORDS_SECONDS)
        elif "phase" in message and rank in self._beats:
            with suppress(TypeError):
                self._beats[rank], self._silent[rank] = Beat(**message), 0.0

    def _lose(self, rank: int) -> None:
        """A process has ended and not said that all is well."""
        beat, silent = self._beats[rank], self._silent[rank]
        if rank in self._failing:
            self._end(diagnosis.failed(self._name(rank), self._failing[rank][0]), [rank])
        most_silent = self._allowed("")
        if most_silent is not None and silent > most_silent / 2:  # another process has made an end of it
            _, line = diagnosis.stalled({rank: beat}, {rank: silent}, silent / 2, self._host) or ([], "")
            self._end(line, [rank])
        for_memory = beat.host == self._host and self._killed_for_memory()
        self._end(diagnosis.gone(self._name(rank), beat if beat.pid else None, for_memory), [rank])

    def _name(self, rank: int) -> str:
        hosts = {self._host, *(beat.host for beat in self._beats.values())}
        return diagnosis.named(rank, self._beats[rank].host, hosts)

    def _age(self, passed: float) -> None:
        self._silent = {rank: seconds + passed for rank, seconds in self._silent.items()}
        self._failing = {rank: (what, left - passed) for rank, (what, left) in self._failing.items()}

    def _judge(self) -> None:
        for rank, (what, left) in self._failing.items():
            if left < 0:
                self._end(diagnosis.failed(self._name(rank), what), [rank])
        if self._rank == 0:
            beats, silent = {0: self._beat(0.0), **self._beats}, {0: 0.0, **self._silent}
        else:  # all but the first one's silence is for that one to see
            beats = {rank: replace(beat, limit=None) for rank, beat in self._beats.items()}
            silent = self._silent
        most_silent = self._allowed("")
        for rank, seconds in silent.items():
            if most_silent is not None and seconds > most_silent and beats[rank].host == self._host:
                beats[rank] = replace(beats[rank], where=stack_dump.state_of(beats[rank].pid))
        if beats and (verdict := diagnosis.stalled(beats, silent, most_silent, self._host)):
            blamed, line = verdict
            mute = [rank for rank in blamed if most_silent is not None and silent[rank] > most_silent]
            self._end(line, blamed, mute)

    def _beat(self, passed: float) -> Beat:
        if progress.ticks != self._ticks:
            self._ticks, self._seconds = progress.ticks, 0.0
        else:
            self._seconds += passed
        where = stack_dump.where() if self._seconds >= _WORTH_SAYING else ""
        limit = self._allowed(progress.phase)
        return Beat(self._host, os.getpid(), progress.phase, self._seconds, limit, progress.waits, where)

    def _allowed(self, phase: str) -> float | None:
        if self._step_begun is None:
            return diagnosis.allowed_seconds(phase, self._stall_seconds, None)
        return diagnosis.allowed_seconds(phase, self._stall_seconds, statistics.median(self._steps or [0.0]))

    def _killed_for_memory(self) -> bool:
        return diagnosis.kills_for_memory() > self._kills_before

    def _tell_all(self, message: Message) -> None:
        for link in list(self._links.values()):
            link.send(message)

    def _end(self, line: str, blamed: list[int], mute: list[int] | None = None) -> None:
        """Says why, and ends this process; the first one tells the others to."""
        if self._rank in blamed:
            _write("".join(traceback.format_list(stack_dump.stack())))
        _write(f"error: {line}" if self._size == 1 else f"error on rank {self._rank}: {line}")
        for rank in mute or []:
            if self._beats[rank].host == self._host:
                stack_dump.make_an_end(self._beats[rank].pid)
        if self._rank in blamed and progress.phase == DATA:
            stack_dump.ask_workers()
        end_workers()
        if self._rank == 0:
            self._tell_end(line, blamed)
        os._exit(_ENDED)

    def _tell_end(self, line: str, blamed: list[int]) -> None:
        """And wait until the others are gone, or as long as that may take: see `__exit__`."""
        self._tell_all({"end": line, "blamed": blamed})
        deadline = time.monotonic() + _BEAT_SECONDS
        while any(link.is_open for link in self._links.values()) and time.monotonic() < deadline:
            for link in self._links.values():
                list(link.receive())
            time.sleep(_BEAT_SECONDS / 50)

    def _warn_of_little_memory(self) -> None:
        memory = diagnosis.host_memory()
        if memory and memory[0] < _LITTLE_MEMORY * memory[1] and not self._has_warned:
            self._has_warned = True
            _write(
                f"warning: host memory is nearly gone, {memory[0] // diagnosis.MIB} MiB of "
                f"{memory[1] // diagnosis.MIB}; the kernel will kill what takes most. Fewer data.num_workers take less"
            )


def _write(text: str) -> None:
    """Not through the console, which may be in the midst of a line."""
    begin = "\n" if os.isatty(2) else ""
    os.write(2, f"{begin}{text.rstrip()}\n".encode())
