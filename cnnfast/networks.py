"""The whole networks that the benchmark times, with random weights.

One seed gives the same weights and the same data in every process and in both dtypes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnfast import dispatch, models, nn
from cnnfast.suites import TRAINING_STEP, Case
from cnnfast.training import SGD

__all__ = ["LEARNING_RATE", "MOMENTUM", "NETWORKS", "Task", "bound", "build", "draw", "prepare"]

Array = NDArray[Any]

# So small that many steps on one batch change neither the loss nor the time by much.
LEARNING_RATE, MOMENTUM = 1e-4, 0.9

_CLASSES = 10

NETWORKS: dict[str, Callable[[np.random.Generator], nn.Sequential]] = {
    "three-layer": lambda rng: models.ThreeLayerConvNet(weight_scale="kaiming", rng=rng),
    "deep": lambda rng: models.DeepConvNet(
        num_filters=(16, 32, 32, 64, 64),
        max_pools=(0, 1, 2, 3),
        batchnorm=True,
        weight_scale="kaiming",
        rng=rng,
    ),
    "resnet8": lambda rng: models.cifar_resnet(8, rng=rng),
    "resnet18": lambda rng: models.resnet18(rng=rng),
    "mobilenet_v2": lambda rng: models.mobilenet_v2(rng=rng),
}


@dataclass(frozen=True)
class Task:
    """A network and what it is to do, as a peer takes it over.

    Attributes
    ----------
    network : nn.Sequential
        With the weights to start from; in inference mode unless it is to be trained.
    x : ndarray (N, C, H, W)
        Images, in the dtype of the weights.
    labels : ndarray of int (N,)
        Their classes.
    trains : bool
        Whether it is a training step, and not inference.
    """

    network: nn.Sequential
    x: Array
    labels: Array
    trains: bool


def build(name: str, dtype: str, seed: int) -> nn.Sequential:
    """The network of that name, float32 numbers in either dtype.

    Batch norm gets weights, biases and running statistics other than 1 and 0, so that an error
    in any of them shows.
    """
    rng = np.random.default_rng(seed)
    network = NETWORKS[name](rng)
    for _, layer in network.named_layers():
        if isinstance(layer, nn.BatchNorm2d):
            C = layer.num_features
            layer.weight, layer.bias = rng.uniform(0.5, 1.5, C), 0.1 * rng.standard_normal(C)
            layer.running_mean = 0.1 * rng.standard_normal(C)
            layer.running_var = rng.uniform(0.5, 1.5, C)
    if dtype == "float64":
        _widen(network)
    return network


def _widen(network: nn.Layer) -> None:
    """Turn the parameters and buffers of all layers into float64."""
    for _, layer in network.named_layers():
        own = layer.__dict__
        for name in (*own["_param_names"], *own["_buffer_names"]):
            if own[name] is not None and own[name].dtype == np.float32:
                own[name] = own[name].astype(np.float64)
    if isinstance(network, models.Classifier):
        network.dtype = np.dtype(np.float64)


def draw(case: Case, dtype: str, seed: int) -> Task:
    """The network, images and labels of a case."""
    rng = np.random.default_rng([seed, 1])
    network = build(case.options["network"], dtype, seed)
    trains = case.op == TRAINING_STEP
    network.train(trains)
    x = rng.standard_normal(case.shapes["x"], dtype=np.float32).astype(dtype)
    return Task(network, x, rng.integers(0, _CLASSES, case.batch), trains)


def prepare(task: Task, method: str) -> tuple[Callable[[], Any], Callable[[], tuple[Array, ...]]]:
    """What does the work once, and what does it from the start and gives all results.

    The results are the scores; of a training step the loss, the gradients, and the parameters
    after the step. `method` is used wherever an operation has it.
    """
    network = task.network
    if not task.trains:
        network.freeze()

        def infer() -> Any:
            with dispatch.use(method):
                return network(task.x)

        return infer, lambda: (infer(),)

    loss, optimizer = nn.CrossEntropyLoss(), SGD(network.params, LEARNING_RATE, MOMENTUM)
    network.needs_input_grad = False

    def step() -> float:
        with dispatch.use(method):
            value = loss(network(task.x), task.labels)
            network.backward(loss.backward())
            optimizer.step(network.grads)
        return value

    def outcome() -> tuple[Array, ...]:
        value = step()
        grads, params = network.grads, network.params
        return np.asarray(value), _flat(grads[name] for name in params), _flat(params.values())

    return step, outcome


def _flat(arrays: Any) -> Array:
    return np.concatenate([np.ravel(a) for a in arrays])


def bound(case: Case, dtype: str) -> float:
    """The largest accepted error, over the largest output.

    Rounding grows through tens of layers. In training, a number next to 0 may fall on the other
    side of a ReLU, and takes its whole gradient along: in float32 that is seen.
    """
    eps = float(np.finfo(dtype).eps)
    return 10 * eps**0.5 if case.op == TRAINING_STEP else 1000 * eps
