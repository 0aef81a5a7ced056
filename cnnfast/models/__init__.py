"""The networks of the courses, built from `cnnfast.nn`, and a small one for everyday use."""

from __future__ import annotations

from cnnfast.models.classifier import Classifier
from cnnfast.models.cnn1d import SimpleCNN1d
from cnnfast.models.deep import DeepConvNet
from cnnfast.models.scanning import DistributedScanningMLP, SimpleScanningMLP
from cnnfast.models.small import small_cnn
from cnnfast.models.three_layer import ThreeLayerConvNet

__all__ = [
    "Classifier",
    "DeepConvNet",
    "DistributedScanningMLP",
    "SimpleCNN1d",
    "SimpleScanningMLP",
    "ThreeLayerConvNet",
    "small_cnn",
]
