"""Loads the references that several tests compare with."""

import importlib.util
import pathlib

import pytest


def _load(name):
    path = pathlib.Path(__file__).parent / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def numpy_server():
    return _load("numpy_server")


@pytest.fixture(scope="session")
def numpy_gossip():
    return _load("numpy_gossip")


@pytest.fixture(scope="session")
def numpy_averaging():
    return _load("numpy_averaging")
