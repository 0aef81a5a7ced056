"""Layers that hold parameters and gradients, with PyTorch's names, arguments and state dicts."""

from cnnfast.nn import init
from cnnfast.nn.activation import LeakyReLU, ReLU, ReLU6, Sigmoid, Softmax, Tanh
from cnnfast.nn.container import Residual, Sequential
from cnnfast.nn.conv import Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d
from cnnfast.nn.dropout import Dropout, Dropout2d
from cnnfast.nn.layer import Layer
from cnnfast.nn.linear import Linear
from cnnfast.nn.loss import CrossEntropyLoss, Loss, MSELoss, MultiMarginLoss
from cnnfast.nn.normalization import BatchNorm1d, BatchNorm2d
from cnnfast.nn.pooling import (
    AdaptiveAvgPool2d,
    AdaptiveMaxPool2d,
    AvgPool1d,
    AvgPool2d,
    MaxPool1d,
    MaxPool2d,
)
from cnnfast.nn.serialization import load, save
from cnnfast.nn.shape import Flatten

__all__ = [
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AvgPool1d",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv1d",
    "Conv2d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "CrossEntropyLoss",
    "Dropout",
    "Dropout2d",
    "Flatten",
    "Layer",
    "LeakyReLU",
    "Linear",
    "Loss",
    "MSELoss",
    "MaxPool1d",
    "MaxPool2d",
    "MultiMarginLoss",
    "ReLU",
    "ReLU6",
    "Residual",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "init",
    "load",
    "save",
]
