"""Replay allocations and frees of one stream through the rules of CUDA's caching allocator.

Source: PyTorch 2.11-2.15, c10/cuda/CUDACachingAllocator.cpp.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from planner.cards.card import MIB, round_up
from planner.trace.events import Event

ROUND_BYTES = 512
SMALL_REQUEST_BYTES = 1 * MIB  # largest request that the small pool serves
SMALL_SEGMENT_BYTES = 2 * MIB
LARGE_SEGMENT_BYTES = 20 * MIB
LARGE_SEGMENT_BELOW_BYTES = 10 * MIB  # larger requests get a segment of their own size
SEGMENT_ROUND_BYTES = 2 * MIB


@dataclass(frozen=True)
class AllocatorPeaks:
    """Peaks of a replay.

    Attributes:
        peak_reserved_bytes: Whole segments (`torch.cuda.max_memory_reserved`).
        peak_allocated_bytes: Requests rounded up to 512 bytes (`torch.cuda.max_memory_allocated`).
        peak_requested_bytes: Requests before rounding.
        at_event: Index of the event that first reaches `peak_allocated_bytes`.
    """

    peak_reserved_bytes: int
    peak_allocated_bytes: int
    peak_requested_bytes: int
    at_event: int


@dataclass(slots=True, eq=False)
class _Block:
    address: int
    size: int
    free: bool = True
    previous: _Block | None = None
    next: _Block | None = None


class _Pool:
    """Free blocks of one pool, sorted by (size, address), the order of the allocator's best-fit search."""

    def __init__(self, small: bool, expandable: bool) -> None:
        self.small = small
        self.expandable = expandable
        self._order: list[tuple[int, int]] = []
        self._by_address: dict[int, _Block] = {}
        self._last: _Block | None = None  # end of the mapped part of an expandable segment

    def add(self, block: _Block) -> None:
        block.free = True
        insort(self._order, (block.size, block.address))
        self._by_address[block.address] = block

    def remove(self, block: _Block) -> None:
        block.free = False
        del self._order[bisect_left(self._order, (block.size, block.address))]
        del self._by_address[block.address]

    def best_fit(self, size: int) -> _Block | None:
        index = bisect_left(self._order, (size, 0))
        if index == len(self._order):
            return None
        block = self._by_address[self._order[index][1]]
        # the end of an expandable segment can grow, so it counts as the largest block
        if block is self._last and index + 1 < len(self._order):
            block = self._by_address[self._order[index + 1][1]]
        return block

    def splits(self, remainder: int) -> bool:
        return remainder >= ROUND_BYTES if self.small or self.expandable else remainder > SMALL_REQUEST_BYTES

    def segment_bytes(self, size: int) -> int:
        if self.small:
            return SMALL_SEGMENT_BYTES
        return LARGE_SEGMENT_BYTES if size < LARGE_SEGMENT_BELOW_BYTES else round_up(size, SEGMENT_ROUND_BYTES)

    def extend(self, size: int, base_address: int) -> tuple[_Block, int]:
        """Map memory for `size` at the end of the expandable segment; return its last block and the mapped bytes."""
        tail = self._last
        missing = size - (tail.size if tail is not None and tail.free else 0)
        mapped = round_up(missing, SMALL_SEGMENT_BYTES if self.small else LARGE_SEGMENT_BYTES)
        if tail is not None and tail.free:
            self.remove(tail)
            tail.size += mapped
        else:
            address = tail.address + tail.size if tail is not None else base_address
            fresh = _Block(address, mapped, previous=tail)
            if tail is not None:
                tail.next = fresh
            self._last = tail = fresh
        self.add(tail)
        return tail, mapped

    def split(self, block: _Block, size: int) -> None:
        """Shrink `block` to `size` and free the remainder."""
        rest = _Block(block.address + size, block.size - size, previous=block, next=block.next)
        if block.next is not None:
            block.next.previous = rest
        block.next, block.size = rest, size
        if block is self._last:
            self._last = rest
        self.add(rest)

    def release(self, block: _Block) -> None:
        """Free `block` and merge it with its free neighbours."""
        before, after = block.previous, block.next
        if after is not None and after.free:
            self.remove(after)
            self._absorb(block, after)
        if before is not None and before.free:
            self.remove(before)
            self._absorb(before, block)
            block = before
        self.add(block)

    def _absorb(self, block: _Block, after: _Block) -> None:
        block.size += after.size
        block.next = after.next
        if after.next is not None:
            after.next.previous = block
        if after is self._last:
            self._last = block


class CachingAllocator:
    """The allocator of a device with unlimited memory, which never frees cached segments."""

    def __init__(self, expandable_segments: bool = False) -> None:
        self.reserved_bytes = 0
        self.allocated_bytes = 0
        self._expandable = expandable_segments
        self._small = _Pool(True, expandable_segments)
        self._large = _Pool(False, expandable_segments)
        self._live: dict[int, tuple[_Block, _Pool]] = {}
        self._next_address = 0

    def allocate(self, number: int, requested_bytes: int) -> int:
        """Allocate a tensor that is not live and return its rounded size."""
        assert number not in self._live, f"tensor {number} is allocated twice"
        size = round_up(requested_bytes, ROUND_BYTES)
        pool = self._small if size <= SMALL_REQUEST_BYTES else self._large
        block = pool.best_fit(size) or self._new_block(pool, size)
        pool.remove(block)
        if pool.splits(block.size - size):
            pool.split(block, size)
        self._live[number] = block, pool
        self.allocated_bytes += block.size
        return size

    def free(self, number: int) -> None:
        """Free a live tensor."""
        block, pool = self._live.pop(number)
        self.allocated_bytes -= block.size
        pool.release(block)

    def _new_block(self, pool: _Pool, size: int) -> _Block:
        if self._expandable:
            base = 0 if pool.small else 1 << 50  # each pool has an address space of its own
            block, mapped = pool.extend(size, base)
            self.reserved_bytes += mapped
            return block
        block = _Block(self._next_address, pool.segment_bytes(size))
        self._next_address += block.size
        self.reserved_bytes += block.size
        pool.add(block)
        return block


def replay(events: Iterable[Event], expandable_segments: bool = False) -> AllocatorPeaks:
    """Return the peaks of a new allocator over `events`."""
    allocator = CachingAllocator(expandable_segments)
    live: dict[int, int] = {}
    requested = peak_requested = peak_allocated = at_event = 0
    for index, (number, size) in enumerate(events):
        if size:
            allocator.allocate(number, size)
            live[number] = size
            requested += size
            peak_requested = max(peak_requested, requested)
            if allocator.allocated_bytes > peak_allocated:
                peak_allocated, at_event = allocator.allocated_bytes, index
        else:
            allocator.free(number)
            requested -= live.pop(number)
    return AllocatorPeaks(allocator.reserved_bytes, peak_allocated, peak_requested, at_event)


def live_tensors(events: Sequence[Event], index: int) -> dict[int, int]:
    """Return the bytes of each tensor that is live after `events[index]`, by number."""
    live: dict[int, int] = {}
    for number, size in events[: index + 1]:
        if size:
            live[number] = size
        else:
            del live[number]
    return live
