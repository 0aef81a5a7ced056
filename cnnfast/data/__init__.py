"""Real images: digits, MNIST and CIFAR-10, read from files and checked; batches; augmentation."""

from __future__ import annotations

from cnnfast.data import augment
from cnnfast.data.augment import Augment, Stages
from cnnfast.data.batches import EpochOrder, minibatches
from cnnfast.data.cifar import load_cifar10
from cnnfast.data.dataset import DataError, Dataset
from cnnfast.data.digits import load_digits
from cnnfast.data.mnist import load_mnist

__all__ = [
    "Augment",
    "DataError",
    "Dataset",
    "EpochOrder",
    "Stages",
    "augment",
    "load_cifar10",
    "load_digits",
    "load_mnist",
    "minibatches",
]
