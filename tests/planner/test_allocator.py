"""The allocator's replay: sequences computed by hand, and invariants of random sequences."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cards.card import MIB
from planner.memory.allocator import CachingAllocator, replay, round_up
from planner.trace.events import Event


def reserved_after(sizes: list[int], expandable: bool = False) -> int:
    allocator = CachingAllocator(expandable)
    for number, size in enumerate(sizes):
        allocator.allocate(number, size)
    return allocator.reserved_bytes


@pytest.mark.parametrize(
    ("sizes", "reserved_mib"),
    [
        ([1], 2),  # one small segment
        ([MIB, MIB], 2),  # two requests of 1 MiB fill it
        ([MIB, MIB, 1], 4),
        ([MIB + 1], 20),  # above 1 MiB: a segment of 20 MiB
        ([9 * MIB, 9 * MIB], 20),  # the remainder of 11 MiB serves the second
        ([9 * MIB, 9 * MIB, 9 * MIB], 40),
        ([10 * MIB], 10),  # from 10 MiB on: its own size
        ([11 * MIB + 1], 12),  # in steps of 2 MiB
        ([MIB, 11 * MIB], 14),  # the pools are separate
    ],
)
def test_segments_by_hand(sizes: list[int], reserved_mib: int) -> None:
    assert reserved_after(sizes) == reserved_mib * MIB


def test_requests_are_rounded_to_512_bytes() -> None:
    assert replay([(0, 1), (1, 513)]).peak_allocated_bytes == 512 + 1024
    assert replay([(0, 1), (1, 513)]).peak_requested_bytes == 514


def test_freed_block_is_reused() -> None:
    events = [(0, 30 * MIB), (0, 0), (1, 30 * MIB), (1, 0), (2, 20 * MIB)]
    assert replay(events).peak_reserved_bytes == 30 * MIB


def test_smallest_sufficient_block_is_used() -> None:
    # 40 and 30 MiB are free; 25 uses the 30, so that the next 40 fit
    events = [(0, 40 * MIB), (1, 30 * MIB), (0, 0), (1, 0), (2, 25 * MIB), (3, 40 * MIB)]
    assert replay(events).peak_reserved_bytes == 70 * MIB


def test_remainder_of_1_mib_or_less_is_not_split_off() -> None:
    # the block of 30 MiB serves 29 as a whole
    events = [(0, 30 * MIB), (0, 0), (1, 29 * MIB)]
    assert replay(events).peak_allocated_bytes == 30 * MIB
    split = CachingAllocator()
    split.allocate(0, 30 * MIB)
    split.free(0)
    split.allocate(1, 28 * MIB)
    assert split.allocated_bytes == 28 * MIB


def test_free_neighbours_are_merged() -> None:
    # two blocks of 15 MiB from one segment of 30 are one block again once both are free
    events = [(0, 30 * MIB), (0, 0), (1, 15 * MIB), (2, 15 * MIB), (1, 0), (2, 0), (3, 30 * MIB)]
    assert replay(events).peak_reserved_bytes == 30 * MIB


def test_fragmentation_needs_another_segment() -> None:
    # the middle third stays allocated: 20 MiB are free, but not in one block
    events = [(0, 30 * MIB), (0, 0), (1, 10 * MIB), (2, 10 * MIB), (3, 10 * MIB), (1, 0), (3, 0), (4, 20 * MIB)]
    assert replay(events).peak_reserved_bytes == 50 * MIB


def test_expandable_segments_grow_by_the_missing_bytes() -> None:
    # 12 MiB map 20; then 30 need 22 more, mapped in steps of 20
    assert reserved_after([12 * MIB, 30 * MIB], expandable=True) == 60 * MIB
    assert reserved_after([12 * MIB, 30 * MIB]) == 42 * MIB


def test_peak_event() -> None:
    peaks = replay([(0, 20 * MIB), (1, 20 * MIB), (0, 0), (2, 10 * MIB)])
    assert peaks.at_event == 1
    assert peaks.peak_allocated_bytes == 40 * MIB


def test_allocating_twice_fails() -> None:
    with pytest.raises(AssertionError, match="tensor 0 is allocated twice"):
        replay([(0, 1), (0, 1)])


@st.composite
def sequences(draw: st.DrawFn) -> list[Event]:
    """Allocations of 1 B to 64 MiB; some are freed at once, some later, some never."""
    live: list[int] = []
    events: list[Event] = []
    for number in range(draw(st.integers(1, 60))):
        exponent = draw(st.integers(0, 25))
        events.append((number, draw(st.integers(1 << exponent, 2 << exponent))))
        live.append(number)
        while live and draw(st.booleans()):
            events.append((live.pop(draw(st.integers(0, len(live) - 1))), 0))
    return events


@settings(max_examples=200, deadline=None)
@given(sequences(), st.booleans())
def test_invariants(events: list[Event], expandable: bool) -> None:
    peaks = replay(events, expandable)
    assert peaks.peak_requested_bytes <= peaks.peak_allocated_bytes <= peaks.peak_reserved_bytes
    assert peaks.peak_reserved_bytes % (2 * MIB) == 0
    # live blocks never overlap
    allocator = CachingAllocator(expandable)
    for number, size in events:
        if size:
            allocator.allocate(number, size)
        else:
            allocator.free(number)
        blocks = sorted((pool.small, b.address, b.size) for b, pool in allocator._live.values())
        for (pool, start, length), (next_pool, next_start, _) in pairwise(blocks):
            assert pool != next_pool or start + length <= next_start
        assert sum(length for _, _, length in blocks) == allocator.allocated_bytes


def test_round_up() -> None:
    assert [round_up(n, 512) for n in (1, 512, 513)] == [512, 512, 1024]
