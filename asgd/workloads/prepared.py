"""Data sets that TensorFlow Datasets has prepared, read without TensorFlow."""

import importlib


class DatasetNotPrepared(ValueError):
    """The data set is known, but is not on this machine in a format that can be read."""


def require(module: str, package: str):
    """Imports a module, or raises ImportError naming its package."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this data set needs the Python package {package}: pip install {package} "
            f"({error})") from error


def tfds_source(name: str, split: str, data_dir: str | None, encoded: bool = False):
    """Returns the prepared examples of a TFDS data set, a sequence of dicts.

    Args:
        name: What TFDS calls the data set.
        split: Likewise.
        data_dir: As for `load`.
        encoded: Whether images stay bytes, as in their files.

    Raises:
        DatasetNotPrepared: If TFDS has no readable copy; the message says how to make one.
        ImportError: If a package that reads the data is missing; the message names it.
    """
    # TFDS imports its readers late, and its own messages about them do not say what to install.
    tfds = require("tensorflow_datasets", "tensorflow-datasets")
    require("importlib_resources", "importlib_resources")
    require("array_record.python.array_record_data_source", "array_record")
    decoders = {"image": tfds.decode.SkipDecoding()} if encoded else None
    try:
        return tfds.data_source(
            name, split=split, data_dir=data_dir, download=False, decoders=decoders)
    except (KeyError, NotImplementedError, ValueError) as error:
        # The three ways in which TFDS says that there is no data, or not in such a format.
        said = f"{error}".strip().partition("\n")[0]
        raise DatasetNotPrepared(
            f"{_how_to_prepare(name, data_dir)}; TFDS says: {said}") from error


def _how_to_prepare(name, data_dir):
    place = "the default TFDS folder" if data_dir is None else data_dir
    folder = "" if data_dir is None else f"data_dir='{data_dir}', "
    first = "" if name != "imagenet2012" else (
        "put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from image-net.org into "
        "downloads/manual there, ")
    return (
        f"{name} is not prepared as array_record in {place}: {first}on a machine with a network, "
        f"pip install tensorflow tensorflow-datasets, then run once python -c \"import "
        f"tensorflow_datasets as tfds; tfds.builder('{name}', {folder}"
        f"file_format='array_record').download_and_prepare()\" (a copy in another format cannot be "
        f"read: leave it and choose another data_dir)")
