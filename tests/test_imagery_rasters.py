"""fetch_imagery on rasters: bands, types, stretch, masks, georeference; their way back out."""

import io
import json
import os
import re
import struct
import zlib
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from affine import Affine
from PIL import Image, TiffImagePlugin
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from test_imagery import encoded, error_of, picture, rows_of, write_params
from test_real import DATA

from stages import fetch_imagery
from stages.common.artifacts import IMAGE, decode_image, read_json, read_rows, write_shards
from stages.diffusion.marked_png import SETTINGS
from stages.imagery.bands import ParamsMisfit
from stages.imagery.georeference import find_date
from stages.imagery.image_decoding import decode_rgb
from stages.imagery.rasters import (
    RasterWindow,
    close_scenes,
    read_raster,
    read_window,
)
from stages.imagery.raw_tiles import RawTile
from stages.imagery.source_rasters import SourceRasters, refuse_band_files
from stages.imagery.stretch import (
    MAX_SAMPLES,
    extreme_share,
    find_gap,
    find_unit_mix,
    percentile_stretch,
    sample_pixels,
    to_8_bit,
)
from stages.imagery.tile_making import Reading, make_tile
from stages.imagery.unusable_image import UnusableImage
from stages.params import Mask
from stages.publishing.card import quote_pixel_values
from tools.export import export_geotiffs

