"""Frame index: which frame of a video is shown when.

In: an open container. Out: `FrameIndex` with the pts of all frames, found without decoding where possible.

frame_index.py      the index itself
from_container.py   from the sample table of MP4 and MOV
from_packets.py     from the packets of any container
"""
