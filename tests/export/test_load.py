"""Load on exported models: memory that does not grow, and many threads."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from solo_d2.export.runner import Detector
from tests.growth import MIB, growth

pytestmark = [
    pytest.mark.detectron2,
    pytest.mark.export,
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc"),
]

SIZES = [(70, 100), (120, 90), (33, 50), (1, 1), (160, 40)]


@pytest.fixture(scope="module")
def detector(exported):
    return Detector.load(exported.onnx, threads=1)


def pictures():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


@pytest.mark.parametrize(
    ("number", "allowed"),
    [(300, 4 * MIB), pytest.param(10_000, 16 * MIB, marks=pytest.mark.reliability)],
)
def test_inferences_leave_no_memory_behind(detector, number, allowed):
    images = pictures()
    assert growth(lambda index: detector([images[index % len(images)]]), number) < allowed


def test_eight_threads_get_what_one_gets(detector):
    images = pictures()
    expected = [detector([image])[0] for image in images]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda image: detector([image])[0], images * 8))
    for index, result in enumerate(found):
        for name, value in expected[index % len(images)].items():
            np.testing.assert_array_equal(result[name], value)