UTM = {"crs": "EPSG:32632", "transform": from_origin(500_000, 5_000_000, 10, 10)}
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def write_raster(path: Path, values: np.ndarray, colors=None, names=None, **profile) -> None:
    """Write values [B, H, W]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = values.shape
    shape = {"count": count, "height": height, "width": width, "dtype": values.dtype}
    with rasterio.open(path, "w", **{"driver": "GTiff"} | shape | profile) as dataset:
        dataset.write(values)
        if colors:
            dataset.colorinterp = colors
        if names:
            dataset.descriptions = names


def scene_values(seed: int, bands: int, size: int = 32) -> np.ndarray:
    """Reflectances like those of Sentinel-2, float64 [bands, size, size], from 0 to 10,000."""
    rng = np.random.default_rng(seed)
    smooth = np.asarray(picture(seed, size), np.float64).mean(2)
    gains = rng.uniform(5, 12, (bands, 1, 1))
    return np.clip(smooth * gains + 200 + rng.normal(0, 30, (bands, size, size)), 0, 10_000)


def write_classes(root: Path, count: int, dtype: str = "uint16", bands: int = 3, **profile) -> None:
    """Write `count` rasters in two class folders."""
    for i in range(count):
        name = ["forest", "lake"][i % 2]
        values = scene_values(i, bands).astype(dtype)
        write_raster(root / name / f"{name}_{i}.tif", values, **profile)


def fetch(folder: Path, monkeypatch, source: Path, **settings) -> dict[str, np.ndarray]:
    """Run the stage in this process; returns the tiles [32, 32, 3] by name."""
    write_params(folder, {"Water Body": ["lake", "beach"]}, source=f"path:{source}", **settings)
    monkeypatch.chdir(folder)
    fetch_imagery.main()
    rows = [row for split in rows_of(folder).values() for row in split]
    return {row["filename"]: np.asarray(decode_image(row["image"])) for row in rows}


def fault(folder: Path, monkeypatch, source: Path, **settings) -> str:
    return error_of(folder, monkeypatch, source=f"path:{source}", **settings)


def shard_bytes(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.rglob("data/imagery/*/*.parquet"))]


# Reading


def random_raster(rng: np.random.Generator, path: Path) -> tuple[np.ndarray, float | None]:
    """Write a raster of random bands, type, layout and nodata; returns its values and nodata."""
    dtype = np.dtype(
        rng.choice(["uint8", "uint16", "int16", "uint32", "int32", "float32", "float64"])
    )
    shape = (rng.integers(1, 14), *rng.integers(16, 70, 2))
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        values = rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
        nodata = rng.choice([None, int(limits.max), 0, int(limits.min)])
    else:
        values = rng.normal(-12, 6, shape).astype(dtype)  # decibels
        nodata = rng.choice([None, -9999.0, np.nan, 0.0])
    profile = {
        "interleave": str(rng.choice(["pixel", "band"])),
        "compress": rng.choice([None, "deflate", "lzw", "zstd"]),
        "BIGTIFF": str(rng.choice(["YES", "NO"])),
        "ENDIANNESS": str(rng.choice(["LITTLE", "BIG"])),
    }
    if rng.integers(2):
        profile |= {"tiled": True, "blockxsize": 32, "blockysize": 16}
    if nodata is not None:
        nodata = float(nodata)
        values[:, rng.random(shape[1:]) < 0.1] = dtype.type(nodata)
    if not np.issubdtype(dtype, np.integer):
        values[:, rng.random(shape[1:]) < 0.05] = np.nan
    if shape[0] != 3:
        profile["photometric"] = "minisblack"  # no alpha
    write_raster(path, values, nodata=nodata, **profile)
    return values, nodata


def read_with_numpy(values: np.ndarray, nodata: float | None, bands: list[int]):
    """What `auto` makes of one raster: its valid pixels, stretch and bytes, with numpy alone."""
    chosen = values[[band - 1 for band in bands]].astype(np.float64)
    valid = np.isfinite(chosen).all(0)
    if nodata is not None:
        has_data = values[[band - 1 for band in bands]] != values.dtype.type(nodata)
        is_value_too = nodata == 0 or (nodata == 255 and values.dtype == np.uint8)
        valid &= has_data.any(0) if is_value_too else has_data.all(0)
    low, high = np.percentile(chosen[:, valid], [2, 98], axis=1)[:, :, None, None]
    scaled = (np.where(valid, chosen, low) - low) / (high - low)
    return valid, np.stack([low, high]).squeeze().T, np.rint(scaled.clip(0, 1) * 255)


def test_random_rasters_are_read_as_numpy_reads_them(tmp_path):
    rng = np.random.default_rng(22)
    seen = set()
    for number in range(60):
        path = tmp_path / f"{number}.tif"
        values, nodata = random_raster(rng, path)
        bands = [int(band) for band in rng.integers(1, len(values) + 1, 3)]
        valid, pairs, expected = read_with_numpy(values, nodata, bands)
        for image in (path, path.read_bytes()):
            raster = read_raster(image, bands, None, path.name)
            assert np.array_equal(raster.values, values[[band - 1 for band in bands]], True)
            assert raster.values.dtype == values.dtype
            assert np.array_equal(raster.valid, valid), (values.dtype, nodata)
        tile = RawTile(raster.values, raster.valid)
        stretch = percentile_stretch(sample_pixels([tile], valid.size))
        assert np.array_equal(stretch, pairs)
        assert np.array_equal(to_8_bit(raster.values, stretch)[:, valid], expected[:, valid])
        seen.add((values.dtype, nodata is None))
    assert len(seen) == 14


@pytest.mark.parametrize(
    "dtype, nodata, roof_is_valid",
    [("uint8", 255, True), ("uint8", 0, True), ("uint8", 254, False), ("uint16", 255, False)],
)
def test_a_value_that_ends_the_range_of_bytes_is_nodata_only_in_all_bands(
    tmp_path, dtype, nodata, roof_is_valid
):
    values = np.full((3, 32, 32), 100, dtype)
    values[:, :4] = nodata  # a collar
    values[0, 20:24] = nodata  # a roof that is as bright in red, or a shadow
    write_raster(tmp_path / "a.tif", values, nodata=nodata)
    valid = read_raster(tmp_path / "a.tif", None, None, "a.tif").valid
    assert not valid[:4].any() and (valid[20:24] == roof_is_valid).all()
    assert valid.sum() == (28 if roof_is_valid else 24) * 32


def test_percentiles_of_large_data_come_from_every_part_of_every_tile():
    """Ramps along the columns or rows, which a subsample on a few of them would get wrong."""
    along_columns = np.tile(np.arange(512.0), (1, 512, 1))
    for ramp in (along_columns, along_columns.swapaxes(1, 2)):
        tile = RawTile(ramp, np.ones((512, 512), bool))
        samples = list(sample_pixels([tile] * 4, 40 * MAX_SAMPLES))
        assert samples[0].size < 512 * 512 / 39
        ((low, high),) = percentile_stretch(samples)
        assert abs(low - 0.02 * 511) < 2 and abs(high - 0.98 * 511) < 2
    flat = [np.full((1, 9), 7)]
    assert percentile_stretch(flat) == [(7, 7)]
    assert not to_8_bit(np.full((1, 3, 3), 7), [(7, 7)]).any()
    assert percentile_stretch([np.array([[5] * 99 + [6]])]) == [(5, 6)]
    assert extreme_share(flat, [(7, 8)]) == 1 and extreme_share(flat, [(0, 10)]) == 0


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "LAB", "RGBA", "LA"])
def test_8_bit_tiffs_come_out_as_pillow_converts_them(mode):
    image = picture(3).convert("RGB").convert(mode) if mode != "LAB" else Image.new("LAB", (20, 20))
    content = encoded(image, "TIFF")
    assert np.array_equal(decode_rgb(content).rgb, np.asarray(image.convert("RGB")))
    whites = encoded(Image.fromarray(255 - np.asarray(picture(3).convert("L"))), "TIFF")
    assert np.array_equal(
        decode_rgb(whites).rgb, 255 - np.asarray(picture(3).convert("L"))[..., None] + [0] * 3
    )


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_orientation_of_exif_is_applied(file_format):
    image = picture(5).resize((40, 20))
    options = {"lossless": True} if file_format == "WEBP" else {}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = encoded(image, file_format, exif=exif, **options)
        with Image.open(io.BytesIO(encoded(image, file_format, **options))) as stored:
            upright = np.asarray(stored.convert("RGB"))
        if orientation >= 5:
            upright = upright.swapaxes(0, 1)
        if orientation in (3, 4, 7, 8):
            upright = upright[::-1]
        if orientation in (2, 3, 6, 7):
            upright = upright[:, ::-1]
        assert np.array_equal(decode_rgb(content).rgb, upright), orientation
    broken = encoded(image, "PNG", exif=b"Exif\0\0MM\0*broken")
    assert decode_rgb(broken).rgb.size == (40, 20)


def test_the_orientation_of_a_png_of_16_bits_is_applied():
    values = scene_values(1, 1)[0, :, :20].astype(np.uint16)
    exif = Image.Exif()
    for orientation, upright in ((None, values), (1, values), (3, values[::-1, ::-1])):
        exif[0x0112] = orientation
        content = encoded(Image.fromarray(values), exif=exif if orientation else b"")
        assert np.array_equal(read_raster(content, None, None, "").values[0], upright)
    exif[0x0112] = 6
    content = encoded(Image.fromarray(values), exif=exif)
    assert np.array_equal(read_raster(content, None, None, "").values[0], np.rot90(values, -1))
    broken = encoded(Image.fromarray(values), exif=b"Exif\0\0MM\0*broken")
    assert np.array_equal(read_raster(broken, None, None, "").values[0], values)


@pytest.mark.parametrize("tag, value", [(274, 0), (296, 9)])  # Orientation, ResolutionUnit
def test_a_tag_with_a_wrong_value_does_no_harm(tmp_path, tag, value):
    image = picture(1)
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[tag] = value
    image.save(tmp_path / "a.tif", tiffinfo=tags)
    for source in (tmp_path / "a.tif", (tmp_path / "a.tif").read_bytes()):
        values = read_raster(source, None, None, "a.tif").values
        assert np.array_equal(values, np.asarray(image).transpose(2, 0, 1))


def test_unusable_rasters_say_why(tmp_path):
    values = scene_values(1, 3, 64).astype(np.uint16)
    path = tmp_path / "a.tif"
    write_raster(path, values, compress="deflate", tiled=True, blockxsize=16, blockysize=16)
    content = path.read_bytes()
    for size in (10, 300, len(content) // 2, len(content) - 9):
        with pytest.raises(UnusableImage, match="unreadable or truncated"):
            read_raster(content[:size], None, None, "a.tif")
    write_raster(path, values[:1] + 1j)
    with pytest.raises(UnusableImage, match="complex"):
        read_raster(path, None, None, "a.tif")
    write_raster(path, values[:, :12])
    with pytest.raises(UnusableImage, match="smaller than 16"):
        read_raster(path, None, None, "a.tif")
    write_raster(path, values)
    plain = path.read_bytes()
    one, two = (Image.fromarray(np.asarray(picture(seed).convert("L"))) for seed in (1, 2))
    one.save(path, save_all=True, append_images=[two])  # a band per page
    with pytest.raises(UnusableImage, match="several pages"):
        read_raster(path, None, None, "a.tif")
    directory = struct.unpack_from("<I", plain, 4)[0]
    end = directory + 2 + 12 * struct.unpack_from("<H", plain, directory)[0]
    with pytest.raises(UnusableImage, match="unreadable"):  # the next directory is none
        read_raster(plain[:end] + b"\x10\0\0\0" + plain[end + 4 :], None, None, "a.tif")
    odd_name = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.tif"))
    odd_name.write_bytes(content)
    with pytest.raises(UnusableImage, match="not UTF-8"):
        read_raster(odd_name, None, None, "a.tif")
    # 100,000 pixels a side, of which the file holds none.
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint16", "width": 100_000}
    with rasterio.open(path, "w", height=100_000, tiled=True, SPARSE_OK=True, **profile):
        pass
    with pytest.raises(UnusableImage, match="over 179 megapixels"):
        read_raster(path, None, None, "a.tif")
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    png = encoded(picture(1))
    checksum = struct.pack(">I", zlib.crc32(header))
    with pytest.raises(UnusableImage, match="over 179 megapixels"):
        decode_rgb(png[:12] + header + checksum + png[33:])
    with pytest.raises(UnusableImage, match="uint16"):
        decode_rgb(content)


def test_values_are_shown_as_the_file_says(tmp_path):
    """White as 0, few bits, color tables of 16 bits, masks of JPEG, an alpha band before others."""
    path = tmp_path / "a.tif"
    gray = (scene_values(1, 1) / 40).astype(np.uint8)
    write_raster(path, gray, photometric="miniswhite")
    assert np.array_equal(read_raster(path, None, None, "").values, 255 - gray)
    write_raster(path, gray.astype(np.uint16), photometric="miniswhite")
    assert np.array_equal(read_raster(path, [1], None, "").values, 65535 - gray.astype(np.uint16))
    bits = (scene_values(2, 3) / 200).astype(np.uint8) % 16
    write_raster(path, bits, nbits=4)
    assert np.array_equal(read_raster(path, None, None, "").values, bits * 17)

    indices = np.arange(1024, dtype=np.uint16).reshape(1, 32, 32) * 64
    colors = {k: (k // 256, 255 - k // 256, 7, 255) for k in range(65536)}
    profile = {"count": 1, "height": 32, "width": 32, "dtype": "uint16", "photometric": "palette"}
    with rasterio.open(path, "w", driver="GTiff", **profile) as dataset:
        dataset.write(indices)
        dataset.write_colormap(1, colors)
    red = (indices[0] // 256).astype(np.uint8)
    expected = np.stack([red, 255 - red, np.full_like(red, 7)])
    raster = read_raster(path, None, None, "")
    assert np.array_equal(raster.values, expected) and raster.type.dtype == "uint8"

    rgb = (scene_values(3, 3) / 40).astype(np.uint8)
    valid = np.arange(32) >= 8 + np.zeros((32, 1))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write_raster(path, rgb, compress="jpeg", photometric="ycbcr")
        assert decode_rgb(path.read_bytes()).rgb.getbbox() == (0, 0, 32, 32)
        with rasterio.open(path, "r+") as dataset:
            dataset.write_mask(valid)
    assert np.array_equal(read_raster(path, None, None, "").valid, valid)
    assert decode_rgb(path.read_bytes()).rgb.getbbox() == (8, 0, 32, 32)

    five = np.concatenate([rgb, 255 * valid[None].astype(np.uint8), rgb[:1]])
    write_raster(path, five, photometric="rgb", alpha="yes")
    for mask in (None, Mask(band=5, valid=list(range(256)))):
        raster = read_raster(path, None, mask, "")
        assert np.array_equal(raster.opaque, valid) and raster.alpha.is_mask
    assert read_raster(path, None, Mask(band=4, valid=[255]), "").opaque is None


# The stretch of a data set


@pytest.mark.parametrize(
    "dtype, scale, offset", [("uint16", 1, 0), ("float32", 1e-4, 0), ("float32", 0.003, -35)]
)
def test_auto_is_the_numpy_reading_of_the_training_tiles(
    tmp_path, monkeypatch, capsys, dtype, scale, offset
):
    """13 bands of which three are chosen, nodata, and a glint that no percentile sees."""
    source = {}
    for i in range(24):
        name = ["forest", "lake"][i % 2]
        values = (scene_values(i, 13) * scale + offset).astype(dtype)
        values[:, 5, 5] = 65_000 if dtype == "uint16" else 1e6
        values[:, 3 + i % 4, :] = 0
        write_raster(tmp_path / f"in/{name}/{i}.tif", values, nodata=0)
        source[f"{name}/{i}.tif"] = values[[3, 2, 1]].astype(np.float64)
    tiles = fetch(tmp_path / "run", monkeypatch, tmp_path / "in", bands=[4, 3, 2])
    assert tiles.keys() == source.keys()

    training = [row["filename"] for row in read_rows(tmp_path / "run/data/imagery/train")]
    pixels = np.concatenate([source[name][:, source[name].any(0)] for name in training], axis=1)
    low, high = np.percentile(pixels, [2, 98], axis=1)[:, :, None, None]
    for name, values in source.items():
        expected = np.rint(((values - low) / (high - low)).clip(0, 1) * 255) * values.any(0)
        assert np.array_equal(tiles[name], expected.transpose(1, 2, 0)), name

    resolved = read_json(tmp_path / "run/data/imagery/SOURCE.json")
    assert resolved["bands"] == [4, 3, 2]
    assert np.array_equal(resolved["stretch"], np.stack([low, high]).squeeze().T)
    assert json.dumps(resolved["stretch"]) in capsys.readouterr().err
    report = read_json(tmp_path / "run/data/imagery/REPORT.json")
    assert report["masked"] == {"tiles": 24, "pixels": 24 * 32}

    # What SOURCE.json says gives the same bytes when it is written into the params.
    pasted = {key: resolved[key] for key in ("bands", "stretch")}
    fetch(tmp_path / "pasted", monkeypatch, tmp_path / "in", **pasted)
    assert shard_bytes(tmp_path / "pasted") == shard_bytes(tmp_path / "run")


def test_a_bright_pixel_changes_no_other_pixel_and_16_bit_png_and_jp2_keep_their_depth(
    tmp_path, monkeypatch
):
    """12-bit values, half of the tiles with one pixel above them; in TIFF, PNG and JPEG 2000."""
    for i in range(24):
        name = ["forest", "lake"][i % 2]
        values = scene_values(i, 3).astype(np.uint16) // 4
        values[:, 9, 9] = 2000 if i % 4 < 2 else 60_000
        for suffix, driver in (("tif", "GTiff"), ("png", "PNG"), ("jp2", "JP2OpenJPEG")):
            lossless = {"QUALITY": "100", "REVERSIBLE": "YES"} if suffix == "jp2" else {}
            path = tmp_path / f"{suffix}/{name}/{i}.{suffix}"
            write_raster(path, values, driver=driver, **lossless)
        values[:, 9, 9] = 2000
        write_raster(tmp_path / f"plain/{name}/{i}.tif", values)
    settings = {"stretch": [[100, 800], [100, 900], [100, 1000]]}
    plain = fetch(tmp_path / "run", monkeypatch, tmp_path / "plain", **settings)
    for suffix in ("tif", "png", "jp2"):
        tiles = fetch(tmp_path / "run", monkeypatch, tmp_path / suffix, **settings)
        for name, tile in tiles.items():
            assert np.array_equal(tile, plain[name.replace(suffix, "tif")]), name
    auto = fetch(tmp_path / "run", monkeypatch, tmp_path / "png")
    brightness = [tile.mean() for tile in auto.values()]
    assert 60 < min(brightness) and max(brightness) < 200


def test_a_fill_value_of_the_training_tiles_alone_is_one_line(tmp_path, monkeypatch):
    """It is in 1.9 % of all pixels, and so below the 2nd percentile."""
    for i in range(16):
        values = scene_values(i, 3).astype(np.int16)
        if i == 0:
            values[:, :10] = -9999
        split = "train" if i < 8 else ["valid", "test"][i % 2]
        write_raster(tmp_path / f"in/{split}/{['forest', 'lake'][i // 2 % 2]}/{i}.tif", values)
    line = fault(tmp_path / "run", monkeypatch, tmp_path / "in")
    assert "fetch_imagery.stretch: auto takes -9999 to " in line


@pytest.mark.parametrize(
    "dtype, fill, scale", [("float32", -9999, 1e-4), ("int16", -9999, 0.25), ("uint16", 65535, 1)]
)
def test_an_undeclared_fill_value_is_one_line(tmp_path, monkeypatch, dtype, fill, scale):
    for i in range(8):
        values = (scene_values(i, 3) * scale).astype(dtype)
        values[:, :2] = fill  # 6 % of the pixels
        write_raster(tmp_path / f"in/{['forest', 'lake'][i % 2]}/{i}.tif", values)
    line = fault(tmp_path / "run", monkeypatch, tmp_path / "in")
    assert "fetch_imagery.stretch: auto takes " in line and f"{fill} " in line
    assert "rio edit-info --nodata" in line


def test_a_gap_lies_between_the_middle_of_a_stretch_and_one_of_its_ends():
    values = np.array([[0, 40, 60, 80, 100]])
    assert find_gap([values], [(0, 100)]) is None
    for gap in ([[0, 60, 80, 100]], [[0, 20, 40, 100]]):
        assert find_gap([values, np.tile(values, 2)], [(0, 100)]) is None
        assert find_gap([np.array(gap)], [(0, 100)]) == (0, 100)
    assert find_gap([values], [(50, 50)]) is None  # of one value
    assert find_gap([np.array([[0, 100, 100]])], [(0, 100)]) is None  # a mask


def test_a_gap_may_hold_a_few_pixels_beside_many_of_the_fill_value():
    rng = np.random.default_rng(0)
    data = rng.uniform(2000, 3000, (3, 8000))

    def has_gap(value: float, count: int, *strays: tuple[float, int]) -> bool:
        parts = [np.full((3, n), fill) for fill, n in ((value, count), *strays)]
        sample = np.concatenate([data, *parts], axis=1)
        return find_gap([sample], percentile_stretch([sample])) is not None

    for fill in (-9999, -32768):
        assert has_gap(fill, 2000) and has_gap(fill, 2000, (fill / 2, 1))
        assert has_gap(fill, 2000, (fill * 0.6, 150))  # resampled edges
        assert not has_gap(fill, 2000, (fill * 0.6, 300))
    for fill in (-9990, 65_535):  # far from the others, compared with their spread
        assert has_gap(fill, 2000, (fill * 0.6, 150))
    # Bright land and lakes, which are 0 where they were clipped; dark land and saturated clouds.
    for clipped, between in ((0, 700), (10_000, 7000)):
        assert has_gap(clipped, 2000) and not has_gap(clipped, 2000, (between, 1))


def test_a_constant_background_is_no_fill_value():
    """What lies in the lower half of the range may be little beside it."""
    rng = np.random.default_rng(0)
    others = {
        -25: rng.normal(-10, 3, (1, 3000)),  # radar in dB, clipped at its noise
        3: 3 + rng.exponential(10, (1, 1000)),  # lights at night
        1: np.concatenate([rng.uniform(1, 40, (1, 60)), rng.normal(80, 8, (1, 940))], axis=1),
        # Water of three bands, its shore and land.
        100: np.concatenate(
            [rng.uniform(100, 900, (3, 100)), rng.normal(1500, 150, (3, 900))], axis=1
        ),
    }
    for low, values in others.items():
        sample = np.concatenate([np.full((len(values), 9000), low), np.maximum(values, low)], 1)
        assert find_gap([sample], percentile_stretch([sample])) is None
    levels = np.repeat([[1, 2, 3]], [90, 5, 5], axis=1)
    assert find_gap([levels], [(1, 3)]) is None


def test_files_in_two_units_are_one_line(tmp_path, monkeypatch, capsys):
    """Reflectance, and two files of it times 10,000: by their percentiles the others are black."""
    for i in range(16):
        values = scene_values(i, 3).astype(np.float32) / (10_000 if i > 1 else 1)
        write_raster(tmp_path / f"in/{['forest', 'lake'][i % 2]}/{i}.tif", values)
    line = fault(tmp_path / "run", monkeypatch, tmp_path / "in")
    assert "fetch_imagery.source: forest/10.tif holds 0." in line
    assert "forest/0.tif holds " in line and "write fetch_imagery.stretch: [low, high]" in line
    fetch(tmp_path / "run", monkeypatch, tmp_path / "in", stretch=[0, 1])
    assert "warning: forest/10.tif holds 0." in capsys.readouterr().err


def test_dark_and_bright_tiles_are_in_one_unit():
    rng = np.random.default_rng(0)
    reflectance = [rng.uniform(low, high, (3, 900)) for low, high in ((0, 0.02), (0.2, 0.9))]
    cloud = rng.uniform(0.9, 1.8, (3, 900))
    numbers = [1e4 * values for values in (*reflectance, cloud)]
    filled = np.concatenate([numbers[1], np.zeros((3, 900))], axis=1)
    decibels = rng.normal(-12, 3, (1, 900))
    linear = 10 ** (decibels / 10)
    dark, town, city = (rng.exponential(mean, (1, 900)) for mean in (0.3, 3, 60))
    assert find_unit_mix([cloud, *reflectance, filled]) == (1, 3)
    assert find_unit_mix([decibels, linear]) == (1, 0)
    shadow = np.round(dark)  # digital numbers: 0, 1 and 2
    fill = np.where(rng.random((3, 900)) < 0.7, -9999, reflectance[1])
    for one_unit in (
        [*reflectance, cloud],
        [*numbers, filled, shadow],
        [dark, town, city + 6],  # lights at night
        [dark, city],
        [*reflectance, fill],
        [*reflectance, np.where(rng.random((3, 900)) < 0.95, -9999, reflectance[1])],
        [decibels, decibels + 8],
        [reflectance[0], np.zeros((3, 0))],
    ):
        one_type = [values.astype(np.float32) for values in one_unit]
        assert find_unit_mix(one_type) is None
        assert find_unit_mix([np.rint(values).astype(np.int16) for values in one_unit]) is None


@pytest.mark.filterwarnings("error")
def test_inf_is_stretched_without_a_warning():
    values = np.array([[[np.inf, -np.inf, np.nan, 1.0]]])
    assert to_8_bit(values, [(0, 1)])[0, 0, 3] == 255


def test_a_fixed_stretch_a_divisor_and_none(tmp_path, monkeypatch):
    write_classes(tmp_path / "in", 16)
    values = {
        f"{name}/{name}_{i}.tif": scene_values(i, 3).astype(np.uint16)
        for i, name in enumerate(["forest", "lake"] * 8)
    }
    for stretch, low, high in (([500, 2500], 500, 2500), (3000, 0, 3000)):
        tiles = fetch(tmp_path / "run", monkeypatch, tmp_path / "in", stretch=stretch)
        for name, tile in tiles.items():
            expected = np.rint(((values[name] - float(low)) / (high - low)).clip(0, 1) * 255)
            assert np.array_equal(tile, expected.transpose(1, 2, 0))
    assert read_json(tmp_path / "run/data/imagery/SOURCE.json")["stretch"] == [[0, 3000]]
    for i in range(16):
        small = (scene_values(i, 3) / 40).astype(np.int16)
        write_raster(tmp_path / f"small/{['forest', 'lake'][i % 2]}/{i}.tif", small)
    tiles = fetch(tmp_path / "run", monkeypatch, tmp_path / "small", stretch="none")
    expected = (scene_values(0, 3) / 40).astype(np.int16).transpose(1, 2, 0)
    assert np.array_equal(tiles["forest/0.tif"], expected)
    # Reflectance from 0 to 1 would be black.
    for i in range(8):
        name = ["forest", "lake"][i % 2]
        write_raster(tmp_path / f"float/{name}/{i}.tif", (scene_values(i, 3) / 4e3).astype("f4"))
    line = fault(tmp_path / "run", monkeypatch, tmp_path / "float", stretch="none")
    assert '"none" makes 100% of the valid pixels black or white' in line
    # Photographs are stretched, too, where the params say how.
    for i in range(16):
        path = tmp_path / f"png/{['forest', 'lake'][i % 2]}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i, 32).save(path)
    tiles = fetch(tmp_path / "run", monkeypatch, tmp_path / "png", stretch=[0, 510])
    halved = np.rint(np.asarray(picture(0, 32)) / 2)
    assert np.array_equal(tiles["forest/0.png"], halved)


@pytest.mark.parametrize(
    "bands, dtype, settings, words",
    [
        (13, "uint16", {}, ["bands", "forest_0.tif has 13 bands", "1 gray, 2, 3", "[4, 3, 2]"]),
        (13, "uint16", {"bands": [4, 3, 14]}, ["bands", "no band 14"]),
        (3, "uint16", {"bands": ["B04", "B03", "B02"]}, ["no band B04", "1 gray, 2, 3"]),
        (2, "float32", {}, ["has 2 bands"]),
        (3, "uint16", {"stretch": 1e6}, ["stretch: 1000000.0 makes ", "black or white"]),
        (3, "uint16", {"stretch": [0, 10]}, ["stretch: [0.0, 10.0] makes 100% "]),
        (3, "uint16", {"stretch": "none"}, ["stretch: none", "forest_0.tif holds"]),
        (3, "float32", {"stretch": "none"}, ["stretch: none", "forest_0.tif holds"]),
        (1, "uint16", {"stretch": [[0, 9]] * 3}, ["3 pairs", "1 band(s)"]),
        (3, "uint16", {"stretch": [9, 0]}, ["stretch", "write auto", "not [9, 0]"]),
        (3, "uint16", {"bands": [0, 1, 2]}, ["bands", "not [0, 1, 2]"]),
        (3, "uint16", {"mask": {"band": 4}}, ["mask", "valid"]),
        (3, "uint16", {"mask": {"band": 4, "valid": [1]}}, ["mask: ", "no band 4"]),
        (3, "uint16", {"mask": {"file": "{stem}_m.tif", "valid": [1]}}, ["8 its mask is missing"]),
        (3, "complex64", {}, ["complex"]),
    ],
)
def test_params_that_do_not_fit_the_rasters_are_one_line(
    tmp_path, monkeypatch, bands, dtype, settings, words
):
    write_classes(tmp_path / "in", 8, dtype, bands)
    line = fault(tmp_path / "run", monkeypatch, tmp_path / "in", **settings)
    for word in words:
        assert word in line
    assert not (tmp_path / "run/data/imagery").exists()


@pytest.mark.parametrize("band, is_read", [(2, True), (1, False)])
def test_files_of_different_scale_or_offset_are_one_line(tmp_path, monkeypatch, band, is_read):
    """As Sentinel-2's before and since 25 January 2022; a band that isn't chosen doesn't count."""
    write_classes(tmp_path / "in", 8, "uint16")
    for path in sorted((tmp_path / "in").rglob("*.tif")):
        with rasterio.open(path, "r+") as dataset:
            dataset.scales = [1e-4] * 3
            if path.name == "lake_3.tif":
                dataset.offsets = [-0.1 if number == band else 0 for number in (1, 2, 3)]
    if is_read:
        line = fault(tmp_path / "run", monkeypatch, tmp_path / "in", bands=[2])
        assert "_3.tif" in line and "scale 0.0001 and offset 0" in line and "-0.1" in line
        docs = (Path(__file__).parents[1] / "docs/data.md").read_text()
        snippet = docs.partition("0 stays nodata:\n\n```python\n")[2].partition("```")[0]
        path = tmp_path / "in/lake/lake_3.tif"
        with rasterio.open(path) as dataset:
            values = dataset.read().astype(int)
        exec(snippet.replace("scene.tif", str(path)), {})
        with rasterio.open(path) as dataset:
            assert np.array_equal(dataset.read(), np.maximum(values - 1000, values > 0))
    fetch(tmp_path / "run", monkeypatch, tmp_path / "in", bands=[2])


