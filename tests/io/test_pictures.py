"""Pictures as drawing programs and cameras write them: palettes, bit depths, transparency, display orientation."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from unisegdiff_pipeline.core.errors import UsdError
from unisegdiff_pipeline.core.geometry import Geometry
from unisegdiff_pipeline.io.images import read_header, read_image, read_labels, write_labels
from unisegdiff_pipeline.io.pictures import label_colours

MASK = np.array([[0, 1, 1], [2, 0, 1]], np.uint8)


def with_palette(path: Path, index: np.ndarray, colours: list[int], **options) -> Path:
    picture = Image.new("P", index.shape[::-1])
    picture.putdata(index.ravel().tolist())
    picture.putpalette(colours)
    picture.save(path, **options)
    return path


def write_png(path: Path, rows: list[bytes], width: int, depth: int, colour_type: int) -> Path:
    """A PNG of any bit depth, which Pillow does not write: each row is packed already."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize(
    ("index", "greys", "values"),
    [
        ([[0, 1]], [0, 1], [0, 1]),
        ([[1, 0]], [1, 0], [0, 1]),  # as optimisers write, which order colours by frequency
        ([[1, 0]], [255, 0], [0, 255]),
        ([[0, 2, 1]], [0, 2, 1], [0, 1, 2]),
        ([[0, 1, 2, 3]], [0, 85, 170, 255], [0, 85, 170, 255]),
    ],
)
def test_of_a_grey_palette_the_grey_value_counts(tmp_path, index, greys, values):
    colours = [value for grey in greys for value in (grey,) * 3]
    path = with_palette(tmp_path / "a.png", np.array(index), colours)
    assert read_labels(path).array.ravel().tolist() == values
    assert read_image([path]).array.ravel().tolist() == values
    assert label_colours(path) == {}


def test_a_palette_of_colours_stands_for_classes_in_labels_and_for_colours_in_images(tmp_path):
    path = with_palette(tmp_path / "voc.png", MASK, [0, 0, 0, 255, 0, 0, 0, 255, 0])
    np.testing.assert_array_equal(read_labels(path).array[0, 0], MASK)
    image = read_image([path]).array
    assert image.shape == (3, 1, 2, 3) == read_header(path)[0]
    assert image[:, 0, 0, 1].tolist() == [255, 0, 0]
    assert label_colours(path)[2] == (0, 255, 0)


def test_a_palette_that_gives_two_values_one_colour_is_refused_for_labels(tmp_path):
    path = with_palette(tmp_path / "twice.png", MASK, [0, 0, 0, 255, 0, 0, 255, 0, 0])
    with pytest.raises(UsdError, match=r"values 1 and 2 have the same colour \(255, 0, 0\).*grey values"):
        read_labels(path)
    grey = with_palette(tmp_path / "grey.png", MASK, [0, 0, 0, 255, 255, 255, 255, 255, 255])
    with pytest.raises(UsdError, match=r"values 1 and 2 have the same colour \(255, 255, 255\)"):
        read_labels(grey)
    assert set(read_image([grey]).array.ravel().tolist()) == {0, 255}


@pytest.mark.parametrize(("depth", "rows"), [(2, [b"\x1b"]), (4, [b"\x01\x23"])])
def test_grey_of_2_and_4_bits_keeps_its_label_values(tmp_path, depth, rows):
    path = write_png(tmp_path / "a.png", rows, width=4, depth=depth, colour_type=0)
    assert read_labels(path).array.ravel().tolist() == [0, 1, 2, 3]
    factor = 85 if depth == 2 else 17
    assert read_image([path]).array.ravel().tolist() == [0, factor, 2 * factor, 3 * factor]


def test_16_bits(tmp_path):
    Image.fromarray(np.array([[0, 1, 300]], np.uint16)).save(tmp_path / "grey.png")
    assert read_labels(tmp_path / "grey.png").array.ravel().tolist() == [0, 1, 300]
    for name, colour_type, samples in (("rgb", 2, 3), ("grey and alpha", 4, 2)):
        path = write_png(tmp_path / f"{name}.png", [b"\0\1" * samples], width=1, depth=16, colour_type=colour_type)
        for reader in (read_labels, lambda p: read_image([p])):
            with pytest.raises(UsdError, match="16 bits a channel"):
                reader(path)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_opaque_alpha_counts_for_nothing_and_any_other_is_refused(tmp_path, mode):
    grey = [MASK] * (1 if mode == "LA" else 3)
    for ending in (".png", ".tif"):
        path = tmp_path / f"{mode}{ending}"
        Image.fromarray(np.dstack([*grey, np.full_like(MASK, 255)]), mode).save(path)
        np.testing.assert_array_equal(read_labels(path).array[0, 0], MASK)
        assert read_image([path]).array.shape == (len(grey), 1, 2, 3) == read_header(path)[0]
        # A label drawn on a transparent layer: its colour is black everywhere.
        Image.fromarray(np.dstack([*[0 * MASK] * len(grey), 127 * MASK]), mode).save(path)
        for reader in (read_labels, lambda p: read_image([p])):
            with pytest.raises(UsdError, match=r"has transparent pixels.*without transparency"):
                reader(path)


