"""Readers that return frames by index, one module per decoder library.

In: path and frame numbers. Out: uint8 RGB frames [H, W, 3], upright, square pixels.

pyav.py         video, with FFmpeg; gop_reader.py for streams whose pts do not identify frames
decord.py       video, fallback if PyAV fails to decode
image.py        images and animations, with Pillow
"""