@pytest.mark.parametrize(
    "dtype, tags, is_refused",
    [
        ("uint16", [(1e-4, 0), (float(np.float32(1e-4)), 0)], False),
        ("uint16", [(1e-4, -0.1), (1e-4, float(np.float32(-0.1)))], False),
        ("uint16", [(np.nan, np.nan), (np.nan, 0), (1, 0)], False),
        ("uint16", [(1, 0), (1e-4, 0), (np.nan, 0)], False),  # software drops tags
        ("uint16", [(1, 0), (1, 0), (1e-4, 0), (2e-4, 0)], True),
        ("uint16", [(1e-4, 0), (1, 0), (2e-4, 0)], True),
        ("uint16", [(1e-4, 0), (1.0001e-4, 0)], True),
        ("uint16", [(1, 0), (1e-4, -0.1)], True),
        ("uint16", [(1, -1000), (1, 0)], True),
        ("uint8", [(1, 0), (1 / 255, 0), (1 / 127, -1)], False),
    ],
)
def test_tags_count_where_they_tell_that_values_differ(tmp_path, dtype, tags, is_refused):
    reading = Reading(32, None, None, keeps_bytes=True, needs_bytes=False, min_valid=0.5)
    rasters = SourceRasters()
    with pytest.raises(SystemExit) if is_refused else nullcontext() as stop:
        for i, (scale, offset) in enumerate(tags):
            path = tmp_path / f"{i}.tif"
            write_raster(path, (scene_values(i, 3) / 40).astype(dtype))
            with rasterio.open(path, "r+") as dataset:
                dataset.scales, dataset.offsets = [scale] * 3, [offset] * 3
            rasters.check(path.name, make_tile((path, path.name), reading))
    if is_refused:
        assert all(f"{number:.8g}" in str(stop.value) for number in tags[-1])


