# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # How to start a network of 31 layers
#
# A deep network multiplies: what goes in passes one layer after the other, and each makes it a
# little larger or a little smaller. A little, thirty times over, is a lot. Whether such a network
# learns at all is decided by the size of its random starting weights.
#
# This is the experiment of Michigan's course EECS 498-007 (assignment 3, "Convolutional nets with
# Kaiming initialization"), made small enough for a laptop: 30 convolutions and a linear layer,
# started in four ways. It needs `cnnfast` and matplotlib; the digits come with scikit-learn.

# %%
import os
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np

from cnnfast import nn
from cnnfast.data import load_digits
from cnnfast.models import DeepConvNet
from cnnfast.training import Solver

SHORT = "CNNFAST_EXAMPLES_SHORT" in os.environ  # a form that takes seconds, for tests

# %% [markdown]
# ## Data
#
# Handwritten digits, each pixel repeated to a block of 4 x 4, which makes images of 32 x 32. The
# network halves them twice, to 8 x 8. Left as they are, the last layers would see 2 x 2 pixels, and
# more than half of every 3 x 3 window would be padding.


# %%
def enlarged(images, factor):
    """Each pixel as a block of pixels."""
    return images.repeat(factor, axis=2).repeat(factor, axis=3)


digits = load_digits()
parts = ("X_train", "X_val", "X_test")
data = replace(digits, **{part: enlarged(getattr(digits, part), 4) for part in parts})
data = data.standardized()  # mean 0, standard deviation 1
if SHORT:
    data = data.take(train=64, val=50)
print(data)

# %% [markdown]
# ## The network
#
# Ten convolutions with 8 filters, ten with 16, ten with 32, all of 3 x 3 and with a ReLU behind
# them; max pooling after the tenth and the twentieth; a linear layer at the end.
#
# ## What the theory says
#
# Each output of a layer is a sum of *n* products of a weight and an input, where *n* is 9 times the
# number of channels that come in (the *fan-in*). If the weights are independent, with mean 0 and
# standard deviation *s*, the sum has the standard deviation *s* * sqrt(*n* * mean(input²)). A ReLU
# then sets the negative half to zero, which halves the mean square. So each layer multiplies the
# size of the signal by
#
# > *s* * sqrt(*n* / 2)
#
# Kaiming He and others (2015) choose *s* = sqrt(2 / *n*), a different *s* for each layer, so that
# this factor is 1. A fixed *s* can be right for one width at most:

# %%
scales = {"Kaiming": "kaiming", "0.3": 0.3, "0.1": 0.1, "0.01": 0.01}
colors = dict(zip(scales, ("black", "tab:red", "tab:orange", "tab:blue"), strict=True))
print("scale    factor per layer with 8, 16, 32 filters   over all 30 layers")
for name, scale in scales.items():
    n = 9 * np.array([8, 16, 32])
    s = np.sqrt(2 / n) if scale == "kaiming" else scale
    factors = s * np.sqrt(n / 2)
    print(f"{name:8}", *(f"{factor:12.3f}" for factor in factors), f"{np.prod(factors**10):20.0e}")

# %% [markdown]
# (The first layer sees one channel only, and the first one of each width sees the width before. The
# table leaves that out.)

# %% [markdown]
# ## What the network says
#
# We build the network with each start, send a hundred digits through, and look at the size of the
# numbers behind each ReLU. Then we go back from the loss, and look at the size of the gradients
# there.


# %%
def start(scale):
    """The network before training; the same random numbers for each scale, but for their size."""
    filters = [8] * 10 + [16] * 10 + [32] * 10
    rng = np.random.default_rng(2)
    return DeepConvNet(data.input_shape, filters, (9, 19), weight_scale=scale, rng=rng)


def sizes(network, X, y):
    """Root mean square of the signal behind each ReLU, and of the gradient there."""
    signals, gradients, criterion = [], [], nn.CrossEntropyLoss()
    network.train()
    for layer in network:
        X = layer(X)
        if isinstance(layer, nn.ReLU):
            signals.append(np.sqrt(np.mean(np.square(X, dtype=np.float64))))
    criterion(X, y)
    dX = criterion.backward()
    for layer in reversed(list(network)):
        if isinstance(layer, nn.ReLU):
            gradients.append(np.sqrt(np.mean(np.square(dX, dtype=np.float64))))
        dX = layer.backward(dX)
    return signals, gradients[::-1]


