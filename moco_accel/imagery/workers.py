"""Map a function over items in worker processes; results keep the order of the items, and few wait in memory.

`concurrent.futures` hangs when a worker is killed while it sends (Python 3.11), and leaves workers behind when the main
process is killed. Here each worker has its own pipe, which closes when either side ends.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from moco_accel.common.errors import UserError
from moco_accel.images.gdal import gdal_settings

_MAX_WAITING = 4  # results that may wait for an earlier one, beyond one for each worker
_KILLED = "a worker was killed, most often because memory ran out; --workers 1 needs the least memory"

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yield `function(item)` in the order of `items`.

    Args:
        function: Each process gets a copy; it must be picklable, as the items must be.
        workers: Number of processes; 1 runs in this process.

    Raises:
        UserError: If the function raises it, or a worker is killed.
    """
    if workers == 1:
        with gdal_settings():
            yield from map(function, items)
        return
    with closing(_WorkerPool(function, workers)) as pool:
        yield from pool.map(items)


class _WorkerPool:
    def __init__(self, function: Callable[[Any], Any], workers: int) -> None:
        context = multiprocessing.get_context("spawn")  # GDAL and threads do not survive a fork
        self._idle: list[Connection] = []
        self._busy: dict[Connection, int] = {}
        self._processes = []
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_run_worker, args=(theirs, function), daemon=True)
            process.start()
            theirs.close()  # so that ours closes with the process
            self._processes.append(process)
            self._idle.append(ours)

    def map(self, items: Iterable[Any]) -> Iterator[Any]:
        numbered, limit = enumerate(items), len(self._processes) + _MAX_WAITING
        done: dict[int, Any] = {}
        next_result, num_sent = 0, 0
        while True:
            while self._idle and num_sent - next_result < limit and (item := next(numbered, None)):
                self._send(*item)
                num_sent += 1
            if next_result in done:
                yield done.pop(next_result)
                next_result += 1
            elif self._busy:
                done |= dict(self._receive())
            else:
                return

    def _send(self, number: int, item: Any) -> None:
        connection = self._idle.pop()
        self._busy[connection] = number
        try:
            connection.send(item)
        except OSError:
            raise UserError(_KILLED) from None

    def _receive(self) -> Iterator[tuple[int, Any]]:
        """Wait for at least one result."""
        for connection in wait(list(self._busy)):
            assert isinstance(connection, Connection)
            try:
                failure, result = connection.recv()
            except (EOFError, OSError):
                raise UserError(_KILLED) from None
            if isinstance(failure, UserError):
                raise failure
            if failure:
                raise RuntimeError(f"a worker failed:\n{failure}")
            self._idle.append(connection)
            yield self._busy.pop(connection), result

    def close(self) -> None:
        for connection in (*self._idle, *self._busy):
            connection.close()
        for process in self._processes:
            process.terminate()
            process.join()
            process.close()


def _run_worker(connection: Connection, function: Callable[[Any], Any]) -> None:
    """Answer each item with (None, result) or (error, None) until the main process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process handles Ctrl-C
    with gdal_settings(), suppress(EOFError, OSError):
        while True:
            item = connection.recv()
            answer: tuple[UserError | str | None, Any]
            try:
                answer = None, function(item)
            except UserError as error:
                answer = error, None
            except Exception:
                answer = traceback.format_exc(), None
            connection.send(answer)
