"""Short trainings on MNIST and CIFAR-10 themselves, of a fixed number of steps.

CNNFAST_DATA names the folder of the files, as for ``test_data.py``. What whole runs reach is in the
README; here a run must be well on its way.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnfast.data import Augment, Dataset, Stages, load_cifar10, load_mnist
from cnnfast.data.augment import mirrored
from cnnfast.models import DeepConvNet, ThreeLayerConvNet, fast_cnn, small_cnn
from cnnfast.training import Solver


def folder(name: str) -> Path:
    data = os.environ.get("CNNFAST_DATA")
    if not data:
        pytest.skip("CNNFAST_DATA names no folder of real data")
    if not (Path(data) / name).is_dir():
        pytest.skip(f"no {name} in CNNFAST_DATA")
    return Path(data) / name


@pytest.fixture(scope="module")
def cifar() -> Dataset:
    return load_cifar10(folder("cifar-10-batches-py")).take(train=10_000, test=1000).standardized()


def test_mnist_in_a_hundred_and_fifty_steps() -> None:
    data = load_mnist(folder("mnist")).take(train=15_000, test=2000)
    rng = np.random.default_rng(0)
    model = small_cnn(data.input_shape, width=8, rng=rng)
    solver = Solver(
        model, data, update_rule="adamw", optim_config={"lr": 1e-2}, num_epochs=1,
        batch_size=100, schedule="one_cycle", rng=rng,
    )  # fmt: skip
    solver.train()
    assert solver.steps == 150
    assert solver.check_accuracy(data.X_test, data.y_test) > 0.96


def test_fast_cnn_on_small_images_and_then_on_whole_ones(cifar: Dataset) -> None:
    rng = np.random.default_rng(0)
    whole, small = Augment("alternating", 0), Augment("alternating", 0, shrink=2)
    solver = Solver(
        fast_cnn(filters=(16, 32, 64), rng=rng), cifar, update_rule="sgd",
        optim_config={"lr": 0.2, "momentum": 0.85, "nesterov": True, "weight_decay": 1e-3},
        num_epochs=3, batch_size=128, schedule="triangular", rng=rng,
        augment=Stages(((0.4, small), (1.0, whole))),
    )  # fmt: skip
    solver.train()
    plain = solver.check_accuracy(cifar.X_test, cifar.y_test)
    both = solver.check_accuracy(cifar.X_test, cifar.y_test, views=mirrored)
    assert plain > 0.5
    assert both > plain - 0.02


def trained(model: Any, data: Dataset, **settings: Any) -> Solver:
    solver = Solver(
        model, data, update_rule="adam", rng=np.random.default_rng(1), num_train_samples=None,
        **settings,
    )  # fmt: skip
    solver.train()
    return solver


@pytest.mark.parametrize("size", [50, 100])
def test_a_few_images_are_learned_by_heart(cifar: Dataset, size: int) -> None:
    model = ThreeLayerConvNet(filter_size=3, weight_scale="kaiming", rng=np.random.default_rng(0))
    data = cifar.take(train=size, val=100)
    solver = trained(model, data, optim_config={"lr": 1e-3}, num_epochs=30, batch_size=25)
    assert solver.train_acc_history[-1] == 1.0


def test_thirty_one_layers_learn_with_kaiming_only(cifar: Dataset) -> None:
    gains = {}
    for scale in (2e-3, "kaiming"):
        model = DeepConvNet(
            num_filters=[8] * 30, max_pools=[9, 19, 29], weight_scale=scale,
            rng=np.random.default_rng(0),
        )  # fmt: skip
        assert model.num_layers == 31
        data = cifar.take(train=500, val=100)
        solver = trained(model, data, optim_config={"lr": 2e-3}, num_epochs=15, batch_size=50)
        gains[scale] = np.mean(solver.loss_history[:5]) - np.mean(solver.loss_history[-5:])
    assert gains[2e-3] < 0.05
    assert gains["kaiming"] > 0.15
