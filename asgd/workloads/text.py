"""Text, character by character: data sets and the task of predicting the next one."""

import dataclasses
import functools
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from asgd.workloads.datasets import InMemory
from asgd.workloads.prepared import tfds_source
from asgd.workloads.task import Task

NAMES = ("text", "tiny_shakespeare")
VOCABULARY = 256  # Bytes.


@dataclasses.dataclass(frozen=True, eq=False)
class TextDataset(InMemory):
    """Windows of L + 1 bytes, of which the last of one is the first of the next.

    Args:
        name: What errors and reports call the data set.
        train: `{"tokens": uint8 [N, L + 1]}`.
        test: The same for the test split.
    """

    name: str
    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]


def load(name: str, length: int, data_dir: str | None = None, path: str | None = None) -> TextDataset:
    """Loads a text.

    Args:
        name: `"tiny_shakespeare"`, from TFDS (a megabyte, 90 % training, 5 % test), or `"text"`.
        length: L, predictions of a window.
        data_dir: As for `asgd.workloads.datasets.load`.
        path: Of `"text"`: a file, of which the last tenth is for testing.

    Raises:
        ValueError: If the name is unknown, the file cannot be read, or a split is shorter than a
            window.
        DatasetNotPrepared: If TFDS has no readable copy.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     _ = file.write(b"to be or not to be " * 20)
        ...     file.flush()
        ...     load("text", 8, path=file.name).train["tokens"].shape
        (42, 9)
    """
    if name not in NAMES:
        raise ValueError(f"text must be one of {', '.join(NAMES)}, not {name!r}")
    if name == "text":
        try:
            whole = pathlib.Path(path or "").read_bytes()
        except OSError as error:
            raise ValueError(f"the text at {path!r} cannot be read: {error.strerror}") from None
        cut = len(whole) - len(whole) // 10
        texts = {"train": whole[:cut], "test": whole[cut:]}
    else:
        texts = {split: tfds_source(name, split, data_dir)[0]["text"] for split in ("train", "test")}
    return TextDataset(name, **{
        split: {"tokens": _windows(text, length, name, split)} for split, text in texts.items()})


def _windows(text, length, name, split):
    tokens = np.frombuffer(text, np.uint8)
    count = (len(tokens) - 1) // length
    if count < 1:
        raise ValueError(f"the {split} split of {name} has {len(tokens)} characters, fewer than a "
                         f"window of {length + 1}")
    starts = np.arange(count)[:, None] * length
    return tokens[starts + np.arange(length + 1)]


@dataclasses.dataclass(frozen=True, eq=False)
class TextTask(Task):
    """Predicts every next byte of a window; losses are nats and accuracies fractions per byte."""

    dataset: TextDataset
    model: nn.Module
    augment: bool = False
    has_model_state: bool = False

    @property
    def predictions_per_example(self) -> int:
        return self.dataset.train["tokens"].shape[1] - 1

    def init(self, seed: int) -> tuple[Any, Any]:
        """Draws initial parameters; returns them and None."""
        tokens = jnp.zeros((1, self.predictions_per_example), jnp.int32)
        init = jax.jit(functools.partial(self.model.init, train=False))
        return init(jax.random.key(seed), tokens)["params"], None

    def loss_fn(self, params: Any, batch: dict[str, jax.Array], key: jax.Array | None = None):
        """Computes the mean cross-entropy of `{"tokens": uint8 [b, L + 1]}`, in nats per byte."""
        del key
        return self._losses(params, batch)[0].mean()

    def eval_fn(self, params: Any, model_state: Any, batch: dict[str, jax.Array],
                mask: jax.Array) -> dict[str, jax.Array]:
        """Computes sums over the bytes of the windows that `mask` keeps."""
        losses, correct = self._losses(params, batch)
        kept = mask[:, None]
        return {"loss": jnp.where(kept, losses, 0.0).sum(), "correct": (kept & correct).sum()}

    def _losses(self, params, batch):
        tokens = batch["tokens"].astype(jnp.int32)
        logits = self.model.apply({"params": params}, tokens[:, :-1], train=True)
        targets = tokens[:, 1:]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return losses, logits.argmax(-1) == targets