layers = np.arange(1, 31)
fig, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
for name, scale in scales.items():
    signals, gradients = sizes(start(scale), data.X_train[:100], data.y_train[:100])
    axes[0].semilogy(layers, signals, color=colors[name], label=name)
    axes[1].semilogy(layers, gradients, color=colors[name])
    print(f"{name:8} last signal {signals[-1]:.0e}, gradient at layer 1 {gradients[0]:.0e}")
axes[0].set(title="forward: the signal behind each ReLU", ylabel="root mean square")
axes[1].set(title="backward: the gradient at the same places")
for ax in axes:
    ax.set_xlabel("layer")
    ax.set_xticks([1, 10, 20, 30])
    ax.grid(alpha=0.4)
fig.legend(title="standard deviation of the weights", loc="outside lower center", ncols=4)
plt.show()

# %% [markdown]
# The lines go as the table says. (Kaiming's sinks a little: at the border of an image a part of the
# window is padding, which the theory leaves out.) At 0.3 the signal grows to some 10 billion. At
# 0.01 it shrinks to less than 10^-34, close to the smallest number that float32 can hold. Scores
# that are so small say nothing about the digit, and the gradients are just as small. 0.1, which
# looks harmless, still loses a factor of ten thousand.
#
# ## Training
#
# Now we train all four in the same way: three times through the digits, with Adam and the same
# learning rate. (The course takes CIFAR-10 and SGD with momentum. Adam needs fewer steps, and does
# not care how large gradients are. That is a help to the bad starts.)


# %%
def train(scale):
    """Train from this start; the solver has the curves."""
    solver = Solver(
        start(scale),
        data,
        update_rule="adam",
        optim_config={"lr": 3e-4},
        num_epochs=1 if SHORT else 3,
        batch_size=32,
        rng=np.random.default_rng(1),
        allow_nonfinite=True,
    )
    solver.train()
    return solver


solvers = {name: train(scale) for name, scale in scales.items()}
for name, solver in solvers.items():
    losses = solver.loss_history
    print(
        f"{name:8} loss {losses[0]:.3g} -> {np.mean(losses[-10:]):.3g},",
        f"validation accuracy {solver.val_acc_history[-1]:.1%}",
    )

# %%
fig, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
for name, solver in solvers.items():
    style = {"color": colors[name], "linestyle": "--" if name == "0.01" else "-"}
    axes[0].plot(solver.loss_history, **style)
    least = min(solver.loss_history)
    if least > 3.2:
        axes[0].text(2, 2.95, f"{name}: never below {least:.0e}", color=colors[name])
    axes[1].plot(solver.val_acc_history, marker="o", label=name, **style)
axes[0].axhline(np.log(10), color="grey", linestyle=":")
axes[0].text(0, np.log(10) + 0.03, "guessing: log(10)", color="grey", va="bottom")
axes[0].set(title="training loss", xlabel="step", ylim=(0, 3.2))
axes[1].axhline(0.1, color="grey", linestyle=":")
axes[1].set(title="validation accuracy", xlabel="epoch", ylim=(0, 1))
axes[1].set_xticks(range(len(solver.val_acc_history)))
for ax in axes:
    ax.grid(alpha=0.4)
fig.legend(title="standard deviation of the weights", loc="outside lower center", ncols=4)
plt.show()

# %%
if not SHORT:
    final = {name: solver.val_acc_history[-1] for name, solver in solvers.items()}
    assert final.pop("Kaiming") > 0.7
    assert max(final.values()) < 0.5

# %% [markdown]
# Kaiming's start learns: nine digits out of ten after three epochs. 0.1 and 0.01 stay at guessing,
# one in ten, and their losses at log(10): the lines lie on each other. 0.3 has a loss of billions.
# It falls, but in all these steps the network has become only a little better than guessing.
#
# ## What to take away
#
# - A factor per layer becomes its 30th power. Look at the signal layer by layer *before* training:
#   it costs one batch, and shows what is wrong.
# - Kaiming's standard deviation, sqrt(2 / fan-in), keeps the factor near 1 behind ReLUs.
# - A loss of log(number of classes) that does not move means that nothing gets through.
# - Batch normalization repairs the size in every layer as the network runs, see the notebook on it.