def test_a_transparent_colour_is_refused_where_it_occurs(tmp_path):
    used = with_palette(tmp_path / "used.png", MASK, [0, 0, 0, 1, 1, 1, 2, 2, 2], transparency=0)
    unused = with_palette(tmp_path / "unused.png", MASK, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3], transparency=3)
    np.testing.assert_array_equal(read_labels(unused).array[0, 0], MASK)
    Image.fromarray(MASK).save(tmp_path / "grey.png", transparency=1)
    Image.fromarray(MASK.astype(np.uint16)).save(tmp_path / "deep.png", transparency=1)
    for path in (used, tmp_path / "grey.png", tmp_path / "deep.png"):
        with pytest.raises(UsdError, match="transparent pixels"):
            read_labels(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", [".png", ".tif", ".jpg"])
def test_display_orientation_is_applied_to_images_and_labels(tmp_path, ending, orientation):
    shown = np.zeros((8, 16), np.uint8)
    shown[:4, :4], shown[:4, 12:] = 200, 100
    inverse = {6: 8, 8: 6}.get(orientation, orientation)  # all others undo themselves
    stored, exif = Image.fromarray(shown), Image.Exif()
    exif[0x0112] = inverse
    stored.info["exif"] = exif.tobytes()
    stored = ImageOps.exif_transpose(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{ending}"
    stored.save(path, exif=exif, **({"quality": 100} if ending == ".jpg" else {}))
    assert (stored.size != (16, 8)) == (orientation >= 5)
    np.testing.assert_allclose(read_image([path]).array[0, 0], shown, atol=2)
    assert read_header(path)[0] == (1, 1, 8, 16)
    if ending != ".jpg":
        np.testing.assert_array_equal(read_labels(path).array[0, 0], shown)


def test_orientation_of_every_page_of_a_stack(tmp_path):
    pages = [Image.fromarray(np.full((4, 6), value, np.uint8)) for value in (1, 2)]
    pages[1].putpixel((0, 0), 9)
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:], tiffinfo={0x0112: 6})
    array = read_labels(tmp_path / "a.tif").array
    assert array.shape == (1, 2, 6, 4) == read_header(tmp_path / "a.tif")[0]
    assert array[0, 1, 0, 3] == 9  # turned clockwise: the first pixel of the file is at the top right


def test_jpeg_under_another_name_is_no_label_map(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").rename(tmp_path / "a.png")
    assert read_image([tmp_path / "a.png"]).array.shape == (1, 1, 8, 8)
    with pytest.raises(UsdError, match="JPEG alters label values"):
        read_labels(tmp_path / "a.png")


def test_a_stack_that_was_cut_short_is_refused_and_loses_no_slice(tmp_path):
    path = tmp_path / "a.tif"
    noise = np.random.default_rng(0).integers(0, 200, (6, 32, 32)).astype(np.uint8)
    write_labels(path, noise, Geometry())
    content = path.read_bytes()
    for fraction in (0.5, 0.7, 0.9, 0.999):
        path.write_bytes(content[: int(fraction * len(content))])
        with pytest.raises(UsdError, match="truncated or damaged"):
            read_image([path])


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("ImageJ=1.53\nimages=5\nslices=5\n", "holds 5 images, but has 2 pages"),
        ("ImageJ=1.53\nimages=2\nchannels=2\n", "mixes channels or time points"),
        ('{"shape": [3, 4, 6]}', "holds 3 images, but has 2 pages"),
        ('<?xml version="1.0"?><OME><Pixels SizeC="2" SizeT="1" SizeZ="1"/></OME>', "mixes channels"),
    ],
)
def test_a_stack_is_compared_with_its_own_description(tmp_path, description, message):
    pages = [Image.fromarray(np.zeros((4, 6), np.uint8))] * 2
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:], description=description)
    for reader in (read_labels, read_header):
        with pytest.raises(UsdError, match=message):
            reader(tmp_path / "a.tif")


def test_an_animated_picture_is_refused_instead_of_read_in_part(tmp_path):
    first, second = (Image.fromarray(np.full((4, 5), value, np.uint8)) for value in (1, 2))
    first.save(tmp_path / "a.png", save_all=True, append_images=[second])
    for read in (read_header, lambda path: read_image([path]), read_labels):
        with pytest.raises(UsdError, match=r"a\.png is an animated PNG of 2 frames; save the frame that counts, alone"):
            read(tmp_path / "a.png")


def test_pages_of_different_sizes_are_refused(tmp_path):
    pages = [Image.fromarray(np.zeros(shape, np.uint8)) for shape in ((4, 6), (2, 3))]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(UsdError, match="pages of different shapes"):
        read_labels(tmp_path / "a.tif")


