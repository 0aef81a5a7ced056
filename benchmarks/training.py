"""The courses' bars on CIFAR-10, run as their notebooks do: ``models`` and ``Solver``.

``python benchmarks/training.py michigan --data-dir DIR`` prints what was reached and in how many
seconds. `--seed` sets where weights and batches come from.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from cnnfast.data import Dataset, load_cifar10  # noqa: E402
from cnnfast.models import DeepConvNet, ThreeLayerConvNet  # noqa: E402
from cnnfast.training import Solver  # noqa: E402


def ucla(data: Dataset, seed: int) -> None:
    """Two 3x3 convolutions with batch norm, pool, two linear layers; Adam, two epochs."""
    rng = np.random.default_rng(seed)
    model = ThreeLayerConvNet(
        num_filters=32, filter_size=3, hidden_dim=256, weight_scale="kaiming", reg=1e-3,
        use_batchnorm=True, conv_layers=2, rng=rng,
    )  # fmt: skip
    trained(model, data, rng, num_epochs=2, lr_decay=0.5, optim_config={"learning_rate": 1e-3})


def michigan(data: Dataset, seed: int) -> None:
    """DeepConvNet for 60 seconds of Adam, whose learning rate ends with the time."""
    rng = np.random.default_rng(seed)
    model = DeepConvNet(
        num_filters=[32, 64, 128, 128], max_pools=[0, 1, 2, 3], batchnorm=True,
        weight_scale="kaiming", reg=1e-5, rng=rng,
    )  # fmt: skip
    trained(
        model, data, rng, time_limit=60.0, batch_size=128, schedule="one_cycle",
        optim_config={"learning_rate": 3e-3},
    )  # fmt: skip


def overfit(data: Dataset, seed: int) -> None:
    """50 and 100 images to the last one."""
    for size in (50, 100):
        rng = np.random.default_rng(seed)
        model = ThreeLayerConvNet(filter_size=3, weight_scale="kaiming", rng=rng)
        trained(
            model, data.take(train=size), rng, num_epochs=40, batch_size=25,
            optim_config={"learning_rate": 1e-3},
        )  # fmt: skip


def depth(data: Dataset, seed: int) -> None:
    """31 layers without batch norm, one epoch: fixed scales of the weights against Kaiming's."""
    for scale in ("kaiming", 1e-1, 1e-2, 1e-3):
        rng = np.random.default_rng(seed)
        model = DeepConvNet(
            num_filters=[8] * 10 + [32] * 10 + [128] * 10, max_pools=[9, 19],
            weight_scale=scale, reg=1e-5, rng=rng,
        )  # fmt: skip
        print(f"weight_scale={scale!r}:")
        trained(
            model, data.take(train=10_000), rng, num_epochs=1, batch_size=128,
            update_rule="sgd_momentum", optim_config={"learning_rate": 2e-3}, allow_nonfinite=True,
        )  # fmt: skip


def trained(
    model: Any,
    data: Dataset,
    rng: np.random.Generator,
    time_limit: float | None = None,
    **settings: Any,
) -> None:
    solver = Solver(model, data, rng=rng, **{"update_rule": "adam", **settings})
    began = time.perf_counter()
    solver.train(time_limit, paced=time_limit is not None)
    seconds = time.perf_counter() - began
    test = solver.check_accuracy(data.X_test, data.y_test)
    print(
        f"{len(data.y_train):,} images: training {max(solver.train_acc_history):.1%}, validation "
        f"{solver.best_val_acc:.1%}, test {test:.1%}; loss {solver.loss_history[0]:.2f} -> "
        f"{np.mean(solver.loss_history[-10:]):.2f}; {solver.steps:,} steps, "
        f"{solver.steps / solver.steps_per_epoch:.2f} epochs, {seconds:.1f} s"
    )


BARS = {run.__name__: run for run in (ucla, michigan, overfit, depth)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bar", choices=list(BARS))
    parser.add_argument("--data-dir", required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = load_cifar10(args.data_dir).standardized()
    BARS[args.bar](data, args.seed)


if __name__ == "__main__":
    main()
