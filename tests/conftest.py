"""Tolerances of the tests, each with its reason, and the fixtures that all of them share."""

import os
from importlib.metadata import version
from importlib.util import find_spec

# Before torch is imported, here and in child processes: the models are tiny, every core has a
# worker of its own, and more threads than cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest

from forks import Forks

# Not from torch itself: the process that only hands out the tests does without it.
TORCH = tuple(int(number) for number in version("torch").split(".")[:2])
# The sources' tests use the real libraries: without the extra `models` they are left out.
MODELS = ("timm", "open_clip", "diffusers", "transformers", "safetensors", "scipy")
MISSING = [name for name in MODELS if find_spec(name) is None]
PROGRAMS = ["on_ray.py", "kernels_checked.py", "kernels_compiled.py"]
collect_ignore = PROGRAMS + (["adapters"] if MISSING else [])


def pytest_report_header():
    """Say what is left out, so that nobody takes a bare install's run for the whole."""
    if MISSING:
        return f"tests/adapters is left out: {', '.join(MISSING)} not installed ([models])"
    return None


def pytest_runtest_setup(item):
    """Skip what needs a GPU where there is none; a worker has imported torch already."""
    if item.get_closest_marker("cuda"):
        from torch.cuda import is_available

        if not is_available():
            pytest.skip("needs a CUDA GPU")


# How far a float32 result may be from the float64 reference, as a share of the map's range.
# Rounding gives 1e-6; the rest is for interpolation at a crossing, which divides by a difference.
RANGE_TOLERANCE = 1e-4
# Sums of a few thousand float32 numbers of size one.
SUM_TOLERANCE = 1e-5
# What float16 and bfloat16 inputs may change, as a share of the map's range.
HALF_TOLERANCE = 1e-2

# The slow reference makes an example take a second; the same examples every time, so that a
# failure is a failure for everybody.
hypothesis.settings.register_profile("default", deadline=None, derandomize=True, max_examples=30)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=300)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture
def rng():
    """A seeded generator of one's own for every test."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def forks():
    """Processes of their own that need not import torch."""
    with Forks() as server:
        yield server


@pytest.fixture(scope="module")
def uncached():
    """Trace without torch's cache of operators: where sizes are symbols, it costs a third more."""
    import torch._dynamo

    with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        yield
