# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Training a small network: what to look at
#
# Before you train for long, a few cheap questions tell whether anything is broken. While you train,
# curves tell what is missing. Afterwards, the filters of the first layer show what the network
# looks for.
#
# This is the path of Stanford's CS231n and its relatives at UCLA (ECE 239AS) and Michigan (EECS
# 498-007): conv - relu - pool - affine - relu - affine. It needs `cnnfast` and matplotlib. Where
# the environment variable `CNNFAST_DATA` names a folder with CIFAR-10, that is learned; otherwise
# the handwritten digits that come with scikit-learn. (If you see colours below, it is CIFAR-10.)

# %%
import os

import matplotlib.pyplot as plt
import numpy as np

from cnnfast.data import load_cifar10, load_digits
from cnnfast.models import ThreeLayerConvNet
from cnnfast.training import Solver

SHORT = "CNNFAST_EXAMPLES_SHORT" in os.environ  # a form that takes seconds, for tests
folder = os.environ.get("CNNFAST_DATA")

pictures = load_cifar10(folder).take(train=20000) if folder else load_digits()
if SHORT:
    pictures = pictures.take(train=500, val=100, test=100)
data = pictures.standardized()  # each channel with mean 0 and standard deviation 1
print(data)

# %%
columns = 10
fig, axes = plt.subplots(2, columns, figsize=(11, 2.6), layout="constrained")
for label, name in enumerate(pictures.classes):
    for ax, i in zip(axes[:, label], np.flatnonzero(pictures.y_train == label), strict=False):
        image = pictures.X_train[i].transpose(1, 2, 0)
        ax.imshow(image, cmap="gray")
        ax.axis("off")
    axes[0, label].set_title(name, fontsize=10)
plt.show()


# %% [markdown]
# ## The network

# %%
size = {"num_filters": 32, "filter_size": 7, "hidden_dim": 200}
if data.name == "digits":
    size = {"num_filters": 16, "filter_size": 5, "hidden_dim": 100}


def network(reg=0.0):
    """The network before training."""
    rng = np.random.default_rng(0)
    return ThreeLayerConvNet(data.input_shape, **size, weight_scale=1e-2, reg=reg, rng=rng)


model = network()
for name, p in model.params.items():
    print(f"{name:12} {p.shape}")
print("numbers to learn:", sum(p.size for p in model.params.values()))

# %% [markdown]
# ## Question 1: is the first loss right?
#
# A network that knows nothing gives each of the 10 classes about the same score, so each has the
# probability 1/10, and the loss should be about log(10) = 2.303. With the L2 penalty (`reg`) it has
# to be larger.

# %%
X, y = data.X_train[:100], data.y_train[:100]
without, with_penalty = network().loss(X, y)[0], network(reg=0.5).loss(X, y)[0]
print(f"log(10) {np.log(10):.3f}, loss {without:.3f}, with a penalty {with_penalty:.3f}")
assert abs(without - np.log(10)) < 0.25
assert with_penalty > without

# %% [markdown]
# ## Question 2: can it learn 100 images by heart?
#
# A network with so many parameters can memorise a hundred images. If it does not, something is
# wrong: a gradient, the learning rate, the labels. It will of course know little about others; this
# gap is what *overfitting* means.

# %%
few = data.take(train=100)
solver = Solver(
    network(),
    few,
    update_rule="adam",
    optim_config={"lr": 1e-3},
    num_epochs=3 if SHORT else 20,
    batch_size=20,
    num_val_samples=500 if len(data.y_val) > 500 else None,
    rng=np.random.default_rng(1),
)
solver.train()


