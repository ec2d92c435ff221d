"""Landed image files: what is accepted, what is set aside and why, and that decoding equals Pillow's."""

import contextlib
import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, TiffImagePlugin

from uveitis_assets.landing.image_file import decode_rgb
from uveitis_assets.landing.image_probe import MAX_PIXELS, is_image_name, probe_image
from uveitis_assets.landing.quarantine import QuarantineError

EXTENSION = {"JPEG": ".jpg", "PNG": ".png", "BMP": ".bmp", "TIFF": ".tif"}


def picture(mode="RGB", size=(96, 64), seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    return image.convert(mode)


def encoded(image, format_name, **options):
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def reason_of(data, name, reader=probe_image):
    with pytest.raises(QuarantineError) as caught:
        reader(data, name)
    assert caught.value.detail.startswith(f"{name}: ")
    return caught.value.reason


def png_with_header(width, height, bits=8, color_type=2):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


# Headers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_name", sorted(EXTENSION))
def test_the_size_comes_from_the_header(format_name):
    header = probe_image(encoded(picture(size=(96, 64)), format_name), "eye" + EXTENSION[format_name])
    assert (header.width, header.height) == (96, 64)


@pytest.mark.parametrize("name", ["a.jpg", "a.JPG", "a.jpeg", "a.JPEG", "b c, d.Jpg", "œil gauche.jpg"])
def test_extensions_count_in_any_case(name):
    assert is_image_name(name)
    assert probe_image(encoded(picture(), "JPEG"), name).width == 96


@pytest.mark.parametrize("name", ["a.txt", "jpg", ".jpg", "a.jpg.txt", "a.gif", "x.jpg/readme"])
def test_other_names_are_no_image_names(name):
    assert not is_image_name(name)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "TIFF"])
