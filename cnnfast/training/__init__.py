"""Optimisers, learning-rate schedules, and the Solver that trains a model with them."""

from __future__ import annotations

from cnnfast.training import schedules
from cnnfast.training.checkpoint import CheckpointError
from cnnfast.training.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from cnnfast.training.schedules import Constant, Cosine, OneCycle, Step, Triangular
from cnnfast.training.solver import Solver

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "CheckpointError",
    "Constant",
    "Cosine",
    "OneCycle",
    "Optimizer",
    "RMSprop",
    "Solver",
    "Step",
    "Triangular",
    "schedules",
]
