"""A training task: a data set, a model and the softmax cross-entropy between them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from asgd.workloads.augmentation import pad_crop_flip
from asgd.workloads.datasets import Dataset
from asgd.workloads.sampling import AgentSampler, EventSampler
from asgd.workloads.streaming import StreamedDataset

_EVAL_BATCH_BYTES = 2**24


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What one gradient event computes, and how the result is evaluated. Made by `make_task`.

    Images travel as uint8; `loss_fn` and `eval_fn` scale them to 0..1 and subtract the data set's
    mean, that of each pixel over the training set (of each channel for ImageNet), the preprocessing
    of Zhang et al., "Staleness-aware Async-SGD for Distributed Deep Learning" (IJCAI 2016),
    section 4.

    Attributes:
        dataset: Where batches come from.
        model: Flax Linen module, called as `model.apply(variables, images, train=...)`.
        augment: Whether `loss_fn` crops and flips images at random.
        has_model_state: Whether the model has batch statistics, so that `loss_fn` returns them.
    """

    dataset: Dataset | StreamedDataset
    model: nn.Module
    augment: bool
    has_model_state: bool

    @property
    def num_examples(self) -> int:
        """Training examples."""
        return self.dataset.num_examples

    @property
    def labels(self) -> np.ndarray | None:
        """int32 [num_examples], or None where they cannot be had without reading the images."""
        return self.dataset.labels

    @property
    def predictions_per_example(self) -> int:
        return 1

    def init(self, seed: int) -> tuple[Any, Any]:
        """Draws initial parameters.

        Args:
            seed: Any integer that `jax.random.key` takes.

        Returns:
            `(params, model_state)`, plain dict trees; `model_state` holds the running mean and
            variance of batch normalisation and is None for a model without it.
        """
        variables = _init(self.model, self.dataset.image_shape, jax.random.key(seed))
        return variables["params"], variables.get("batch_stats")

    def loss_fn(self, params: Any, batch: dict[str, jax.Array], key: jax.Array | None = None):
        """Computes the mean cross-entropy of a batch, in nats.

        Args:
            params: Parameters, the tree that `init` returns.
            batch: `{"image": uint8 [b, H, W, C], "label": int32 [b]}`.
            key: PRNG key of the gradient event, which decides its crops and flips; unused, and
                may be None, without augmentation.

        Returns:
            The loss, a float32 scalar; for a model with batch normalisation the pair
            `(loss, batch_statistics)`, the second being this batch's own statistics in the tree
            structure of `model_state`.
        """
        image = batch["image"]
        if self.augment:
            image = pad_crop_flip(key, image)
        logits, new_state = self.model.apply(
            {"params": params}, self._normalise(image), train=True, mutable=["batch_stats"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        return (loss, new_state["batch_stats"]) if self.has_model_state else loss

    def eval_fn(self, params: Any, model_state: Any, batch: dict[str, jax.Array],
                mask: jax.Array) -> dict[str, jax.Array]:
        """Computes sums over the rows of a batch that `mask` keeps.

        Args:
            params: Parameters.
            model_state: Running batch statistics, or None.
            batch: As for `loss_fn`; rows that only pad the batch may hold anything.
            mask: bool [b], False for padding.

        Returns:
            `{"loss": float32 sum of the cross-entropies, "correct": int32 count}`.
        """
        variables = {"params": params}
        if self.has_model_state:
            variables["batch_stats"] = model_state
        logits = self.model.apply(variables, self._normalise(batch["image"]), train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        correct = jnp.argmax(logits, axis=-1) == batch["label"]
        return {"loss": jnp.where(mask, losses, 0.0).sum(), "correct": (mask & correct).sum()}

    def evaluate(self, params: Any, model_state: Any = None,
                 batch_size: int | None = None) -> dict[str, float]:
        """Computes loss and accuracy over the whole test set.

        Args:
            params: Parameters.
            model_state: Running batch statistics, or None.
            batch_size: Images per compiled call; the last batch is padded to it. None is 500, or
                fewer of large images.

        Returns:
            `{"eval_loss": mean cross-entropy in nats, "eval_accuracy": fraction from 0 to 1}`,
            accumulated in float64 on the host.

        Raises:
            ValueError: If `batch_size` is not positive.
        """
        if batch_size is None:
            batch_size = max(1, min(500, _EVAL_BATCH_BYTES // self.dataset.example_bytes))
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
        loss, correct, total = 0.0, 0, 0
        for batch in self.dataset.test_batches(batch_size):
            count = len(next(iter(batch.values())))
            mask = np.arange(batch_size) < count
            batch = {name: np.resize(rows, (batch_size, *rows.shape[1:]))
                     for name, rows in batch.items()}
            sums = jax.device_get(self._compiled_eval(params, model_state, batch, mask))
            loss += float(sums["loss"])
            correct += int(sums["correct"])
            total += count
        total *= self.predictions_per_example
        return {"eval_loss": loss / total, "eval_accuracy": correct / total}

    def batches(self, sampler: EventSampler | AgentSampler) -> Callable[[np.ndarray], Any]:
        """Makes the training batches of gradient events.

        Args:
            sampler: Which samples each event uses.

        Returns:
            A function from event numbers [n] to `{"image": uint8 [n, b, H, W, C], "label":
            int32 [n, b]}`, NumPy arrays: `IndexedBatches`, which can also be gathered on the
            devices, or for streamed data a `ReadAhead`.

        Raises:
            ValueError: If the sampler counts other examples than the training set has.
        """
        if sampler.num_examples != self.num_examples:
            raise ValueError(
                f"sampler.num_examples must be {self.num_examples}, the training examples of "
                f"{self.dataset.name}, not {sampler.num_examples}")
        return self.dataset.batches(sampler)

    def _normalise(self, image):
        return image.astype(jnp.float32) / 255.0 - self.dataset.mean

    @functools.cached_property
    def _compiled_eval(self):
        return jax.jit(self.eval_fn)


def make_task(dataset: Dataset | StreamedDataset, model: nn.Module, *, augment: bool = False) -> Task:
    """Ties a data set to a model.

    Args:
        dataset: The data set.
        model: Flax Linen module taking float32 images [b, H, W, C] and `train`, whose only
            variables are `params` and perhaps `batch_stats`, and which returns logits.
        augment: Crop and flip training images at random (`pad_crop_flip`), on the device.

    Returns:
        The task.

    Raises:
        ValueError: If the model has other variables, or not one logit per class.

    Example:
        >>> from asgd.workloads import datasets, models
        >>> task = make_task(datasets.load("digits"), models.create("mlp", 10, hidden=(16,)))
        >>> params, model_state = task.init(seed=0)
        >>> sorted(task.evaluate(params, model_state))
        ['eval_accuracy', 'eval_loss']
    """
    variables = jax.eval_shape(
        functools.partial(_init, model, dataset.image_shape), jax.random.key(0))
    if not {"params"} <= set(variables) <= {"params", "batch_stats"}:
        raise ValueError(f"model must have the variables params and at most batch_stats, "
                         f"not {', '.join(sorted(variables)) or 'none'}")
    logits = jax.eval_shape(
        functools.partial(model.apply, train=False), variables,
        jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.float32))
    if logits.shape != (1, dataset.num_classes):
        raise ValueError(f"model must return {dataset.num_classes} logits per image, one per "
                         f"class of {dataset.name}, not {list(logits.shape[1:])}")
    return Task(dataset, model, augment, has_model_state="batch_stats" in variables)


def _init(model, image_shape, key):
    # Compiled, because a deep model takes many seconds operation by operation.
    init = jax.jit(functools.partial(model.init, train=False))
    return init(key, jnp.zeros((1, *image_shape), jnp.float32))
