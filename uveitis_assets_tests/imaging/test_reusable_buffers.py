"""Buffers that serve image after image: whose they are, and what they may hold."""

from __future__ import annotations

import errno
import mmap
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from uveitis_assets.fundus.color import ReferenceColor, normalize_crop
from uveitis_assets.fundus.configuration import NormalizationConfiguration
from uveitis_assets.imaging.reusable_buffers import reused_buffers, thread_buffer
from uveitis_assets_tests.fundus.preprocess_inputs import fundus_picture
from uveitis_assets_tests.patience import patience


def test_a_thread_takes_the_same_memory_again_and_more_only_for_a_larger_array() -> None:
    first = thread_buffer("plane", (40, 30))
    first[:] = 7
    smaller = thread_buffer("plane", (20, 10, 4))
    assert smaller.shape == (20, 10, 4)
    assert (smaller == 7).all()
    assert np.shares_memory(first, smaller)
    larger = thread_buffer("plane", (3000, 2000))
    assert larger.shape == (3000, 2000)
    assert not np.shares_memory(first, larger)
    assert (first == 7).all(), "who still holds the former memory keeps it"
    assert not np.shares_memory(larger, thread_buffer("other plane", (3000, 2000)))


def test_the_thread_s_memory_goes_back_when_the_work_that_needs_it_is_over() -> None:
    with reused_buffers():
        plane = thread_buffer("plane", (40, 30))
        plane[:] = 7
        assert np.shares_memory(plane, thread_buffer("plane", (40, 30)))
    assert (plane == 7).all(), "who still holds it keeps it"
    assert not np.shares_memory(plane, thread_buffer("plane", (40, 30)))


def test_memory_is_there_also_where_the_system_refuses_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithoutHugePages(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", WithoutHugePages)
    plane = thread_buffer("plane where pages are small", (30, 20))
    plane[:] = 5
    assert plane.sum() == 30 * 20 * 5


def test_two_threads_never_share_a_buffer() -> None:
    both_hold_one = threading.Barrier(2, timeout=patience(30))

    def take(level: int) -> bool:
        mine = thread_buffer("plane", (500, 500))
        mine[:] = level
        both_hold_one.wait()
        return bool((mine == level).all())

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(take, (1, 2))) == [True, True]


def test_an_image_does_not_depend_on_the_images_that_its_thread_normalized_before() -> None:
    reference = ReferenceColor((90.0, 150.0, 160.0), (25.0, 9.0, 11.0))
    mask = np.zeros((150, 200), dtype=np.uint8)
    mask[20:140, 30:190] = 255
    large_mask = np.full((400, 600), 255, dtype=np.uint8)
    for method in ("clahe_luminance", "reinhard_lab_ref"):
        configuration = NormalizationConfiguration.model_validate({"method": method})
        crop = fundus_picture(1, 200, 150)
        before, _ = normalize_crop(crop, mask, configuration, reference)
        kept = before.copy()
        normalize_crop(fundus_picture(2, 600, 400), large_mask, configuration, reference)
        np.testing.assert_array_equal(before, kept, err_msg="a result is no buffer")
        np.testing.assert_array_equal(normalize_crop(crop, mask, configuration, reference)[0], kept)
