"""Processes find each other, and that they all want the same, before the first tensor is sent or the first step done.

They meet in torch's store, at MASTER_ADDR and MASTER_PORT, where each lays down, as JSON, what it was asked for and
with what it computes. The first process compares: who never came, or wants something else, is named on all that came.
Later it would be a wait without end, or copies of the weights that drift apart.
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
from moco_accel.processes.control_group import Agreement
from moco_accel.processes.launch_checks import Launch, check_machine, check_trackers
from moco_accel.processes.launch_consistency import Facts, ranks_in_words
from moco_accel.processes.rendezvous import (
    LATER_TIMEOUT,
    SAY_AFTER_SECONDS,
    Say,
    Store,
    choose_interface,
    open_store,
    within,
)
from moco_accel.recipe.launch_command import Asked
from moco_accel.recipe.schema import Recipe

_WRONG_SECONDS = 10.0  # in which a process that can't begin tells the others so
_VERDICT_SECONDS = 15.0
_HEARD_SECONDS = 5.0
_BROKEN = "broken"
_ENDED = 2
_LOOK_SECONDS = 0.05


def meet_others(recipe: Recipe, asked: Asked, say: Say) -> tuple[PartialState, Agreement]:
    """All processes of the launch, connected and alike. Raises UserError, on all of them, where they are not."""
    launch = Launch.of_environment()
    mistake = _own_mistake(recipe, asked, launch)
    if launch.processes > 1:
        return _connect(launch, _meet(recipe, asked, launch, mistake, say))
    if mistake is not None:
        raise mistake
    return PartialState(cpu=not torch.cuda.is_available()), Agreement()


def _connect(launch: Launch, store: Store) -> tuple[PartialState, Agreement]:
    """For what is sent from now on; through `store`, in which all have met."""
    choose_interface(launch.address)
    group: dict[str, Any] = {"rank": launch.rank, "world_size": launch.processes}
    with _ending_with_others(store):
        try:
            processes = PartialState(cpu=not torch.cuda.is_available(), store=within(store, "processes"), **group)
            assert processes.num_processes == launch.processes
            return processes, Agreement()
        except RuntimeError as error:
            if not diagnosis.is_lost_connection(error):
                raise
            line = _not_connected(launch, error)
            store.set(_BROKEN, line)
            time.sleep(_HEARD_SECONDS)  # for the others to hear of it, from a store that may end with this process
            raise UserError(line) from None


def _not_connected(launch: Launch, error: RuntimeError) -> str:
    return (
        f"rank {launch.rank} has met the others at {launch.address} and cannot connect to them for tensors "
        f"({diagnosis.in_words(error)}); no firewall may close ports between the nodes, and GLOO_SOCKET_IFNAME "
        "(for GPUs also NCCL_SOCKET_IFNAME) names the network interface, such as eth0, by which they reach each other"
    )


@contextmanager
def _ending_with_others(store: Store) -> Iterator[None]:
    """Within, end when another process has given up: who still tries to connect to it does so for half an hour."""
    done, own_line = threading.Event(), store.clone()  # the store's first line may be taken for as long

    def end_if_broken() -> None:
        with suppress(dist.DistError):  # its end, at the latest with the first process
            while not done.wait(_LOOK_SECONDS):
                if own_line.check([_BROKEN]):
                    os.write(2, f"error: {own_line.get(_BROKEN).decode()}\n".encode())
                    os._exit(_ENDED)

    threading.Thread(target=end_if_broken, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _own_mistake(recipe: Recipe, asked: Asked, launch: Launch) -> UserError | None:
    try:
        check_machine(recipe, asked, launch)
        check_trackers(recipe)
    except UserError as error:
        return error
    return None


def _meet(recipe: Recipe, asked: Asked, launch: Launch, mistake: UserError | None, say: Say) -> Store:
    """Raises `mistake`, if there is one, once the others know of it."""
    seconds = recipe.run.rendezvous_seconds if mistake is None else _WRONG_SECONDS
    try:
        store = open_store(launch, seconds, say)
        met = within(store, f"met/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}")
        verdict = _compare(met, launch, launch_consistency.facts(recipe, asked, launch.address, mistake), seconds, say)
    except UserError as error:
        raise mistake or error from None
    if mistake is not None:
        raise mistake
    if verdict:
        raise UserError(verdict)
    store.set_timeout(LATER_TIMEOUT)
    return store


def _compare(met: Store, launch: Launch, facts: Facts, seconds: float, say: Say) -> str:
    """What is wrong with this launch, in a line, as the first process judges; empty if nothing is."""
    try:
        if launch.rank == 0:
            return _judge(met, launch, facts, seconds, say)
        met.set(f"facts/{launch.rank}", json.dumps(facts))
        met.wait(["verdict"], timedelta(seconds=seconds + _VERDICT_SECONDS))
        verdict: str = met.get("verdict").decode()
        met.set(f"heard/{launch.rank}", "")
        return verdict
    except dist.DistError as error:
        raise UserError(
            f"rank {launch.rank} of {launch.processes} has come to {launch.address}:{launch.port}, and rank 0 has not, "
            f"or is gone again ({diagnosis.in_words(error)}); its own error says why, or see that it was started"
        ) from None


def _judge(met: Store, launch: Launch, own: Facts, seconds: float, say: Say) -> str:
    facts = {0: own}
    verdict = _await_all(met, launch, facts, seconds, say)
    met.set("verdict", verdict)
    if not verdict:
        for line in launch_consistency.warnings(facts):
            say(f"[yellow]{escape(line)}[/]")
        return ""
    deadline = time.monotonic() + _HEARD_SECONDS  # the store is gone with the process that serves it
    while not met.check([f"heard/{rank}" for rank in facts if rank]) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
    return verdict


def _await_all(met: Store, launch: Launch, facts: dict[int, Facts], seconds: float, say: Say) -> str:
    """Fills in `facts` as processes come, until all have or one is seen to be wrong; what is wrong."""
    begun, has_said = time.monotonic(), False
    while len(facts) < launch.processes:
        missing = [rank for rank in range(launch.processes) if rank not in facts]
        came = [rank for rank in missing if met.check([f"facts/{rank}"])]
        facts |= {rank: json.loads(met.get(f"facts/{rank}")) for rank in came}
        if came and (verdict := launch_consistency.unlike(facts)):
            return verdict
        waited = time.monotonic() - begun
        if not came and waited > seconds:
            return _missed(launch, missing, seconds)
        if not came and waited > SAY_AFTER_SECONDS and not has_said:
            say(f"rank 0 waits at {launch.address}:{launch.port} for {ranks_in_words(missing)}, at most {seconds:g} s")
            has_said = True
        time.sleep(_LOOK_SECONDS)
    return launch_consistency.unlike(facts)


def _missed(launch: Launch, missing: list[int], seconds: float) -> str:
    return (
        f"rank 0 has waited {seconds:g} s at MASTER_ADDR={launch.address} MASTER_PORT={launch.port} for "
        f"{launch.processes} processes, and {ranks_in_words(missing)} never came; see that they were started, with "
        "this address and port, and that no firewall closes the port. A larger run.rendezvous_seconds waits longer"
    )
