"""Eight emulated devices in one process, and float64 where a test asks for it."""

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
