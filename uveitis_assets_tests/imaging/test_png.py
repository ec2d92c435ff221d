"""PNG encoder."""

from __future__ import annotations

import io
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from uveitis_assets.imaging.png import encode_png


def decoded_by_opencv(data: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return image if image.ndim == 2 else image[..., ::-1]


@settings(max_examples=60)
@given(
    st.integers(1, 70),
    st.integers(1, 90),
    st.booleans(),
    st.sampled_from(["noise", "flat", "ramp"]),
    st.integers(0, 99),
)
def test_opencv_and_pillow_decode_what_was_encoded(
    height: int, width: int, colored: bool, kind: str, seed: int
) -> None:
    shape = (height, width, 3) if colored else (height, width)
    generator = np.random.default_rng(seed)
    image = {
        "noise": generator.integers(0, 256, shape, dtype=np.uint8),
        "flat": np.full(shape, seed, dtype=np.uint8),
        "ramp": np.broadcast_to(np.arange(height).reshape(-1, *[1] * (len(shape) - 1)) % 256, shape).astype(np.uint8),
    }[kind]
    data = encode_png(image)
    np.testing.assert_array_equal(decoded_by_opencv(data), image)
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.mode == ("RGB" if colored else "L")
        np.testing.assert_array_equal(np.asarray(picture), image)


def test_images_of_many_blocks_and_views_of_larger_images_survive() -> None:
    large = np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    view = large[7:80, 11:101]
    np.testing.assert_array_equal(decoded_by_opencv(encode_png(view, block_bytes=1000)), view)


def test_pillow_finds_all_checksums_right() -> None:
    data = encode_png(np.random.default_rng(3).integers(0, 256, (40, 40), dtype=np.uint8))
    with Image.open(io.BytesIO(data)) as picture:
        picture.verify()
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 1
    with Image.open(io.BytesIO(bytes(damaged))) as picture, pytest.raises((OSError, SyntaxError)):
        picture.verify()


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (1, 15), (1, 16), (4, 4), (5, 1, 3), (40, 40, 3)])
def test_a_stream_is_flushed_before_the_encoder_takes_the_routine_that_leaves_its_bytes_to_chance(
    shape: tuple[int, ...],
) -> None:
    image = np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8)
    data = encode_png(image)
    start = data.index(b"IDAT") + 4
    flushed = data.index(b"\x00\x00\xff\xff", start) + 4
    rows = np.pad(image.reshape(shape[0], -1), ((1, 0), (0, 0)))
    filtered = np.pad(np.diff(rows.astype(np.int64), axis=0).astype(np.uint8), ((0, 0), (1, 0)), constant_values=2)
    assert zlib.decompressobj().decompress(data[start:flushed]) == filtered.tobytes()[:16]
    np.testing.assert_array_equal(decoded_by_opencv(data), image)


def test_threads_give_the_same_bytes_as_one_after_the_other() -> None:
    images = [np.random.default_rng(seed).integers(0, 40, (200, 150, 3), dtype=np.uint8) for seed in range(16)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(encode_png, images)) == [encode_png(image) for image in images]


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), dtype=np.uint16),
        np.zeros((4, 4, 4), dtype=np.uint8),
        np.zeros((4, 0, 3), dtype=np.uint8),
        np.zeros(4, dtype=np.uint8),
    ],
)
def test_other_shapes_and_types_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected"):
        encode_png(image)
