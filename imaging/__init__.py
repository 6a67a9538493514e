"""Bytes of an image to uint8 pixels: the one definition that training, server and client share."""

from alexnet_triton.imaging.decode import FORMATS, MAX_BYTES, MAX_PIXELS, ImageError, decode, identify, open_image
from alexnet_triton.imaging.geometry import SHORT_SIDE, Box, center_box, resample

__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "MAX_PIXELS",
    "SHORT_SIDE",
    "Box",
    "ImageError",
    "center_box",
    "decode",
    "identify",
    "open_image",
    "resample",
]
