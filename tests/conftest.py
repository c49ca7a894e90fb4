"""Eight emulated devices in each process, and float64 where a test asks for it."""

import os
import tempfile

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)

# Many tests compile the same small programs: each is compiled once a run, in whatever process,
# those that tests start too.
_CACHE = "JAX_COMPILATION_CACHE_DIR"


def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.asgd_cache = tempfile.TemporaryDirectory()
        os.environ[_CACHE] = config.asgd_cache.name
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    jax.config.update("jax_compilation_cache_dir", os.environ[_CACHE])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
