"""The frame index from packets alone."""

from __future__ import annotations

from vidqa.media.frame_index.from_packets import PacketIndexBuilder


def test_hidden_frames_of_vp8_and_vp9_are_not_indexed() -> None:
    class Packet(bytes):
        pts, dts, pos, duration, is_keyframe, is_discard, is_corrupt = 0, 0, 0, 1, True, False, False

        @property
        def size(self) -> int:
            return len(self)

    def n_kept(codec: str, *contents: bytes) -> int:
        builder = PacketIndexBuilder(codec, 1, None, True)  # type: ignore[arg-type]
        for i, content in enumerate(contents):
            packet = Packet(content)
            packet.pts = i
            builder.add(packet)
        index = builder.build()
        return len(index) if index else 0

    assert n_kept("vp8", b"\x10\0", b"\x00\0", b"\x11\0") == 2  # bit 4: shown
    # shown, hidden, shows an existing frame, hidden
    assert n_kept("vp9", b"\x82\0", b"\x80\0", b"\x88\0", b"\x84\0") == 2
    assert n_kept("vp9", b"\x82\0", b"\x80\0\xc0") == 2  # a superframe shows its last frame
    assert n_kept("h264", b"\x00\0") == 1