@pytest.mark.parametrize(
    "endings, band_files",
    [
        (["_B02", "_B03", "_B08"], True),
        (["_B04_10m", "_B8A_20m", "_SCL_20m"], True),
        (["_SR_B4", "_SR_B5"], True),
        (["_VV", "_VH"], True),
        (["_B04_(Raw)", "_B03_(Raw)"], True),  # Copernicus Browser's
        (["_red", "_red_edge", "_NIR"], True),
        (["_MS_G", "_MS_NIR"], True),
        (["_1", "_2"], True),  # beside IMG_0001: a drone's
        (["_B08"], False),
        (["_B02", "_B03", "_a", "_b"], False),
        (["_B04", "_B4"], False),
        (["_pan1", "_pan2"], False),
        (["", "_7", "_c2"], False),
        ([f"_B{i}" for i in range(1, 40)], False),
    ],
)
def test_files_of_one_band_of_an_image_are_one_line(endings, band_files):
    stem = "IMG_0001" if endings == ["_1", "_2"] else "T32UMD_20200610_1"
    names = [f"{stem}{ending}.tif" for ending in endings]
    gray = [f"a/{name}" for name in names]
    if not band_files:
        refuse_band_files(gray, len(gray), True)
        return
    refuse_band_files(gray, 2 * len(gray), True)  # half of the tiles show colors
    with pytest.raises(SystemExit, match=re.escape(f" {names[0]} and {names[1]} seem")):
        refuse_band_files(gray, len(gray), True)


