"""What the decoders do not report about image files, read from their bytes.

jpeg.py     whether a file is the stream of a camera
png.py      bits per channel, and whether the image data is complete
heif.py     cropping, transparency and further images of HEIC and AVIF
"""

from __future__ import annotations

from vidqa.common.lazy_exports import lazy_exports

__all__ = ["is_jpeg_sequence", "read_heif"]

__getattr__ = lazy_exports(__name__, {"is_jpeg_sequence": "jpeg", "read_heif": "heif"})
