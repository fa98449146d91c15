"""Decoded frames of a complete stream -> its frame index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from vidqa.media.frame_index.clock import repair_clock
from vidqa.media.frame_index.frame_index import DEFAULT_RATE, FrameIndex
from vidqa.media.frame_index.from_packets import PacketIndexBuilder

#: Packets describe a stream if at least this fraction of its decoded frames has the pts of a packet.
_MIN_WITH_PACKET = 0.9


def index_from_decoding(
    pts: Sequence[int | None],
    intact: Sequence[bool],
    builder: PacketIndexBuilder,
    rate: Fraction | None,
    *,
    damaged: bool = False,
) -> FrameIndex:
    """Build the index of a stream that was decoded completely.

    Damaged frames are dropped, and all others keep the times that the container states.

    Args:
        pts: pts of the decoded frames in ticks, in the order of the decoder; None where the decoder has none.
        intact: whether each of them was decoded without an error.
        builder: has all packets of the stream.
        rate: frame rate from the header in frames per second, for streams without usable pts; None means 25.
        damaged: whether a packet could not be decoded.
    """
    rate = rate or DEFAULT_RATE
    numbers = np.flatnonzero(intact) if any(intact) else np.arange(len(pts))
    packets, repaired = builder.build(), None
    decoded_pts = [pts[i] for i in numbers.tolist()]
    if None not in decoded_pts:
        times = np.asarray(decoded_pts, np.int64)
        if packets is not None:
            is_stored = np.isin(times, packets.pts)
            if is_stored.mean() < _MIN_WITH_PACKET:
                packets = None
            else:
                numbers, times = numbers[is_stored], times[is_stored]
        repaired = repair_clock(builder.clock(times), float(1 / builder.time_base), float(rate))
    if repaired is None:
        shown = np.arange(len(numbers), dtype=np.int64)
        return FrameIndex(shown, shown[:1], 1 / rate, by_order=True, numbers=numbers, jump_s=builder.jump_s())
    kept, shown = repaired
    index = FrameIndex(
        pts=shown,
        keys=shown[:1],
        time_base=builder.time_base,
        by_order=True,
        numbers=numbers[kept],
        jump_s=builder.jump_s(),
    )
    return index if packets is None else _with_packets(index, packets, builder, damaged)


def _with_packets(index: FrameIndex, packets: FrameIndex, builder: PacketIndexBuilder, damaged: bool) -> FrameIndex:
    """Take duration and rate from the packets, and compute how much of them could not be decoded."""
    shown = index.pts
    if packets.needs_check:  # a recording that starts in the middle of a GOP: its first frames cannot be decoded
        packets = replace(packets, pts=packets.pts[packets.pts >= shown[0]], sizes=None)
    stored = packets.pts
    if not damaged:  # undecodable frames at the start and the end are no damage by themselves
        stored = stored[(stored >= shown[0]) & (stored <= shown[-1])]
    unreadable_s = packets.unreadable_s
    if packets.one_packet_one_frame and not np.isin(stored, shown).all():
        unreadable_s = builder.missing_s(shown, stored)
    return replace(index, packets=packets, unreadable_s=unreadable_s)
