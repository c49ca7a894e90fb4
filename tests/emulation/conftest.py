"""Loads the reference server that several tests compare with."""

import importlib.util
import pathlib

import pytest


@pytest.fixture(scope="session")
def numpy_server():
    path = pathlib.Path(__file__).parent / "numpy_server.py"
    spec = importlib.util.spec_from_file_location("numpy_server", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
