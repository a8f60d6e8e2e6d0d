"""The normalisation of images, the same in all families."""

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
"""For R, G and B, in 0..255."""
