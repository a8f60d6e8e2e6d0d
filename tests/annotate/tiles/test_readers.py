"""Windows of real files, by GDAL and by the decoders of the server."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.shutil import copy
from rasterio.transform import Affine
from samserve.annotate.source import Source
from samserve.annotate.tiles import decoded, gdal
from samserve.annotate.tiles.reader import TileReader
from samserve.errors import InvalidRequest
from samserve.types import Array, Size

WINDOW = (3, 7, 21, 33)
UTM = Affine(0.5, 0, 500_000, 0, -0.5, 5_300_000)
PIXELS = (np.arange(70 * 50 * 3).reshape(70, 50, 3) % 251).astype(np.uint8)


def opened(path: Path | str, by: Any = gdal) -> AbstractContextManager[TileReader]:
    source = Source(str(path))
    reader: AbstractContextManager[TileReader] = by.opened(source, source.find().images[0])
    return reader


def write(path: Path, samples: Array, **profile: Any) -> Path:
    """Write bands ``[b, h, w]`` as a GeoTIFF."""
    bands, height, width = samples.shape
    interpretation = profile.pop("colorinterp", None)
    settings = {"crs": "EPSG:32633", "transform": UTM, "dtype": samples.dtype, **profile}
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=bands, **settings
    ) as file:
        if interpretation:
            file.colorinterp = interpretation
        file.write(samples)
    return path


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_both_readers_turn_images_upright(tmp_path: Path, suffix: str) -> None:
    options = {"jpg": {"quality": 98, "subsampling": 0}, "webp": {"lossless": True}}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x112] = orientation
        path = tmp_path / f"{orientation}.{suffix}"
        Image.fromarray(PIXELS).save(path, exif=exif, **options.get(suffix, {}))

        with opened(path) as windows, opened(path, decoded) as whole:
            assert isinstance(windows, gdal.Raster)
            turned = Size(50, 70) if orientation > 4 else Size(70, 50)
            assert windows.size == whole.size == turned
            for window in (WINDOW, (0, 0, turned.width, turned.height)):
                found, expected = (each.read(window).rgb for each in (windows, whole))
                assert found.shape == expected.shape
                # Two decoders of JPEG.
                difference = np.abs(found.astype(int) - expected)
                assert difference.max() <= (6 if suffix == "jpg" else 0), orientation


def test_jpeg_2000_and_bigtiff_are_read_in_windows(tmp_path: Path) -> None:
    bands = np.moveaxis(PIXELS, -1, 0)
    jp2 = tmp_path / "a.jp2"
    lossless = {"QUALITY": "100", "REVERSIBLE": "YES"}
    with rasterio.open(write(tmp_path / "a.tif", bands)) as plain:
        copy(plain, jp2, driver="JP2OpenJPEG", **lossless)
    bigtiff = write(tmp_path / "big.tif", bands, BIGTIFF="YES")
    left, top, right, bottom = WINDOW

    for path in (jp2, bigtiff):
        with opened(path) as reader:
            assert isinstance(reader, gdal.Raster)
            assert (reader.read(WINDOW).rgb == PIXELS[top:bottom, left:right]).all()
            assert reader.reference is not None


def test_grey_is_repeated_and_further_bands_are_left_out(tmp_path: Path) -> None:
    bands = np.random.default_rng(0).integers(0, 255, (5, 40, 30)).astype(np.uint8)

    with opened(write(tmp_path / "one.tif", bands[:1])) as reader:
        assert (reader.read((0, 0, 30, 40)).rgb == bands[0][:, :, None]).all()
    with opened(write(tmp_path / "five.tif", bands)) as reader:
        assert (reader.read((0, 0, 30, 40)).rgb == np.moveaxis(bands[:3], 0, -1)).all()
    order = [ColorInterp.blue, ColorInterp.green, ColorInterp.red]
    path = write(tmp_path / "bgr.tif", bands[:3], photometric="minisblack", colorinterp=order)
    with opened(path) as reader:
        assert (reader.read((0, 0, 30, 40)).rgb == np.moveaxis(bands[2::-1], 0, -1)).all()


def test_16_bits_are_scaled_by_the_percentiles_of_the_whole_image(tmp_path: Path) -> None:
    values = np.random.default_rng(0).permutation(10_000).reshape(1, 100, 100).astype(np.uint16)
    low, high = np.percentile(values, (2, 98))

    with opened(write(tmp_path / "a.tif", values)) as reader:
        found = reader.read((10, 20, 60, 90)).rgb

    expected = np.clip(np.round((values[0] - low) * 255 / (high - low)), 0, 255)[20:90, 10:60]
    assert np.abs(found - expected[:, :, None]).max() <= 1


def test_samples_that_are_all_equal_or_not_numbers_are_black(tmp_path: Path) -> None:
    flat = np.full((1, 20, 20), 700, dtype=np.uint16)
    with opened(write(tmp_path / "flat.tif", flat)) as reader:
        assert (reader.read((0, 0, 20, 20)).rgb == 0).all()
    nan = np.full((1, 20, 20), np.nan, dtype=np.float32)
    with opened(write(tmp_path / "nan.tif", nan)) as reader:
        assert (reader.read((0, 0, 20, 20)).rgb == 0).all()


def test_pixels_without_data_are_white_and_not_valid(tmp_path: Path) -> None:
    samples = np.full((3, 40, 40), 90, dtype=np.uint8)
    samples[:, :, 20:] = 0

    with opened(write(tmp_path / "a.tif", samples, nodata=0)) as reader:
        pixels = reader.read((10, 0, 30, 40))
        assert pixels.valid is not None
        assert pixels.valid[:, :10].all()
        assert not pixels.valid[:, 10:].any()
        assert (pixels.rgb[:, :10] == 90).all()
        assert (pixels.rgb[:, 10:] == 255).all()
        assert not pixels.empty
        assert reader.read((20, 0, 40, 40)).empty


def test_transparent_pixels_are_blended_with_white_by_both_readers(tmp_path: Path) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (40, 30, 4)).astype(np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(rgba, "RGBA").save(path)

    with opened(path) as windows, opened(path, decoded) as whole:
        assert isinstance(windows, gdal.Raster)
        found, expected = (each.read((0, 0, 30, 40)).rgb.astype(int) for each in (windows, whole))
    assert np.abs(found - expected).max() <= 1


def test_palettes_are_resolved(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS).convert("P", palette=Image.Palette.ADAPTIVE)
    path = tmp_path / "a.png"
    image.save(path)

    with opened(path) as reader:
        assert isinstance(reader, gdal.Raster)
        assert (reader.read((0, 0, 50, 70)).rgb == np.asarray(image.convert("RGB"))).all()


def test_remote_files_are_read_through_their_file_system(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", np.moveaxis(PIXELS, -1, 0), tiled=True)
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/tiles/a.tif", path.read_bytes())

    with opened("memory://tiles/a.tif") as remote, opened(path) as local:
        assert isinstance(remote, gdal.Raster)
        assert (remote.read(WINDOW).rgb == local.read(WINDOW).rgb).all()
        assert remote.reference == local.reference
    memory.rm("/tiles", recursive=True)


def test_formats_that_gdal_does_not_read_are_decoded_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    Image.fromarray(PIXELS).save(path)

    with opened(path) as reader:
        assert isinstance(reader, decoded.Decoded)
        assert reader.size == Size(70, 50)


def test_a_virtual_file_under_the_name_of_a_tiff_is_not_followed(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret.tif", np.moveaxis(PIXELS, -1, 0))
    disguised = tmp_path / "a.tif"
    disguised.write_text(
        '<VRTDataset rasterXSize="50" rasterYSize="70"><VRTRasterBand band="1"><SimpleSource>'
        f"<SourceFilename>{secret}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )

    with pytest.raises(InvalidRequest, match="image"), opened(disguised):
        pass


def test_corrupt_files_are_invalid(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", np.moveaxis(PIXELS, -1, 0), tiled=True, compress="deflate")
    data = bytearray(path.read_bytes())
    data[-2000:] = bytes(2000)
    path.write_bytes(bytes(data))

    with pytest.raises(InvalidRequest, match="image: "), opened(path) as reader:
        reader.read((0, 0, 50, 70))
    path.write_bytes(b"II*\0 no TIFF at all")
    with pytest.raises(InvalidRequest, match="image"), opened(path):
        pass
    path = write(tmp_path / "complex.tif", np.zeros((1, 20, 20), dtype=np.complex64))
    with pytest.raises(InvalidRequest, match="complex"), opened(path):
        pass


def test_without_gdal_an_image_that_is_too_large_names_the_extra(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (10_001, 10_001)).save(path)

    with pytest.raises(InvalidRequest, match=r"larger than 100000000 pixels.*\[geo\]"):  # noqa: SIM117
        with opened(path, decoded):
            pass
    with opened(path) as reader:
        assert reader.read((9_000, 9_000, 9_100, 9_100)).rgb.shape == (100, 100, 3)
