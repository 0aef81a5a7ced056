# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Batch normalization and the learning rate
#
# Batch normalization takes, in each channel, the mean out of the numbers and divides them by their
# standard deviation. It is said to make training faster and less sensitive to the learning rate. We
# look at what it does to the numbers, and then train the same network with and without it at
# several learning rates.
#
# This follows Michigan's course EECS 498-007 (assignment 3, "Batch normalization and learning
# rate"). It needs `cnnfast` and matplotlib; the digits come with scikit-learn. Where the
# environment variable `CNNFAST_DATA` names a folder with CIFAR-10, that is compared as well.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np

from cnnfast.data import load_cifar10, load_digits
from cnnfast.models import DeepConvNet
from cnnfast.training import Solver

SHORT = "CNNFAST_EXAMPLES_SHORT" in os.environ  # a form that takes seconds, for tests

digits = load_digits()
if SHORT:
    digits = digits.take(train=200)
digits = digits.standardized()  # mean 0 and standard deviation 1
print(digits)


# %% [markdown]
# ## The network
#
# Six convolutions of 3 x 3 with 8, 8, 16, 16, 32 and 32 filters, max pooling after every second
# one, and a linear layer. With batch norm it stands between each convolution and its ReLU. All
# weights start as Kaiming He and others propose (see the notebook "How to start a network of 31
# layers").


# %%
def network(data, batchnorm, seed=0):
    """The network before training; of one seed the same weights with and without batch norm."""
    return DeepConvNet(
        data.input_shape,
        num_filters=(8, 8, 16, 16, 32, 32),
        max_pools=(1, 3, 5),
        batchnorm=batchnorm,
        weight_scale="kaiming",
        reg=1e-5,
        rng=np.random.default_rng(seed),
    )


# %% [markdown]
# ## What it does to the numbers
#
# With *m* and *v* the mean and the variance of a channel, over all images of the batch and all
# pixels,
#
# > *y* = *weight* * (*x* - *m*) / sqrt(*v* + *eps*) + *bias*
#
# `weight` and `bias`, one of each per channel, are learned, and start at 1 and 0. Below are the
# numbers behind the second convolution, channel by channel, before and after.

# %%
net = network(digits, batchnorm=True)
net.train()
batch = digits.X_train[:200]
before = net.conv2(net.relu1(net.bn1(net.conv1(batch))))
after = net.bn2(before)
assert np.allclose(after.mean(axis=(0, 2, 3)), 0, atol=1e-4)
assert np.allclose(after.std(axis=(0, 2, 3)), 1, atol=1e-3)


def by_channel(a):
    """The numbers of each channel, all images and pixels together."""
    return list(a.transpose(1, 0, 2, 3).reshape(a.shape[1], -1))


fig, axes = plt.subplots(1, 2, figsize=(11, 3.6), sharey=True, layout="constrained")
for ax, a, title in ((axes[0], before, "before"), (axes[1], after, "after")):
    ax.boxplot(by_channel(a), whis=(1, 99), showfliers=False, medianprops={"color": "tab:red"})
    ax.axhline(0, color="grey", lw=0.8)
    ax.set(title=f"{title} batch norm", xlabel="channel")
axes[0].set_ylabel("boxes: half of all numbers\nwhiskers: 98%")
plt.show()

# %% [markdown]
# ## Training and using it are different
#
# In training, mean and variance are those of the batch. When the network is used, there may be only
# one image; so the layer keeps running averages of both during training, and uses these then. Until
# they have seen some batches they are wrong:

# %%
for seen in range(1, 61):  # it has seen the first above
    if seen > 1:
        net.bn2(before)
    if seen in (1, 10, 30, 60):
        net.bn2.eval()
        used = net.bn2(before)
        net.bn2.train()
        off = np.abs(used.mean(axis=(0, 2, 3))).max(), np.abs(used.std(axis=(0, 2, 3)) - 1).max()
        print(f"after {seen:2} batches: a mean is off by {off[0]:.3f}, a deviation by {off[1]:.3f}")

# %% [markdown]
# This is the largest error of any channel. Each batch moves the averages by a tenth of the way
# (`momentum=0.1`), so after 10 batches a third of the error is left, and after 60 nothing that
# matters. When a network is good in training and bad in use, these averages are worth a look: too
# few steps, or batches that are not like the images later on.
#
# ## Several learning rates
#
# SGD with momentum 0.9, six learning rates from 0.001 to 0.3, three epochs each, with and without
# batch norm. Everything else is the same: the starting weights, the order of the images, the
# batches. (The course compares a shallow network without batch norm to a deeper one with it. Here
# both are the same network.) Each is trained three times from different starts, so that we see how
# much is luck.