def test_a_declared_size_is_refused_before_it_is_decompressed(tmp_path, monkeypatch):
    """60000 x 60000 pixels fit into 4 MB of file."""
    monkeypatch.setattr("unisegdiff_pipeline.core.parallel.available_memory_gb", lambda: 2.0)
    path = write_png(tmp_path / "a.png", [b""], width=60_000, depth=8, colour_type=0)
    content = bytearray(path.read_bytes())
    content[20:24] = struct.pack(">I", 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    path.write_bytes(content)
    with pytest.raises(UsdError, match="which cannot be held by its"):
        read_header(path)
    path.write_bytes(content + bytes(20_000))
    for reader in (read_labels, read_header, lambda p: read_image([p])):
        with pytest.raises(UsdError, match=r"declares the shape \(1, 1, 60000, 60000\).*2\.0 GB of memory are free"):
            reader(path)


@pytest.mark.parametrize("place", [-13, -16])  # in the checksum of the pixels, and in their last bytes
def test_damage_behind_the_last_pixel_is_noticed(tmp_path, place):
    path = tmp_path / "mask.png"
    write_labels(path, np.kron(MASK, np.ones((9, 9), np.uint8))[None], Geometry(is_2d=True))
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(UsdError, match=r"mask\.png .*damaged"):
        read_labels(path)
    path.write_bytes(content[:place])
    with pytest.raises(UsdError, match=r"mask\.png .*(damaged|truncated)"):
        read_labels(path)


def grey_tiff(path: Path, bits: int, kind: int, photometric: int, pixels: bytes) -> Path:
    """A little-endian TIFF of 2 x 2 pixels; `kind` is its sample format (1 unsigned, 3 real)."""
    values = {
        256: 2,
        257: 2,
        258: bits,
        259: 1,
        262: photometric,
        273: 200,
        277: 1,
        278: 2,
        279: len(pixels),
        339: kind,
    }
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    content = struct.pack("<2sHIH", b"II", 42, 8, len(values)) + tags + bytes(4)
    path.write_bytes(content.ljust(200, b"\0") + pixels)
    return path


def test_a_tiff_of_a_kind_that_is_not_read_is_not_called_truncated(tmp_path):
    real = grey_tiff(tmp_path / "a.tif", 64, 3, 1, np.ones((2, 2)).tobytes())
    for read in (read_header, lambda path: read_image([path]), read_labels):
        with pytest.raises(UsdError, match=r"a\.tif is a TIFF that is damaged, or of a kind.*64 bits a value; save it"):
            read(real)
    (tmp_path / "b.png").write_bytes(b"RIFF\0\0\0\0WEBPVP8 ")
    with pytest.raises(UsdError, match=r"b\.png is damaged, or no PNG, JPEG, BMP or TIFF picture, whatever its name"):
        read_header(tmp_path / "b.png")


@pytest.mark.parametrize(
    ("bits", "kind", "values", "what"),
    [
        (8, 2, np.array([-3, 4], np.int8), "signed numbers of 8"),
        (32, 1, np.array([1 << 31, 4], "<u4"), "2.31 and more"),
    ],
)
def test_a_tiff_whose_numbers_would_be_read_with_another_sign_is_refused(tmp_path, bits, kind, values, what):
    path = grey_tiff(tmp_path / "a.tif", bits, kind, 1, np.tile(values, 2).tobytes())
    for read in (lambda path: read_image([path]), read_labels):
        with pytest.raises(UsdError, match=rf"a\.tif holds .*{what}.*save it"):
            read(path)


def test_a_tiff_of_unsigned_or_signed_32_bits_keeps_its_numbers(tmp_path):
    for kind, values in ((1, np.array([0, 1, 2, 1 << 24], "<u4")), (2, np.array([-7, 0, 1, 5], "<i4"))):
        path = grey_tiff(tmp_path / "a.tif", 32, kind, 1, values.tobytes())
        assert read_image([path]).array.ravel().tolist() == values.tolist()


def test_white_as_zero_is_turned_round_in_images_of_8_bits_and_else_refused(tmp_path):
    values = np.array([[0, 1], [254, 255]], np.uint8)
    eight = grey_tiff(tmp_path / "8.tif", 8, 1, 0, values.tobytes())
    np.testing.assert_array_equal(read_image([eight]).array[0, 0], 255 - values)
    with pytest.raises(UsdError, match=r"8\.tif has 8 bits a value and stores white as 0.*save it with black"):
        read_labels(eight)
    black = grey_tiff(tmp_path / "black.tif", 16, 1, 1, values.astype("<u2").tobytes())
    np.testing.assert_array_equal(read_image([black]).array[0, 0], values)
    sixteen = grey_tiff(tmp_path / "16.tif", 16, 1, 0, values.astype("<u2").tobytes())
    for read in (lambda path: read_image([path]), read_labels):
        with pytest.raises(UsdError, match=r"16\.tif has 16 bits a value and stores white as 0.*save it with black"):
            read(sixteen)