def test_gray_images_of_like_names_are_no_bands_of_one():
    refuse_band_files(["village_green.png", "lake_blue.png"], 2, False)
    refuse_band_files([f"IMG_0001_{i}.png" for i in range(1, 5)], 4, False)


def test_files_of_one_band_are_gray_images_if_the_params_say_so(tmp_path, monkeypatch):
    for i in range(16):
        path = tmp_path / f"in/{'ab'[i % 2]}/{i // 4}_B0{i // 2 % 2 + 1}.tif"
        write_raster(path, scene_values(i, 1).astype(np.uint16), **UTM)
        picture_path = tmp_path / f"bytes/{'ab'[i % 2]}/{path.stem}.png"
        picture_path.parent.mkdir(parents=True, exist_ok=True)
        picture(i, 32).convert("L").save(picture_path)
    line = fault(tmp_path / "run", monkeypatch, tmp_path / "bytes")
    assert "0_B01.png and 0_B02.png" in line and "rename" in line and "bands: [1]" not in line
    line = fault(tmp_path / "run", monkeypatch, tmp_path / "in")
    assert "0_B01.tif and 0_B02.tif" in line and "bands: [1]" in line
    write_params(tmp_path / "run", None, source=f"path:{tmp_path}/in", bands=[1])
    fetch_imagery.main()
    assert sum(map(len, rows_of(tmp_path / "run").values())) == 16


def test_images_of_different_bands_or_types_are_one_line_that_names_two(
    tmp_path, monkeypatch, capsys
):
    write_classes(tmp_path / "in", 8)
    odd = tmp_path / "in/lake/odd.tif"
    for values in (scene_values(9, 4).astype(np.uint16), scene_values(9, 3).astype(np.float32)):
        write_raster(odd, values)
        line = fault(tmp_path / "run", monkeypatch, tmp_path / "in")
        assert "forest/forest_0.tif has 3 band(s) of uint16, lake/odd.tif has" in line
    odd.write_bytes(encoded(picture(1)))
    assert "lake/odd.tif has uint8" in fault(tmp_path / "run", monkeypatch, tmp_path / "in")
    # Photographs and 8-bit rasters, gray or RGB, go together.
    for i in range(8):
        write_raster(tmp_path / f"bytes/forest/{i}.tif", (scene_values(i, 3) / 40).astype(np.uint8))
        path = tmp_path / f"bytes/lake/{i}.png"
        path.parent.mkdir(exist_ok=True)
        picture(i, 32).save(path)
    write_raster(tmp_path / "bytes/lake/gray.tif", (scene_values(8, 1) / 40).astype(np.uint8))
    tiles = fetch(tmp_path / "run", monkeypatch, tmp_path / "bytes")
    assert np.array_equal(tiles["lake/0.png"], picture(0, 32))
    assert len(tiles) == 17
    assert "rasters of 3 band(s)" in (log := capsys.readouterr().err) and "left out" not in log
    mask = {"band": 1, "valid": [1]}
    line = fault(tmp_path / "run", monkeypatch, tmp_path / "bytes", mask=mask)
    assert "fetch_imagery.mask: lake/0.png is not a raster" in line
    line = fault(tmp_path / "run", monkeypatch, tmp_path / "bytes", bands=[3, 2, 1])
    assert "fetch_imagery.bands: lake/0.png is not a raster" in line


