"""Data sets, models and losses: what the workers of the virtual cluster compute."""

from asgd.workloads.augmentation import pad_crop_flip
from asgd.workloads.datasets import Dataset, DatasetNotPrepared, load
from asgd.workloads.models import MLP, ResNet20, ResNet50, SmallCNN, create
from asgd.workloads.sampling import EventSampler
from asgd.workloads.streaming import StreamedDataset
from asgd.workloads.task import Task, make_task

__all__ = [
    "Dataset",
    "DatasetNotPrepared",
    "EventSampler",
    "MLP",
    "ResNet20",
    "ResNet50",
    "SmallCNN",
    "StreamedDataset",
    "Task",
    "create",
    "load",
    "make_task",
    "pad_crop_flip",
]
