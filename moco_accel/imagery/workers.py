"""Work spread over processes, results in the order of the work, a bounded amount of it in flight.

`concurrent.futures` has the like, but waits for ever when a worker is killed while it sends (Python 3.11), and leaves
workers behind when the main process is killed. Here each worker has a pipe of its own, which ends as either side does.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from moco_accel.common.errors import UserError
from moco_accel.scenes.rasters import gdal_settings

_AHEAD = 4  # results that may wait for an earlier one, beyond one for each worker

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(start: Callable[[], Callable[[Item], Result]], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Results of `start()(item)` in the order of `items`, whatever `workers` is; one worker is this process itself.

    `start` is called once in every process; it and the items must bear being sent there. Raises UserError when a
    worker is killed.
    """
    if workers == 1:
        with gdal_settings():
            yield from map(start(), items)
        return
    pool = _Pool(start, workers)
    try:
        yield from pool.run(items)
    finally:
        pool.close()


class _Pool:
    def __init__(self, start: Callable[[], Callable[[Any], Any]], workers: int) -> None:
        context = multiprocessing.get_context("spawn")  # GDAL and threads do not survive a fork
        self._idle: list[Connection] = []
        self._busy: dict[Connection, int] = {}
        self._processes = []
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, start), daemon=True)
            process.start()
            theirs.close()  # so that ours ends when the process does
            self._processes.append(process)
            self._idle.append(ours)

    def run(self, items: Iterable[Any]) -> Iterator[Any]:
        numbered, limit = enumerate(items), len(self._processes) + _AHEAD
        done: dict[int, Any] = {}
        turn, sent = 0, 0
        while True:
            while self._idle and sent - turn < limit and (item := next(numbered, None)):
                self._send(*item)
                sent += 1
            if turn in done:
                yield done.pop(turn)
                turn += 1
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
            raise _killed() from None

    def _receive(self) -> Iterator[tuple[int, Any]]:
        """Results that have come, at least one."""
        for connection in wait(list(self._busy)):
            assert isinstance(connection, Connection)
            try:
                failure, result = connection.recv()
            except (EOFError, OSError):
                raise _killed() from None
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


def _killed() -> UserError:
    return UserError("a worker was killed, most often for want of memory; --workers 1 takes the least")


def _serve(connection: Connection, start: Callable[[], Callable[[Any], Any]]) -> None:
    """Answer every item with (None, result) or (what went wrong, None), until the main process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to answer
    with gdal_settings():
        work = start()
        try:
            while True:
                connection.send(_answer(work, connection.recv()))
        except (EOFError, OSError):
            return


def _answer(work: Callable[[Any], Any], item: Any) -> tuple[UserError | str | None, Any]:
    try:
        return None, work(item)
    except UserError as error:
        return error, None
    except Exception:
        return traceback.format_exc(), None
