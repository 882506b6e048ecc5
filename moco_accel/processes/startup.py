"""Start the ranks: they meet at the rendezvous, compare recipe and code, and connect for collectives.

Each rank writes its `launch_info` into torch's store at MASTER_ADDR and MASTER_PORT. Rank 0 compares them, and names on
every rank those that never connected, for which a launch would wait in silence, or that differ.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from rich.markup import escape

from moco_accel.common.errors import UserError
from moco_accel.processes import diagnosis, launch_consistency
from moco_accel.processes.control_group import TIMEOUT, ControlGroup
from moco_accel.processes.launch_checks import Launch, check_machine, check_trackers
from moco_accel.processes.launch_consistency import LaunchInfo, describe_ranks, launch_info
from moco_accel.processes.rendezvous import LOG_AFTER_SECONDS, Log, Store, choose_interface, open_store
from moco_accel.recipe.launch_command import LaunchOptions
from moco_accel.recipe.schema import Recipe

_MISTAKE_SECONDS = 10.0  # in which a rank that cannot start reports it to the others
_VERDICT_SECONDS = 15.0
_HEARD_SECONDS = 5.0
_BROKEN = "broken"
_EXIT_CODE = 2
_POLL_SECONDS = 0.05


def start_processes(recipe: Recipe, options: LaunchOptions, log: Log) -> tuple[PartialState, ControlGroup]:
    """Check the launch, and connect its ranks.

    Args:
        log: Prints a line of rich markup.

    Raises:
        UserError: On every rank, if the launch does not fit the recipe, a rank differs or does not connect in time.
    """
    launch = Launch.from_environment()
    mistake: UserError | None = None
    try:
        check_machine(recipe, options, launch)
        check_trackers(recipe)
    except UserError as error:
        mistake = error
    if launch.world_size > 1:
        return _connect(launch, _rendezvous(recipe, options, launch, mistake, log))
    if mistake is not None:
        raise mistake
    return PartialState(cpu=not torch.cuda.is_available()), ControlGroup()


def _connect(launch: Launch, store: Store) -> tuple[PartialState, ControlGroup]:
    choose_interface(launch.address)
    own_store = dist.PrefixStore("processes", store)  # type: ignore[attr-defined]
    group: dict[str, Any] = {"rank": launch.rank, "world_size": launch.world_size, "store": own_store}
    with _exiting_if_peer_gives_up(store):
        try:
            processes = PartialState(cpu=not torch.cuda.is_available(), **group)
            assert processes.num_processes == launch.world_size
            return processes, ControlGroup()
        except RuntimeError as error:
            if not diagnosis.is_lost_connection(error):
                raise
            message = (
                f"rank {launch.rank} reached the rendezvous at {launch.address} and cannot connect to the other ranks "
                f"for tensors ({diagnosis.describe_error(error)}); no firewall may block ports between the nodes, and "
                "GLOO_SOCKET_IFNAME (for GPUs also NCCL_SOCKET_IFNAME) names the network interface, such as eth0, by "
                "which they reach each other"
            )
            store.set(_BROKEN, message)
            time.sleep(_HEARD_SECONDS)  # the store may end with this process, so leave time to read it
            raise UserError(message) from None


@contextmanager
def _exiting_if_peer_gives_up(store: Store) -> Iterator[None]:
    """Exit once another rank could not connect; gloo would keep trying to reach it for half an hour."""
    done, own_store = threading.Event(), store.clone()  # the connection of `store` may be busy for as long

    def exit_if_broken() -> None:
        with suppress(dist.DistError):  # the store ends at the latest with rank 0
            while not done.wait(_POLL_SECONDS):
                if own_store.check([_BROKEN]):
                    os.write(2, f"error: {own_store.get(_BROKEN).decode()}\n".encode())
                    os._exit(_EXIT_CODE)

    threading.Thread(target=exit_if_broken, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _rendezvous(recipe: Recipe, options: LaunchOptions, launch: Launch, mistake: UserError | None, log: Log) -> Store:
    """Connect to the other ranks. Raises `mistake`, if there is one, once the others know it."""
    seconds = recipe.run.rendezvous_seconds if mistake is None else _MISTAKE_SECONDS
    try:
        store = open_store(launch, seconds, log)
        restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        shared = dist.PrefixStore(f"met/{restart}", store)  # type: ignore[attr-defined]
        if verdict := _compare(shared, launch, launch_info(recipe, options, launch.address, mistake), seconds, log):
            raise UserError(verdict)  # as it always does if there is a mistake
    except UserError as error:
        raise mistake or error from None
    store.set_timeout(TIMEOUT)
    return store


def _compare(shared: Store, launch: Launch, own: LaunchInfo, seconds: float, log: Log) -> str:
    """Return what is wrong with this launch, as rank 0 finds; empty if nothing is."""
    try:
        if launch.rank == 0:
            return _compare_on_rank_zero(shared, launch, own, seconds, log)
        shared.set(f"facts/{launch.rank}", json.dumps(own))
        shared.wait(["verdict"], timedelta(seconds=seconds + _VERDICT_SECONDS))
        verdict: str = shared.get("verdict").decode()
        shared.set(f"heard/{launch.rank}", "")
        return verdict
    except dist.DistError as error:
        raise UserError(
            f"rank {launch.rank} of {launch.world_size} reached {launch.address}:{launch.port}, and rank 0 did not, or "
            f"it has ended ({diagnosis.describe_error(error)}); see its error message, or check that it was started"
        ) from None


def _compare_on_rank_zero(shared: Store, launch: Launch, own: LaunchInfo, seconds: float, log: Log) -> str:
    infos = {0: own}
    verdict = _await_infos(shared, launch, infos, seconds, log)
    shared.set("verdict", verdict)
    if not verdict:
        if line := launch_consistency.find_harmless_difference(infos):
            log(f"[yellow]{escape(line)}[/]")
        return ""
    deadline = time.monotonic() + _HEARD_SECONDS  # the store ends with the process that serves it
    while not shared.check([f"heard/{rank}" for rank in infos if rank]) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return verdict


def _await_infos(shared: Store, launch: Launch, infos: dict[int, LaunchInfo], seconds: float, log: Log) -> str:
    """Fill `infos` until all ranks are in it or one differs; return what is wrong."""
    begun, has_logged = time.monotonic(), False
    while len(infos) < launch.world_size:
        missing = [rank for rank in range(launch.world_size) if rank not in infos]
        new = [rank for rank in missing if shared.check([f"facts/{rank}"])]
        infos |= {rank: json.loads(shared.get(f"facts/{rank}")) for rank in new}
        if new and (verdict := launch_consistency.find_inconsistency(infos)):
            return verdict
        waited = time.monotonic() - begun
        if not new and waited > seconds:
            return (
                f"rank 0 waited {seconds:g} s at MASTER_ADDR={launch.address} MASTER_PORT={launch.port} for "
                f"{launch.world_size} processes, and {describe_ranks(missing)} never connected; check that they were "
                "started, with this address and port, and that no firewall blocks the port. A larger "
                "run.rendezvous_seconds waits longer"
            )
        if not new and waited > LOG_AFTER_SECONDS and not has_logged:
            log(f"rank 0 waits at {launch.address}:{launch.port} for {describe_ranks(missing)}, at most {seconds:g} s")
            has_logged = True
        time.sleep(_POLL_SECONDS)
    return launch_consistency.find_inconsistency(infos)