@pytest.mark.parametrize("mode, suffix", [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP")])
@pytest.mark.parametrize("keeps_bytes", [True, False])
def test_transparent_pixels_of_any_format_are_masked(mode, suffix, keeps_bytes):
    reading = Reading(32, None, None, keeps_bytes, needs_bytes=False, min_valid=0.5)
    for clear_rows in (0, 12, 17):
        image = picture(0, 32).convert(mode)
        alpha = np.full((32, 32), 255, np.uint8)
        alpha[:clear_rows] = 0
        image.putalpha(Image.fromarray(alpha))
        tile = make_tile((encoded(image, suffix, lossless=True), "a"), reading)
        if clear_rows == 17:
            assert str(tile) == "too few of its pixels are valid"
        else:
            assert tile.masked == clear_rows * 32


@pytest.mark.parametrize("keeps_bytes", [True, False])
@pytest.mark.parametrize("suffix", ["PNG", "TIFF"])
def test_an_image_whose_shorter_side_is_below_the_tiles_is_enlarged(keeps_bytes, suffix):
    for side, size in ((32, 32), (32, 33)):
        reading = Reading(size, None, None, keeps_bytes, needs_bytes=False, min_valid=0.5)
        image = picture(0, 40).crop((0, 0, 40, side))
        assert make_tile((encoded(image, suffix), "a"), reading).is_enlarged == (side < size)


@pytest.mark.parametrize("keeps_bytes", [True, False])
def test_an_image_of_one_value_shows_nothing(tmp_path, keeps_bytes):
    reading = Reading(32, None, None, keeps_bytes, needs_bytes=False, min_valid=0.5)

    def reason_of(values: np.ndarray, **profile) -> str:
        write_raster(tmp_path / "a.tif", values, **profile)
        image = tmp_path / "a.tif"
        if not profile:  # Pillow reads a PNG of bytes
            image = encoded(Image.fromarray(values.transpose(1, 2, 0)))
        result = make_tile((image, "a"), reading)
        return str(result) if isinstance(result, UnusableImage) else ""

    blue = np.tile(np.uint8([20, 40, 90])[:, None, None], (1, 32, 32))
    nearly = blue.copy()
    nearly[2, 5, 5] += 1
    for profile in ({}, {"compress": "lzw"}):
        assert "all of its pixels have one value" in reason_of(blue, **profile)
        assert not reason_of(nearly, **profile)
    nearly[:, :8] = 7  # nodata: the others count
    nearly[2, 5, 5] = 7
    assert "one value" in reason_of(np.where(nearly == 7, 7, blue), nodata=7)
    # Where its alpha band hides all of it, that decides.
    hidden = np.concatenate([blue, np.zeros((1, 32, 32), np.uint8)])
    assert not reason_of(hidden, photometric="rgb", alpha="yes")


def test_gray_bytes_have_one_band(tmp_path):
    write_raster(tmp_path / "a.tif", (scene_values(1, 1) / 40).astype(np.uint8))
    reading = Reading(32, None, None, keeps_bytes=True, needs_bytes=False, min_valid=0.5)
    rasters = SourceRasters()
    rasters.check("a.tif", make_tile((tmp_path / "a.tif", "a.tif"), reading))
    line = rasters.describe_bands()
    assert "1 band(s) of uint8: gray from band 1" in line and "left out" not in line


@pytest.mark.parametrize(
    "key, value",
    [
        ("bands", [3, 2, 1]),
        ("stretch", [0, 3000]),
        ("mask", {"band": 4, "valid": [1]}),
        ("tile", {"size": 64, "stride": 64, "min_valid": 0.5}),
    ],
)
def test_what_is_for_rasters_is_not_ignored_by_embedded_scenes(tmp_path, monkeypatch, key, value):
    settings = {"source": "embedded", "max_images": 20, key: value}
    line = error_of(tmp_path / "run", monkeypatch, **settings)
    assert line.startswith(f"params.yaml: fetch_imagery.{key}: is for rasters")


# Bands and masks


RGBA = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float32", "float64"])
@pytest.mark.parametrize("opaque", [1, 255, 254, None])  # None: the maximum of the type
def test_alpha_is_a_mask_with_what_gdal_writes_as_opaque(tmp_path, dtype, opaque):
    """WarpedVRT writes 255 for all types but uint16 and int16."""
    is_float = np.dtype(dtype).kind == "f"
    maximum = 1 if is_float else np.iinfo(dtype).max
    values = scene_values(1, 4).clip(0, 200).astype(dtype)
    values[3] = maximum if opaque is None else opaque
    values[3, :8] = 0
    write_raster(tmp_path / "a.tif", values, RGBA, photometric="rgb", alpha="yes", **UTM)
    raster = read_raster(tmp_path / "a.tif", None, None, "")
    is_mask = opaque in (255, None) or opaque == maximum
    assert raster.alpha.is_mask == is_mask
    assert not is_mask or np.array_equal(raster.opaque, values[3] > 0)


@pytest.mark.parametrize("is_mask", [True, False])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_band_tagged_alpha_is_a_mask_if_few_values_lie_between(
    tmp_path, monkeypatch, capsys, is_mask, dtype
):
    """Resampling makes a few. Near infrared that is called alpha darkens nothing."""
    opaque = np.iinfo(dtype).max
    for i in range(16):
        hidden_rows = 4 * (i % 8)  # up to 28 of 32
        values = (scene_values(i, 4) / 40).astype(dtype)
        values[3] = opaque
        values[3, hidden_rows, :4] = opaque // 4 * 3  # shown
        values[3, :hidden_rows] = 0
        values[3, hidden_rows - 1 : hidden_rows, :4] = opaque // 4  # hidden
        if i >= 12 and not is_mask:  # a seventh of all values that are not 0
            values[3, hidden_rows:] = opaque - 1
        path = tmp_path / f"in/{['forest', 'lake'][i % 2]}/{i}.tif"
        write_raster(path, values, RGBA, photometric="rgb", alpha="yes", **UTM)
    stretch = "auto" if dtype == "uint8" else [0, 255]
    tiles = fetch(tmp_path / "run", monkeypatch, tmp_path / "in", stretch=stretch)
    report = read_json(tmp_path / "run/data/imagery/REPORT.json")
    log = capsys.readouterr().err
    for name, tile in tiles.items():
        i = int(name.split("/")[1].removesuffix(".tif"))
        expected = (scene_values(i, 4)[:3] / 40).astype(np.uint8)
        if is_mask:
            expected[:, : 4 * (i % 8)] = 0
        assert np.array_equal(tile, expected.transpose(1, 2, 0))
    if dtype == "uint16":
        fetch(tmp_path / "run", monkeypatch, tmp_path / "in")
        training = [row["filename"] for row in read_rows("data/imagery/train")]
        numbers = [int(Path(name).stem) for name in training]
        pixels = [
            (scene_values(i, 4)[:3, 4 * (i % 8) * is_mask :] / 40).astype(dtype).reshape(3, -1)
            for i in numbers
        ]
        pairs = np.percentile(np.concatenate(pixels, axis=1), [2, 98], axis=1).T
        assert read_json("data/imagery/SOURCE.json")["stretch"] == pairs.tolist()
    if is_mask:
        assert report["skipped"]["too few of its pixels are valid"]["count"] == 6
        assert "lake/15.tif" in report["skipped"]["too few of its pixels are valid"]["names"]
        assert report["masked"] == {"tiles": 8, "pixels": 2 * (4 + 8 + 12 + 16) * 32}
        assert "masks pixels" in log
    else:
        assert len(tiles) == 16 and "masked" not in report
        assert "not a mask: forest/12.tif" in log


def test_bands_by_name_and_masks_by_band_and_file(tmp_path, monkeypatch):
    """Descriptions in another order in each file; a mask band; masks of half the resolution."""
    names = ["B02", "B03 (green)", "Red", "SCL"]
    expected = {}
    for i in range(12):
        values = scene_values(i, 4).astype(np.uint16)
        values[3] = 4
        values[3, :, : i % 4] = 9  # cloud
        order = np.roll(np.arange(4), i)
        name = f"{['forest', 'lake'][i % 2]}/{i}.tif"
        write_raster(tmp_path / "in" / name, values[order], names=[names[k] for k in order], **UTM)
        expected[name] = np.rint((values[[2, 1, 0]] / 2500).clip(0, 1) * 255).transpose(1, 2, 0)
    settings = {"bands": ["red", "b3", "B2"], "stretch": 2500}
    by_band = {"band": "scl", "valid": [4, 5]}
    tiles = fetch(tmp_path / "run", monkeypatch, tmp_path / "in", **settings, mask=by_band)
    assert len(tiles) == 12
    for i, (name, tile) in enumerate(expected.items()):
        assert not tiles[name][:, : i % 4].any()
        assert np.array_equal(tiles[name][:, i % 4 :], tile[:, i % 4 :]), name
    assert read_json("data/imagery/SOURCE.json")["bands"] == settings["bands"]

    # PNGs in another folder, without georeference; then files among the images.
    ground = {"crs": UTM["crs"], "transform": from_origin(500_000, 5_000_000, 20, 20)}
    (tmp_path / "masks").mkdir()
    for pattern in ("../../masks/{stem}.png", "{stem}_mask.tif"):
        for i, name in enumerate(expected):
            half = np.zeros((1, 16, 16), np.uint8)
            half[:, :, i % 4 :] = 1
            if pattern == "{stem}_mask.tif":
                write_raster(tmp_path / "in" / name.replace(".tif", "_mask.tif"), half, **ground)
            else:
                whole = half[0].repeat(2, axis=0).repeat(2, axis=1)
                Image.fromarray(whole).save(tmp_path / f"masks/{i}.png")
        mask = {"file": pattern, "valid": [1]}
        tiles = fetch(tmp_path / "run", monkeypatch, tmp_path / "in", **settings, mask=mask)
        assert tiles.keys() == expected.keys()
        for i, (name, tile) in enumerate(expected.items()):
            assert not tiles[name][:, : 2 * (i % 4)].any()
            assert np.array_equal(tiles[name][:, 2 * (i % 4) :], tile[:, 2 * (i % 4) :]), name
    report = read_json("data/imagery/REPORT.json")
    assert report["skipped"]["mask of another image"]["count"] == 12


def test_a_mask_of_several_bands_or_that_is_broken_is_said(tmp_path):
    write_raster(tmp_path / "a.tif", scene_values(0, 3).astype(np.uint16), **UTM)
    mask = Mask(file="{stem}_mask.tif", valid=[1])
    write_raster(tmp_path / "a_mask.tif", np.ones((3, 32, 32), np.uint8), **UTM)
    with pytest.raises(ParamsMisfit, match="mask: a_mask.tif has 3 bands .* `rio stack --bidx"):
        read_raster(tmp_path / "a.tif", None, mask, "a.tif")
    colors = np.ones((3, 32, 32), np.uint8)
    for blue, advice in ((1, "rio stack --bidx"), (2, "which hold colors: .* a number for each")):
        colors[2] = blue
        write_raster(tmp_path / "a_mask.tif", colors, photometric="rgb", **UTM)
        with pytest.raises(ParamsMisfit, match=advice):
            read_raster(tmp_path / "a.tif", None, mask, "a.tif")
    write_raster(tmp_path / "a_mask.tif", np.ones((1, 32, 32), np.uint8), **UTM)
    whole = (tmp_path / "a_mask.tif").read_bytes()
    (tmp_path / "a_mask.tif").write_bytes(whole[:200])
    with pytest.raises(UnusableImage, match="its mask is unreadable or truncated"):
        read_raster(tmp_path / "a.tif", None, mask, "a.tif")


def test_bands_are_found_by_the_closest_name(tmp_path):
    path = tmp_path / "a.tif"
    values = scene_values(0, 5).astype(np.uint16)
    names = ["Red edge 1", "Blue, 490 nm", "Green", "Red", "B05"]
    write_raster(path, values, names=names, photometric="minisblack")
    assert read_raster(path, None, None, "").bands == (4, 3, 2)
    assert read_raster(path, ["red edge 1", "B5", 1], None, "").bands == (1, 5, 1)
    with pytest.raises(ParamsMisfit, match="no band nir; it has 1 Red edge 1, 2 Blue, 490 nm, "):
        read_raster(path, ["nir"], None, "")
    write_raster(path, values, names=["Red edge", "Green", "Blue", "NIR", "B05"])
    with pytest.raises(ParamsMisfit, match="has 5 bands"):
        read_raster(path, None, None, "")
    for names, bands in (
        (["B2 (blue)", "B3 (green)", "B4 (red)", "B8 (NIR)"], (3, 2, 1)),
        (["N", "R", "G", "B"], (2, 3, 4)),
        (["Band 1", "Band 2", "Band 3", "Band 4"], (1, 2, 3)),
        (["tile_1", "tile_2", "tile_3", "tile_4"], (1, 2, 3)),
    ):
        write_raster(path, values[:4], names=names)
        assert read_raster(path, None, None, "").bands == bands
    # What other names say is not overridden by the order of the bands.
    for names in (["B2", "B3", "B4", "B8"], ["B1", "B2", "B3"], ["NIR", "Red", "Green"]):
        for dtype in (np.uint16, np.uint8):
            write_raster(path, (values[: len(names)] // 40).astype(dtype), names=names)
            with pytest.raises(ParamsMisfit, match=r"\(1 .*\): write which .* \[B4, B3, B2\]"):
                read_raster(path, None, None, "")
    write_raster(path, values[:2], names=["VV", "VH"])
    with pytest.raises(ParamsMisfit, match=r"\(1 VV, 2 VH\): write which is gray, such as \[1\]'"):
        read_raster(path, None, None, "")
    # rasterio calls three bands of bytes red, green and blue, whatever they are.
    write_raster(path, (values[:3] // 40).astype(np.uint8), names=["Blue", "Green", "Red"])
    assert read_raster(path, None, None, "").bands == (3, 2, 1)
    assert read_raster(path, ["red", "green", "blue"], None, "").bands == (3, 2, 1)


# Georeference


@pytest.mark.parametrize(
    "tags, name, date",
    [
        ({}, "S2A_MSIL2A_20200601T101031_N0214_R022_T32UQD_20200602T093211.tif", "2020-06-01"),
        ({}, "T32UQD_20200601T101031_B04.jp2", "2020-06-01"),
        ({}, "LC08_L2SP_193026_20200601_20200825_02_T1_SR_B4.TIF", "2020-06-01"),
        ({}, "forest/m_3807708_ne_18_060_20200601.tif", "2020-06-01"),
        ({}, "m_3807708_ne_18_1_20140718_20141008_17.tif", "2014-07-18"),
        ({"ACQUISITION_DATE": "2019-05-04T10:00:00Z"}, "T32UQD_20200601T101031.tif", "2019-05-04"),
        ({"TIFFTAG_DATETIME": "2021:02:03 04:05:06"}, "a.tif", "2021-02-03"),
        ({"TIFFTAG_DATETIME": "2021:02:03 04:05:06"}, "T32UQD_20200601T101031.tif", "2020-06-01"),
        ({"DATE": "yesterday"}, "forest_20201399T101031.tif", None),
        ({}, "airport_20200601.tif", None),
    ],
)
def test_dates(tags, name, date):
    assert find_date(tags, name) == date


def test_the_georeference_of_real_tiles_goes_in_and_out_again(tmp_path, monkeypatch):
    """Tiles of 48 x 40 pixels become their center square; exported, they lie where they lay."""
    for i in range(16):
        name = ["forest", "lake"][i % 2]
        place = {
            "crs": "EPSG:32632",
            "transform": from_origin(500_000 + 480 * i, 5_000_000, 10, 10),
        }
        if i == 15:
            place = {"crs": "EPSG:4326", "transform": from_origin(8.0, 50.0, 1e-4, 1e-4)}
        values = scene_values(i, 3, 48).astype(np.uint16)[:, :40]
        write_raster(
            tmp_path / f"in/{name}/T32UQD_202006{i + 1:02}T101031_{i}.tif", values, **place
        )
    write_raster(tmp_path / "in/lake/nowhere.tif", scene_values(16, 3, 48).astype(np.uint16))
    # As an orthophoto with a world file; and in pixels, which is no place.
    for name, corner in (("world", (360_000, 5_614_000)), ("pixels", (0, 0))):
        place = {"transform": from_origin(*corner, 10, 10)}
        seed = corner[0] + 17
        values = scene_values(seed, 3, 48).astype(np.uint16)
        write_raster(tmp_path / f"in/lake/{name}.tif", values, **place)
    fetch(tmp_path / "run", monkeypatch, tmp_path / "in")
    rows = {row["filename"]: row for split in rows_of(tmp_path / "run").values() for row in split}
    row = rows["forest/T32UQD_20200605T101031_4.tif"]
    assert (row["crs"], row["date"]) == ("EPSG:32632", "2020-06-05")
    left = 500_000 + 480 * 4 + 40
    assert row["bounds"] == [left, 5_000_000 - 400, left + 400, 5_000_000]
    assert row["gsd"] == 12.5  # 40 pixels of 10 m in 32
    degrees = rows["lake/T32UQD_20200616T101031_15.tif"]
    assert degrees["crs"] == "EPSG:4326" and 13.8 < degrees["gsd"] < 14
    for name, bounds in (("nowhere", None), ("pixels", None), ("world", [360_000, 5_613_520])):
        row = rows[f"lake/{name}.tif"]
        assert [row["crs"], row["gsd"], row["date"]] == [None] * 3
        assert row["bounds"] == (bounds and [*bounds, 360_480, 5_614_000])

    (low, high), *_ = stretch = read_json("data/imagery/SOURCE.json")["stretch"]
    assert f"{low}" in quote_pixel_values() and "byte / 255" in quote_pixel_values()
    for split in ("train", "valid", "test"):
        export_geotiffs(split, tmp_path / "out" / split)
        assert read_json(tmp_path / "out" / split / "pixel_values.json")["stretch"] == stretch
    exported = sorted((tmp_path / "out").rglob("*.tif"))
    assert len(exported) == 19
    for path in exported:
        name = next(name for name in rows if name.endswith(path.name.partition("_")[2]))
        with rasterio.open(path) as dataset:
            pixels = dataset.read()
            assert np.array_equal(pixels.transpose(1, 2, 0), decode_image(rows[name]["image"]))
            if rows[name]["bounds"]:
                np.testing.assert_allclose(dataset.bounds, rows[name]["bounds"])
            assert dataset.transform.is_identity == (rows[name]["bounds"] is None)
            assert dataset.crs == rows[name]["crs"]
            assert dataset.tags().get("ACQUISITION_DATE") == rows[name]["date"]
            assert dataset.tags()["SCENE"] == rows[name]["scene"]
            values = (
                pixels * np.array(dataset.scales)[:, None, None]
                + np.array(dataset.offsets)[:, None, None]
            )
        inverse = [b / 255 * (high - low) + low for b, (low, high) in zip(pixels, stretch)]
        np.testing.assert_allclose(values, inverse)


@pytest.mark.parametrize(
    "transform, is_place",
    [
        (from_origin(360_000, 5_614_000, 10, 10), True),
        (from_origin(-360_000, -5_614_000, 10, 10), True),
        (from_origin(0, 40, 1, 1), False),
        (from_origin(0, 40 * 0.1, 0.1, 0.1), False),
        (from_origin(-0.5, 39.5, 1, 1), False),
        (from_origin(-20, 20, 1, 1), False),
        (from_origin(96, 0, 1, 1), False),  # a patch of a photo
        (Affine(1, 0, 48, 0, 1, 0), False),
        (from_origin(96, 120.1, 0.3, 0.3), True),
    ],
)
def test_coordinates_that_begin_in_a_raster_are_no_place(tmp_path, transform, is_place):
    """The raster's bounds count, not those of a window."""
    path = tmp_path / "a.tif"
    values = scene_values(1, 3, 40).astype(np.uint16)
    for crs in (None, "EPSG:32632"):
        write_raster(path, values, transform=transform, crs=crs)
        for window in ((0, 0, 40, 40), (16, 16, 16, 16)):
            raster = read_window(RasterWindow(path, *window), None, None, path.name)
            assert (raster.georeference.bounds is not None) == (is_place or crs is not None)
        close_scenes()


def test_generated_geotiffs_say_that_they_are_synthetic(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = {"bytes": encoded(picture(1)), "path": None}
    settings = dict(zip(SETTINGS, ("a lake", "blurry", "7", "dpm++", "20", "2.5", "a1b2")))
    rows = [{"image": image, "label": "Water Body", **settings}] * 2
    schema = pa.schema([("image", IMAGE), *((name, pa.string()) for name in ("label", *SETTINGS))])
    write_shards("data/synthetic", rows, schema)
    export_geotiffs("synthetic", tmp_path / "out")
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == 2
    with rasterio.open(files[0]) as dataset:
        assert dataset.crs is None and dataset.transform.is_identity
        tags = dataset.tags()
        assert "synthetic" in tags["TIFFTAG_IMAGEDESCRIPTION"].lower()
        assert {name: tags[name.upper()] for name in SETTINGS} == settings
        assert np.array_equal(dataset.read().transpose(1, 2, 0), picture(1))


@pytest.mark.parametrize(
    "crs, unit, y, gsd",
    [
        ("EPSG:3857", 1.0, 6_600_000, 0.631),  # 50.9 degrees north
        ("EPSG:3857", 1.0, -6_600_000, 0.631),
        ("EPSG:3395", 4.0, 8_362_698, 2.005),  # 60 degrees, on the ellipsoid
        ("EPSG:3857", 1.0, 160, 1.0),
        ("EPSG:32632", 10.0, 6_600_000, 10.0),
        ("EPSG:2263", 1.0, 200_000, 0.3048),  # feet
    ],
)
def test_gsd_is_meters_on_the_ground(tmp_path, crs, unit, y, gsd):
    place = {"crs": crs, "transform": from_origin(900_000, y, unit, unit)}
    write_raster(tmp_path / "a.tif", scene_values(0, 3).astype(np.uint16), **place)
    read = read_raster(tmp_path / "a.tif", None, None, "a.tif").georeference.gsd
    assert read == pytest.approx(gsd, rel=5e-3)


# Real tiles


@pytest.mark.real
@pytest.mark.skipif(not (DATA / "rsicd").is_dir(), reason=f"no real data at RD_DATA ({DATA})")
def test_rsicd_as_16_bit_geotiffs_comes_through_to_the_byte(tmp_path, monkeypatch):
    """Four bands of uint16, values times 257, of two classes of RSICD, and its Parquet itself."""
    table = pq.ParquetFile(DATA / "rsicd/valid.parquet").read()
    scenes = [name.split("/")[-1].partition("_")[0] for name in table["filename"].to_pylist()]
    table = table.filter(pa.array([scene in ("airport", "beach") for scene in scenes]))
    pq.write_table(table, tmp_path / "rsicd.parquet")
    for row in table.to_pylist():
        name = Path(row["filename"]).stem
        values = np.asarray(decode_image(row["image"])).transpose(2, 0, 1).astype(np.uint16) * 257
        values = np.concatenate([values, values[:1] // 2])
        write_raster(tmp_path / f"tif/{name.partition('_')[0]}/{name}.tif", values, **UTM)
    parquet = fetch(tmp_path / "run", monkeypatch, tmp_path / "rsicd.parquet", resolution=64)
    settings = {"resolution": 64, "stretch": [0, 65535]}
    fixed = fetch(tmp_path / "run", monkeypatch, tmp_path / "tif", **settings)
    auto = fetch(tmp_path / "run", monkeypatch, tmp_path / "tif", resolution=64)
    tiles = {Path(name).stem: tile for name, tile in parquet.items()}
    assert len(fixed) == len(auto) == len(tiles) > 50
    for name in fixed:
        tile = tiles[Path(name).stem]
        assert np.array_equal(fixed[name], tile)
        assert np.corrcoef(auto[name].ravel(), tile.ravel())[0, 1] > 0.9