def draw(solver):
    """The loss of each step, and both accuracies by epoch."""
    fig, axes = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    losses = np.array(solver.loss_history)
    width = max(1, len(losses) // 40)
    smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
    axes[0].plot(np.arange(1, len(losses) + 1), losses, ".", color="tab:blue", alpha=0.3, ms=4)
    middle = np.arange(len(smooth)) + (width + 1) / 2
    axes[0].plot(middle, smooth, color="tab:blue", label=f"mean of {width} steps")
    axes[0].set(title="loss of each step", xlabel="step", ylim=(0, None))
    axes[0].legend(frameon=False)
    axes[1].plot(solver.train_acc_history, "o-", label="training")
    axes[1].plot(solver.val_acc_history, "s-", label="validation")
    axes[1].axhline(0.1, color="grey", linestyle=":", label="guessing")
    axes[1].set(title="accuracy", xlabel="epoch", ylim=(0, 1.02))
    axes[1].xaxis.get_major_locator().set_params(integer=True)
    handles, labels = axes[1].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside right center", frameon=False)
    for ax in axes:
        ax.grid(alpha=0.4)
    plt.show()


draw(solver)

# %%
train, val = solver.train_acc_history[-1], solver.val_acc_history[-1]
print(f"100 images: training {train:.0%}, validation {val:.0%}")
assert SHORT or train > 0.97

# %% [markdown]
# ## Training
#
# Now with all images that we take, and a small penalty on the weights. The loss of single steps
# jumps about, since each is of another batch; look at the mean. The distance between the two
# accuracies says what to do next. If both are low and close, the network needs more time or more
# filters. If training is far above validation, it needs more images, or more of a penalty.

# %%
model = network(reg=1e-3)
filters_before = model.conv1.weight.copy()
solver = Solver(
    model,
    data,
    update_rule="adam",
    optim_config={"lr": 1e-3},
    num_epochs=1 if SHORT else (3 if folder else 20),
    batch_size=50,
    lr_decay=0.9,
    rng=np.random.default_rng(1),
)
solver.train()
draw(solver)

# %% [markdown]
# The solver keeps the weights of the best validation accuracy. The test images have not been used
# for anything so far, so they say what to expect of new ones.

# %%
X_test, y_test = data.X_test[:2000], data.y_test[:2000]
scores = np.concatenate([model.loss(X_test[i : i + 100]) for i in range(0, len(X_test), 100)])
guesses = scores.argmax(axis=1)
print(f"best validation accuracy {solver.best_val_acc:.1%}")
print(f"accuracy on {len(y_test)} test images {np.mean(guesses == y_test):.1%}")

# %% [markdown]
# Which classes are taken for which? Rows are what an image is, columns what the network says, in
# per cent of the row.

# %%
confusion = np.zeros((10, 10))
np.add.at(confusion, (y_test, guesses), 1)
confusion *= 100 / confusion.sum(axis=1, keepdims=True)
fig, ax = plt.subplots(figsize=(6, 5), layout="constrained")
ax.imshow(confusion, cmap="Blues", vmin=0, vmax=100)
for (i, j), value in np.ndenumerate(confusion):
    if value >= 0.5:
        color = "white" if value > 55 else "black"
        ax.text(j, i, f"{value:.0f}", ha="center", va="center", color=color, fontsize=9)
ax.set_xticks(range(10), data.classes, rotation=45, ha="right", rotation_mode="anchor")
ax.set_yticks(range(10), data.classes)
ax.set(xlabel="the network says", ylabel="it is")
plt.show()

# %% [markdown]
# ## What the first layer looks for
#
# A filter of the first layer is as deep as an image has colours, so it can be shown as a small
# picture, each scaled to use the full range. At the start there is noise. (With fewer than
# thousands of steps some of the noise stays.)


# %%
def tiled(filters):
    """All filters as one picture, eight in a row, each scaled to [0, 1]."""
    F, C, KH, KW = filters.shape
    low = filters.min(axis=(1, 2, 3), keepdims=True)
    high = filters.max(axis=(1, 2, 3), keepdims=True)
    picture = np.ones((C, F // 8 * (KH + 1) - 1, 8 * (KW + 1) - 1))
    for f, filter in enumerate((filters - low) / (high - low)):
        i, j = (f // 8) * (KH + 1), (f % 8) * (KW + 1)
        picture[:, i : i + KH, j : j + KW] = filter
    return picture.transpose(1, 2, 0)


fig, axes = plt.subplots(1, 2, figsize=(11, 3), layout="constrained")
fig.get_layout_engine().set(wspace=0.08)
for ax, filters, title in (
    (axes[0], filters_before, "before training"),
    (axes[1], model.conv1.weight, "after"),
):
    ax.imshow(tiled(filters), cmap="gray", interpolation="none")
    ax.set_title(title)
    ax.axis("off")
plt.show()

# %% [markdown]
# On CIFAR-10 you see edges, dark beside bright, in several directions, and patches of one colour
# against another. Nobody told the network to look for them. (The filters for digits are small and
# see one colour only; there it takes some goodwill to make out strokes.)
#
# ## What to take away
#
# - Before training: is the first loss log(classes)? Can it learn a few images by heart?
# - While training: a mean of the loss, and two accuracies. Their height and their distance say what
#   to change.
# - After: test once, on images that were never used; look at what is mistaken for what.
