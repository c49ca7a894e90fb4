"""Eight emulated devices in one process, and float64 where a test asks for it."""

import tempfile

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)

# Many tests compile the same small programs: each is compiled once a run.
_CACHE = tempfile.TemporaryDirectory()
jax.config.update("jax_compilation_cache_dir", _CACHE.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
