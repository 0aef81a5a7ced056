"""Networks built from `cnnfast.nn`: the courses', two of torchvision's, and small ones."""

from __future__ import annotations

from cnnfast.models.classifier import Classifier
from cnnfast.models.cnn1d import SimpleCNN1d
from cnnfast.models.deep import DeepConvNet
from cnnfast.models.fast import fast_cnn
from cnnfast.models.mobilenet import InvertedResidual, mobilenet_v2
from cnnfast.models.resnet import BasicBlock, cifar_resnet, resnet18
from cnnfast.models.scanning import DistributedScanningMLP, SimpleScanningMLP
from cnnfast.models.small import small_cnn
from cnnfast.models.three_layer import ThreeLayerConvNet

__all__ = [
    "BasicBlock",
    "Classifier",
    "DeepConvNet",
    "DistributedScanningMLP",
    "InvertedResidual",
    "SimpleCNN1d",
    "SimpleScanningMLP",
    "ThreeLayerConvNet",
    "cifar_resnet",
    "fast_cnn",
    "mobilenet_v2",
    "resnet18",
    "small_cnn",
]