def test_size_and_pixels_follow_the_exif_orientation(format_name, orientation):
    if format_name == "TIFF":
        data = encoded(picture(), "TIFF", tiffinfo={274: orientation})
    else:
        exif = Image.Exif()
        exif[274] = orientation
        data = encoded(picture(), format_name, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    header = probe_image(data, "eye" + EXTENSION[format_name])
    assert (header.height, header.width) == expected.shape[:2]
    found = decode_rgb(data, "eye" + EXTENSION[format_name])
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_a_senseless_orientation_is_ignored(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    data = encoded(picture(), "JPEG", exif=exif)
    np.testing.assert_array_equal(decode_rgb(data, "a.jpg"), np.asarray(Image.open(io.BytesIO(data))))


def test_damaged_exif_is_ignored():
    data = bytearray(encoded(picture(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    assert probe_image(bytes(data), "a.jpg").width == 96


@pytest.mark.parametrize(
    "options",
    [
        ("JPEG", {"quality": 90}),
        ("JPEG", {"quality": 60, "progressive": True}),
        ("JPEG", {"subsampling": 0, "optimize": True}),
        ("JPEG", {"restart_marker_rows": 1}),
        ("JPEG", {"keep_rgb": True}),
        ("PNG", {"compress_level": 1}),
        ("PNG", {"optimize": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"compression": "packbits"}),
        ("TIFF", {"compression": "jpeg"}),
        ("TIFF", {"big_tiff": True}),
        ("TIFF", {"compression": "tiff_lzw", "strip_size": 1000}),
    ],
    ids=str,
)
def test_decoding_equals_pillow(options):
    format_name, settings = options
    data = encoded(picture(size=(131, 77)), format_name, **settings)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(decode_rgb(data, "a" + EXTENSION[format_name]), expected)


def test_a_bitmap_of_32_bits_without_alpha_and_one_stored_top_down_decode_like_pillow():
    pixels = np.asarray(picture(size=(40, 36)))
    bgrx = np.zeros((36, 40, 4), np.uint8)
    bgrx[:, :, :3] = pixels[:, :, ::-1]
    header = struct.pack("<IiiHHIIiiII", 40, 40, -36, 1, 32, 0, bgrx.nbytes, 0, 0, 0, 0)
    data = b"BM" + struct.pack("<IHHI", 54 + bgrx.nbytes, 0, 0, 54) + header + bgrx.tobytes()
    np.testing.assert_array_equal(decode_rgb(data, "a.bmp"), pixels)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), pixels)


def test_real_images_decode_like_pillow(real_data):
    files = [real_data / "uwf/images/UWF-mosaic-108.jpg", real_data / "drive/images/21_training.tif"]
    for file in files:
        expected = np.asarray(ImageOps.exif_transpose(Image.open(file)).convert("RGB"))
        np.testing.assert_array_equal(decode_rgb(file.read_bytes(), file.name), expected)


def test_a_multi_picture_jpeg_is_read_as_its_first_picture():
    first, second = picture(seed=1), picture(seed=2)
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    expected = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode_rgb(data, "a.jpg"), expected)


def test_bytes_behind_the_image_are_allowed():
    for format_name, extension in EXTENSION.items():
        data = encoded(picture(), format_name)
        np.testing.assert_array_equal(
            decode_rgb(data + b"trailer" * 99, "a" + extension), decode_rgb(data, "a" + extension)
        )


# What is set aside --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.tif"])
def test_an_empty_file_and_a_text_file_are_no_images(name):
    assert reason_of(b"", name) == "empty_file"
    assert reason_of(b"patient,eye\n1,left\n" * 50, name) == "not_an_image"
    assert reason_of(bytes(5000), name) == "not_an_image"


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff"])
def test_a_jpeg_under_another_extension_is_named(name):
    assert reason_of(encoded(picture(), "JPEG"), name) == "wrong_extension"


@pytest.mark.parametrize("format_name", ["GIF", "WEBP", "JPEG2000"])
def test_a_known_foreign_format_is_named(format_name):
    assert reason_of(encoded(picture(), format_name), "a.jpg") == "wrong_extension"


@pytest.mark.parametrize(
    ("mode", "format_name", "expected"),
    [
        ("CMYK", "JPEG", "unsupported_color_mode"),
        ("CMYK", "TIFF", "unsupported_color_mode"),
        ("L", "JPEG", "unsupported_color_mode"),
        ("L", "PNG", "unsupported_color_mode"),
        ("L", "BMP", "unsupported_color_mode"),
        ("L", "TIFF", "unsupported_color_mode"),
        ("1", "PNG", "unsupported_color_mode"),
        ("1", "TIFF", "unsupported_color_mode"),
        ("P", "PNG", "unsupported_color_mode"),
        ("P", "BMP", "unsupported_color_mode"),
        ("P", "TIFF", "unsupported_color_mode"),
        ("LA", "PNG", "unsupported_color_mode"),
        ("RGBA", "PNG", "alpha_channel"),
        ("RGBA", "TIFF", "alpha_channel"),
        ("I;16", "PNG", "unsupported_bit_depth"),
        ("I;16", "TIFF", "unsupported_bit_depth"),
        ("F", "TIFF", "unsupported_bit_depth"),
    ],
)
def test_anything_but_8_bit_rgb_is_set_aside(mode, format_name, expected):
    image = Image.fromarray(np.zeros((64, 96), np.uint16)) if mode == "I;16" else picture(mode)
    assert reason_of(encoded(image, format_name), "a" + EXTENSION[format_name]) == expected


def test_lab_is_set_aside():
    lab = picture("RGB")
    lab = Image.merge("LAB", lab.split())
    assert reason_of(encoded(lab, "TIFF"), "a.tif") == "unsupported_color_mode"


def test_16_bit_rgb_is_set_aside_although_pillow_calls_it_rgb():
    pixels = np.random.default_rng(0).integers(0, 65536, (64, 96, 3), dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        data = cv2.imencode(Path(name).suffix, pixels)[1].tobytes()
        assert reason_of(data, name) == "unsupported_bit_depth"
    data = cv2.imencode(".png", pixels)[1].tobytes()
    assert Image.open(io.BytesIO(data)).mode == "RGB"  # why the header is read by hand


def test_a_bitmap_with_an_alpha_mask_is_set_aside():
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 56, 40, 40, 1, 32, 3, 6400, 0, 0, 0, 0) + masks
    data = b"BM" + struct.pack("<IHHI", 70 + 6400, 0, 0, 70) + header + bytes(6400)
    assert Image.open(io.BytesIO(data)).mode == "RGBA"
    assert reason_of(data, "a.bmp") == "alpha_channel"


def test_a_transparent_colour_is_alpha():
    assert reason_of(encoded(picture(), "PNG", transparency=(0, 0, 0)), "a.png") == "alpha_channel"


def test_animations_and_pages_are_set_aside():
    frames = [picture(seed=seed) for seed in (1, 2)]
    for format_name in ("PNG", "TIFF"):
        data = encoded(frames[0], format_name, save_all=True, append_images=frames[1:])
        assert reason_of(data, "a" + EXTENSION[format_name]) == "animated"


def test_a_tiff_with_a_preview_is_one_picture():
    preview_tags = TiffImagePlugin.ImageFileDirectory_v2()
    preview_tags[254] = 1
    preview = picture(size=(48, 32))
    preview.encoderinfo = {"tiffinfo": preview_tags}
    data = encoded(picture(), "TIFF", save_all=True, append_images=[preview])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert probe_image(data, "a.tif").width == 96


@pytest.mark.parametrize("size", [(1, 1), (31, 500), (500, 31)])
def test_tiny_images_are_set_aside(size):
    for format_name, extension in EXTENSION.items():
        image = Image.new("RGB", size)
        assert reason_of(encoded(image, format_name), "a" + extension) == "too_small"
    assert probe_image(encoded(Image.new("RGB", (32, 32)), "PNG"), "a.png").width == 32


def test_decompression_bombs_are_judged_by_their_header_without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reason_of(png_with_header(20_000, 20_000), "a.png") == "too_large"
        assert reason_of(png_with_header(2**31 - 1, 2**31 - 1), "a.png") == "too_large"
        # Below the limit, but more than so few bytes can unpack to.
        assert reason_of(png_with_header(13_000, 13_000), "a.png") == "truncated"
        bitmap = bytearray(encoded(picture(), "BMP"))
        bitmap[18:26] = struct.pack("<ii", 100_000, 100_000)
        assert reason_of(bytes(bitmap), "a.bmp") == "too_large"
        jpeg = bytearray(encoded(picture(), "JPEG"))
        frame = jpeg.index(b"\xff\xc0")
        jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
        assert reason_of(bytes(jpeg), "a.jpg") == "too_large"
        jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 12_000, 12_000)
        assert reason_of(bytes(jpeg), "a.jpg") == "truncated"
    assert 13_000**2 < MAX_PIXELS < 20_000**2


def test_headers_of_one_flat_colour_are_not_taken_for_too_short():
    flat = Image.new("RGB", (3000, 3000), (10, 20, 30))
    for format_name, options in (("PNG", {"compress_level": 9}), ("JPEG", {"quality": 1, "progressive": True})):
        data = encoded(flat, format_name, **options)
        assert decode_rgb(data, "a" + EXTENSION[format_name]).shape == (3000, 3000, 3)


def test_random_bytes_behind_a_signature_raise_nothing_but_quarantine():
    generator = np.random.default_rng(3)
    for format_name, extension in EXTENSION.items():
        data = bytearray(encoded(picture(), format_name))
        for _ in range(300):
            damaged = bytearray(data)
            for position in generator.integers(2, min(len(data), 300), 4):
                damaged[position] = generator.integers(0, 256)
            with contextlib.suppress(QuarantineError):
                decode_rgb(bytes(damaged), "a" + extension)


# Truncation ---------------------------------------------------------------------------------------------------


def samples_to_cut(real_data):
    uwf = (real_data / "uwf/images/UWF-mosaic-108.jpg").read_bytes()
    image = Image.open(io.BytesIO(uwf)).resize((390, 307))
    exif = Image.Exif()
    exif[274] = 6
    thumbnail = encoded(image.resize((80, 60)), "JPEG")
    with_thumbnail = encoded(image, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnail)
    yield "real UWF.jpg", uwf
    yield "with thumbnail.jpg", with_thumbnail
    yield "progressive.jpg", encoded(image, "JPEG", progressive=True)
    yield "rotated.jpg", encoded(image, "JPEG", exif=exif)
    yield "real DRIVE.tif", (real_data / "drive/images/21_training.tif").read_bytes()
    for compression in (None, "tiff_adobe_deflate", "jpeg", "packbits"):
        yield f"{compression}.tif", encoded(image, "TIFF", compression=compression)
    yield "opencv.tif", cv2.imencode(".tif", np.asarray(image))[1].tobytes()
    yield "a.png", encoded(image, "PNG")
    yield "opencv.png", cv2.imencode(".png", np.asarray(image))[1].tobytes()
    yield "a.bmp", encoded(image, "BMP")


def test_every_cut_of_a_real_file_is_detected(real_data):
    undetected = []
    for name, data in samples_to_cut(real_data):
        whole = decode_rgb(data, name)
        cuts = {len(data) * percent // 100 for percent in range(1, 100)} | {len(data) - n for n in (1, 2, 3, 8, 20)}
        for cut in sorted(cuts):
            for filler in (b"", bytes(len(data) - cut)):  # cut off, or never written after preallocation
                reason = None
                try:
                    # Behind the pixels a TIFF may hold the resolution or a date: losing these loses nothing.
                    is_unharmed = np.array_equal(decode_rgb(data[:cut] + filler, name), whole)
                except QuarantineError as error:
                    is_unharmed, reason = False, error.reason
                if not is_unharmed and reason not in ("truncated", "not_an_image"):
                    undetected.append((name, len(data) - cut, "zeros" if filler else "cut"))
    # Zeros in the place of the last bytes of raw pixels are a black corner, and of compressed TIFF data no damage
    # that has a checksum; a few zeros may also be what stood there before.
    assert [entry for entry in undetected if entry[2] == "cut"] == []
    assert [entry for entry in undetected if not entry[0].endswith((".bmp", ".tif"))] == []


def test_cuts_are_found_from_the_structure_without_decoding(real_data, monkeypatch):
    samples = list(samples_to_cut(real_data))
    monkeypatch.setattr(cv2, "imdecode", None)
    for name, data in samples:
        for percent in (30, 60, 97):
            assert reason_of(data[: len(data) * percent // 100], name) == "truncated", (name, percent)


def test_a_flipped_bit_in_a_png_is_found_by_its_checksum():
    data = bytearray(encoded(picture(), "PNG"))
    data[len(data) // 2] ^= 0x10
    assert reason_of(bytes(data), "a.png", decode_rgb) == "truncated"


def test_threads_decode_the_same_pixels_as_one():
    files = [encoded(picture(size=(400, 300), seed=seed), "JPEG") for seed in range(12)]
    alone = [decode_rgb(data, "a.jpg") for data in files]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda data: decode_rgb(data, "a.jpg"), files))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
