"""Small image files of every supported kind, and similar invalid ones."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from tests.support.png import CHANNELS, END, PALETTE, SIGNATURE, Png, chunk

_HEIGHT, _WIDTH = 6, 9


def noise(height: int = _HEIGHT, width: int = _WIDTH, channels: int = 3) -> np.ndarray:
    """Return a random image, uint8 ``[height, width, channels]``."""
    shape = (height, width, channels)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return an image encoded as a file."""
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(orientation: int, *, order: str = "<", entries: int = 1, offset: int = 8) -> bytes:
    """Return an EXIF block with an orientation; *entries* and *offset* may be wrong."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation & 0xFFFF, 0)
    return head + struct.pack(f"{order}I", offset) + struct.pack(f"{order}H", entries) + entry


def with_valid_checksums(file: bytes) -> bytes:
    """Correct the checksums of a PNG file, so that the code after the checks is reached."""
    changed, offset = bytearray(file), len(SIGNATURE)
    while offset + 12 <= len(changed):
        end = offset + 8 + int.from_bytes(changed[offset : offset + 4], "big")
        if end + 4 <= len(changed):
            changed[end : end + 4] = struct.pack(">I", zlib.crc32(changed[offset + 4 : end]))
        offset = end + 4
    return bytes(changed)


def png_of_rows(header: bytes, rows: bytes) -> bytes:
    """Return a PNG of any header, 13 bytes, and of uncompressed rows."""
    return SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + END


def png(height: int, width: int, depth: int, colour: int, interlaced: bool = False) -> bytes:
    """Return a PNG of zeros in any format, including those that Pillow does not write."""
    samples = np.zeros((height, width, CHANNELS[colour]), np.uint16)
    palette = (chunk(b"PLTE", bytes(range(48))),) if colour == PALETTE else ()
    return Png(samples, depth, colour, interlaced, before=palette).file()


def jpegs() -> list[bytes]:
    """Return JPEG files."""
    rgb = Image.fromarray(noise())
    plain = encoded(rgb, "JPEG")
    bodies = (
        *(b"\xe1Exif\0\0" + tiff(6, order=">", offset=2**32 - 1), b"\xe2MPF\0" + tiff(6)),
        *(b"\xe1http://ns.adobe.com/xap/1.0/\0<x/>", b"\xed" + b"Photoshop 3.0\0008BIM\x03\xed"),
        *(b"\xeeAdobe\0\x64\0\0\0\0\1", b"\xdd\0\1"),
    )
    segments = [b"\xff" + body[:1] + struct.pack(">H", len(body) + 1) + body[1:] for body in bodies]
    upright = [encoded(rgb, "JPEG", exif=b"Exif\0\0" + tiff(value)) for value in (1, 3, 6, 8, 9)]
    return [
        encoded(rgb, "JPEG"),
        encoded(rgb, "JPEG", progressive=True),
        encoded(rgb, "JPEG", restart_marker_blocks=1, subsampling=0),
        encoded(rgb.convert("L"), "JPEG"),
        encoded(rgb.convert("CMYK"), "JPEG"),
        encoded(rgb, "JPEG", dpi=(72, 72), icc_profile=b"profile", comment=b"comment"),
        encoded(rgb, "JPEG", exif=b"Exif\0\0" + tiff(6, order=">")),
        *upright,
        *(plain[:2] + segment + plain[2:] for segment in segments),
        encoded(rgb, "JPEG")[:-2],
        encoded(rgb, "JPEG", progressive=True)[:-2],
    ]


def pngs() -> list[bytes]:
    """Return PNG files."""
    rgb = Image.fromarray(noise())
    deep = Image.fromarray(noise(channels=1)[:, :, 0].astype(np.uint16) * 257)
    frames = [rgb.rotate(180)]
    of_formats = [png(5, 7, depth, 0, each) for depth in (1, 2, 4, 8, 16) for each in (False, True)]
    of_formats += [png(5, 7, depth, colour) for depth in (8, 16) for colour in (2, 4, 6)]
    # The transparent colour follows signature and header.
    with_chunks = [
        file[:33] + chunk(b"tRNS", bytes(length)) + file[33:]
        for file, length in ((png(5, 7, 4, 0), 2), (png(5, 7, 16, 0), 2), (png(5, 7, 16, 2), 6))
    ]
    bomb = zlib.compress(bytes(3 << 20))
    plain = png(5, 7, 8, 2)
    extra = {
        b"iCCP": b"name\0\0" + bomb,
        b"zTXt": b"key\0\0" + bomb,
        b"iTXt": b"key\0\1\0en\0key\0" + bomb,
        b"eXIf": tiff(6, entries=65535),
        b"acTL": struct.pack(">II", 2**31, 0),
        b"fcTL": bytes(26),
        b"fdAT": bytes(9),
        b"gAMA": bytes(4),
        b"cHRM": bytes(32),
    }
    with_chunks += [plain[:33] + chunk(kind, body) + plain[33:] for kind, body in extra.items()]
    return [
        *(encoded(rgb.convert(mode), "PNG") for mode in ("RGB", "RGBA", "L", "LA", "P", "1")),
        encoded(deep, "PNG"),
        encoded(rgb.convert("P"), "PNG", transparency=3),
        encoded(rgb.convert("L"), "PNG", transparency=3),
        encoded(rgb, "PNG", transparency=(1, 2, 3)),
        encoded(rgb, "PNG", exif=tiff(6)),
        encoded(rgb, "PNG", icc_profile=b"profile", dpi=(72, 72)),
        encoded(rgb, "PNG", save_all=True, append_images=frames),
        png(5, 7, 4, 3),
        *with_chunks,
        *of_formats,
    ]


def webps() -> list[bytes]:
    """Return WebP files."""
    rgb = Image.fromarray(noise())
    frames = [rgb.rotate(180)]
    return [
        encoded(rgb, "WEBP"),
        encoded(rgb, "WEBP", lossless=True),
        encoded(rgb.convert("RGBA"), "WEBP", lossless=True),
        encoded(Image.fromarray(noise(channels=4), "RGBA"), "WEBP"),
        encoded(rgb, "WEBP", exif=b"Exif\0\0" + tiff(6), icc_profile=b"profile"),
        encoded(rgb, "WEBP", save_all=True, append_images=frames),
    ]


def others() -> list[bytes]:
    """Return files that are not supported or not valid."""
    rgb = Image.fromarray(noise())
    file = encoded(rgb, "PNG")
    return [
        b"",
        encoded(rgb, "GIF"),
        encoded(rgb, "BMP"),
        encoded(rgb, "TIFF"),
        file[:-20],
        file + file,
    ]