# %%
rates = (0.01, 0.1) if SHORT else (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


def train(data, batchnorm, rate, seed):
    """Train; the solver has the curves."""
    solver = Solver(
        network(data, batchnorm, seed),
        data,
        update_rule="sgd_momentum",
        optim_config={"lr": rate},
        num_epochs=1 if SHORT else 3,
        batch_size=50,
        rng=np.random.default_rng(seed),
        allow_nonfinite=True,  # a run that diverges is a result, too
    )
    with np.errstate(over="ignore", invalid="ignore"):
        solver.train()
    return solver


def compare(data, seeds):
    """Solvers by (batch norm, rate), one for each seed; prints how good they are at the end."""
    print("validation accuracy\nlearning rate     without batch norm        with batch norm")
    solvers = {}
    for rate in rates:
        told = []
        for norm in (False, True):
            solvers[norm, rate] = [train(data, norm, rate, seed) for seed in seeds]
            told += [" ".join(f"{s.val_acc_history[-1]:6.1%}" for s in solvers[norm, rate])]
        print(f"{rate:13g} {told[0]:>22} {told[1]:>22}")
    return solvers


def draw(solvers):
    """Losses of the first seed, and the last accuracies of all."""
    _, axes = plt.subplots(1, 3, figsize=(11, 4), layout="constrained")
    colors = plt.get_cmap("plasma")(np.linspace(0, 0.9, len(rates)))
    for ax, norm in ((axes[0], False), (axes[1], True)):
        for rate, color in zip(rates, colors, strict=True):
            losses = np.array(solvers[norm, rate][0].loss_history)
            width = min(5, len(losses))  # a running mean: single batches differ a lot
            smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
            ax.plot(np.arange(width, len(losses) + 1), smooth, color=color, label=f"{rate:g}")
        ax.axhline(np.log(10), color="grey", linestyle=":")
        title = f"loss, {'with' if norm else 'without'} batch norm"
        ax.set(title=title, xlabel="step", ylim=(0, 4))
    axes[0].legend(title="learning rate", ncols=3, loc="upper right", frameon=False)
    for norm, marker, color in ((False, "s", "tab:blue"), (True, "o", "tab:orange")):
        last = [[s.val_acc_history[-1] for s in solvers[norm, rate]] for rate in rates]
        for run in zip(*last, strict=True):
            axes[2].semilogx(rates, run, marker, color=color, alpha=0.5, markeredgewidth=0)
        label = "with" if norm else "without"
        axes[2].semilogx(rates, np.mean(last, axis=1), color=color, marker=marker, label=label)
    axes[2].axhline(0.1, color="grey", linestyle=":")
    axes[2].set(title="validation accuracy at the end", xlabel="learning rate", ylim=(0, 1))
    axes[2].legend(title="batch norm", frameon=False)
    for ax in axes:
        ax.grid(alpha=0.4)
    plt.show()


solvers = compare(digits, seeds=(0, 1, 2))

# %%
draw(solvers)

# %%
if not SHORT:
    means = {key: np.mean([s.val_acc_history[-1] for s in runs]) for key, runs in solvers.items()}
    assert all(means[True, rate] > means[False, rate] for rate in rates)
    assert means[False, 0.3] < 0.2 < 0.5 < means[True, 0.3]

# %% [markdown]
# With batch norm the network is ahead at every rate, and most so at the ends: at 0.001 it has come
# further in the same number of steps, and at 0.3, where nothing is learned without it, it still
# learns. The two curves on the right say what "less sensitive to the learning rate" means.
#
# ## The same on CIFAR-10
#
# Small photographs instead of digits, 5,000 of them, one start. Is it the same?

# %%
folder = os.environ.get("CNNFAST_DATA")
if folder and not SHORT:
    photos = load_cifar10(folder).take(train=5000).standardized()
    on_photos = compare(photos, seeds=(0,))
    draw(on_photos)
else:
    print("CNNFAST_DATA does not name a folder with CIFAR-10, or this is the short form: left out")

# %% [markdown]
# Not quite. Where the network learns without batch norm, it learns faster with it here, too: it is
# ahead by several points. But the largest rates remain a problem. At 0.3 neither learns anything.
# At 0.1 both learn little, after their losses have shot up; how little is a matter of the start.
# Batch norm looks after the convolutions. The linear layer at the end has none behind it, and on
# these larger images it has 512 inputs, on the digits 32, so a step of the same learning rate moves
# its scores further.
#
# ## What to take away
#
# - Batch norm gives the next layer numbers of mean 0 and standard deviation 1, whatever the
#   weights.
# - Networks with it learn faster, and often over a wider range of learning rates. It is no licence
#   for any rate.
# - Training uses the batch's statistics, use of the network the running ones: call `train()` and
#   `eval()` at the right time (`Solver` and `loss` of the courses' models do it for you).
# - One result on one data set is a hint. Repeat it with other starts and other data.
