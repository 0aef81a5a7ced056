# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Max pooling: who gets the gradient when pixels are equal?
#
# Max pooling keeps the largest pixel of each window and drops the others. Going back, the gradient
# of the window belongs to the pixel that won. But what if two pixels are equally large?
#
# One often hears that this hardly ever happens. We will see what the possible answers are, which of
# them are right, and how rare ties are in real images. The notebook needs `cnnfast` and matplotlib;
# the images come with scikit-learn.

# %%
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle
from sklearn.datasets import load_sample_image

import cnnfast
from cnnfast.data import load_digits

# %% [markdown]
# ## No ties
#
# Windows of 2 x 2 that tile a 4 x 4 image. `return_indices` says which pixel won: row times width,
# plus column. `max_pool2d_backward` needs nothing but those indices: it puts each window's gradient
# where the winner was, and zero everywhere else.


# %%
def show(ax, matrix, title, cmap="Blues", window=None):
    """A matrix as a picture, with its entries written in and its windows framed."""
    top = max(matrix.max(), 1)
    ax.imshow(matrix, cmap=cmap, vmin=0, vmax=1.4 * top)  # light enough for black numbers
    ax.set(title=title, xticks=[], yticks=[])
    for (i, j), value in np.ndenumerate(matrix):
        ax.text(j, i, f"{value:g}", ha="center", va="center", color="black" if value else "grey")
    ax.spines[:].set_visible(window is None)
    if window:
        for i, j in np.ndindex(matrix.shape[0] // window, matrix.shape[1] // window):
            corner = window * j - 0.5, window * i - 0.5
            ax.add_patch(Rectangle(corner, window, window, fill=False, edgecolor="red", lw=2))


x = np.array([[6.0, 2, 1, 4], [3, 7, 5, 2], [0, 4, 6, 1], [9, 2, 3, 8]]).reshape(1, 1, 4, 4)
y, winners = cnnfast.max_pool2d(x, 2, return_indices=True)
dy = np.array([[1.0, 2], [3, 4]]).reshape(y.shape)
dx = cnnfast.max_pool2d_backward(dy, winners, x.shape)
print("winners:", winners.ravel())

fig, axes = plt.subplots(1, 4, figsize=(11, 3), width_ratios=[4, 2.5, 2.5, 4], layout="constrained")
show(axes[0], x[0, 0], "image x", window=2)
show(axes[1], y[0, 0], "y: the largest")
show(axes[2], dy[0, 0], "dy: given", cmap="Oranges")
show(axes[3], dx[0, 0], "dx: to the winners", cmap="Oranges", window=2)
plt.show()

# %% [markdown]
# ## Ties
#
# Now let some windows have two, three or four equal pixels. There are three answers that you can
# meet in code:
#
# 1. **first**: the first of them in reading order gets everything. This is what `argmax` gives, and
#    what PyTorch and `cnnfast` do.
# 2. **share**: the winners share the gradient equally.
# 3. **all**: each winner gets the whole gradient. This is what comes out of the neat line
#    `dx = dy * (x == y)`, with `dy` and `y` repeated over the windows. Some courses' fast layers
#    are made like that.


# %%
def first(dy, x):
    """To the first of the winners."""
    _, winners = cnnfast.max_pool2d(x, 2, return_indices=True)
    return cnnfast.max_pool2d_backward(dy, winners, x.shape)


def repeated(a):
    """Each pixel as a block of 2 x 2."""
    return a.repeat(2, axis=2).repeat(2, axis=3)


def won(x):
    """Which pixels are as large as the largest of their window of 2 x 2."""
    return x == repeated(cnnfast.max_pool2d(x, 2))


def winners_per_window(x):
    """How many pixels of each window are as large as its largest."""
    return 4 * cnnfast.avg_pool2d(won(x).astype(np.float64), 2)


def share(dy, x):
    """Equally to all winners."""
    return repeated(dy / winners_per_window(x)) * won(x)


def everything_to_all(dy, x):
    """The whole gradient to each winner."""
    return repeated(dy) * won(x)


answers = {"first": first, "share": share, "all": everything_to_all}
x = np.array([[7.0, 2, 1, 4], [3, 7, 5, 2], [0, 6, 5, 5], [6, 6, 5, 5]]).reshape(1, 1, 4, 4)
dy = np.ones((1, 1, 2, 2))

fig, axes = plt.subplots(1, 4, figsize=(11, 3.2), layout="constrained")
show(axes[0], x[0, 0], "image x", window=2)
for ax, (name, answer) in zip(axes[1:], answers.items(), strict=True):
    dx = answer(dy, x)
    show(ax, dx[0, 0].round(2), f"dx: {name}, sum {dx.sum():g}", cmap="Oranges", window=2)
plt.show()

# %% [markdown]
# Four windows, a gradient of 1 for each. "first" and "share" hand out 4 in all. "all" hands out 10.
#
# In `cnnfast` every method gives the same answer, the readable loops as well as the fast ones:

# %%
for method in cnnfast.methods("max_pool2d"):
    _, indices = cnnfast.max_pool2d(x, 2, method=method, return_indices=True)
    print(f"{method:9}", indices.ravel())
    assert np.array_equal(cnnfast.max_pool2d_backward(dy, indices, x.shape), first(dy, x))

# %% [markdown]
# ## Which answer is right?
#
# Take a window with only two pixels, `f(a, b) = max(a, b)`, at `a = b = 1`.
#
# Move `a` alone. Upwards `f` follows, with slope 1; downwards nothing happens, slope 0. There is a
# kink, so there is no derivative. Every slope from 0 to 1 gives a line that touches the curve and
# stays below it; such a slope is called a *subgradient*. "first" takes 1 for one pixel and 0 for
# the other, "share" takes a half for both, and "all" takes 1 for both. As long as we look at one
# pixel at a time, they all seem fine.
#
# Now move `a` and `b` *together*. There is no kink: `f` is simply as large as both, so its slope is
# 1. A gradient predicts the sum of its two entries. That is 1 for "first" and for "share", and 2
# for "all".

# %%
t = np.linspace(-1, 1, 201)
fig, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
axes[0].plot(t, np.maximum(1 + t, 1), color="black", lw=3, label="max(a, b)")
for slope, style in ((0, "--"), (0.5, "-."), (1, ":")):
    axes[0].plot(t, 1 + slope * t, style, color="tab:orange", label=f"slope {slope:g}")
axes[0].set(title="one pixel moves: a kink", xlabel="change of a")
axes[1].plot(t, np.maximum(1 + t, 1 + t), color="black", lw=3, label="max(a, b)")
axes[1].plot(t, 1 + (0.5 + 0.5) * t, "--", color="tab:orange", label="first, share: slope 1")
axes[1].plot(t, 1 + (1 + 1) * t, "-", color="tab:red", label="all: slope 2")
axes[1].set(title="both move together: no kink", xlabel="change of a and of b", ylim=(-0.5, 2.5))
for ax in axes:
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
plt.show()

# %% [markdown]
# The same for the image above: make all pixels brighter by a little. Each of the four maxima grows
# by as much, so their sum grows four times as fast.

# %%
h = 1e-6
change = (cnnfast.max_pool2d(x + h, 2).sum() - cnnfast.max_pool2d(x - h, 2).sum()) / (2 * h)
print(f"measured {change:.3f}")
for name, answer in answers.items():
    print(f"{name:8} {answer(dy, x).sum():.3f}")
assert np.isclose(change, first(dy, x).sum())
assert np.isclose(change, share(dy, x).sum())
assert not np.isclose(change, everything_to_all(dy, x).sum())

# %% [markdown]
# So "first" and "share" are both right, and "all" is wrong: it is no subgradient.
#
# This is also why a numeric gradient check is confusing at ties. Central differences move one pixel
# up and down, see slope 1 and slope 0, and report one half, however many winners there are. That is
# the answer of none of the three (of "share" only where there are two winners).
# `cnnfast.gradcheck` notices such places and counts them:

# %%
numeric = cnnfast.gradcheck.numeric_gradient(lambda x: cnnfast.max_pool2d(x, 2), x, dy)
print(numeric[0, 0].round(3))
print(cnnfast.gradcheck.check(cnnfast.nn.MaxPool2d(2), x))

# %% [markdown]
# ## How rare are ties?
#
# Random numbers are practically never equal. Pixels often are: they are whole numbers (0 to 255 in
# a photograph, 0 to 16 in scikit-learn's digits), and neighbours look alike. We pool two kinds of
# real images, and what a convolution with 16 random filters makes of them, before and after a ReLU.

# %%
digits = load_digits().X_train
photo = np.asarray(load_sample_image("china.jpg"), np.float32).transpose(2, 0, 1)[None] / 255
photo = photo[:, :, : photo.shape[2] // 2 * 2]  # an even number of rows: windows tile it

rng = np.random.default_rng(0)
print(f"{'':30} windows with a tie ... of more than 0")
for name, images in (("digits", digits), ("photograph", photo)):
    filters = rng.normal(size=(16, images.shape[1], 3, 3)).astype(np.float32)
    features = cnnfast.conv2d(images, filters, padding=1)
    for what, pooled in (
        ("pixels", images),
        ("convolution", features),
        ("convolution, ReLU", cnnfast.relu(features)),
    ):
        tied = winners_per_window(pooled) > 1
        positive = tied & (cnnfast.max_pool2d(pooled, 2) > 0)
        print(f"{name:11} {what:18} {tied.mean():18.1%} {positive.mean():19.1%}")

# %% [markdown]
# On raw pixels a tie is nothing rare: there is one in a third of the photograph's windows, and in
# two fifths of the digits'. Behind a ReLU, too, a large part of the windows is tied, but nearly all
# of these ties are between zeros. There the ReLU lets no gradient through, so it does not matter
# who gets it. Networks that end each block with "ReLU, pool" train well even with the wrong answer,
# so it is easily overlooked.
#
# What reaches the convolution then? We send a gradient of 1 back from every window of the digits.

# %%
filters = rng.normal(size=(16, 1, 3, 3)).astype(np.float32)
features = cnnfast.conv2d(digits, filters, padding=1)
dy = np.ones((len(digits), 16, 4, 4), np.float32)
print("gradient that reaches the convolution, as a multiple of the right one")
for what, pooled in (("conv, pool", features), ("conv, ReLU, pool", cnnfast.relu(features))):
    total = {}
    for name, answer in answers.items():
        back = answer(dy, pooled)
        if "ReLU" in what:
            back = cnnfast.relu_backward(back, features)
        total[name] = back.sum()
    print(f"{what:17}", ", ".join(f"{name} {v / total['first']:.3f}" for name, v in total.items()))

# %% [markdown]
# And one digit, pooled as it is. Its background is black, so there each window has four winners;
# orange is where the gradient goes.

# %%
digit = digits[0:1].astype(np.float64)
ones = np.ones((1, 1, 4, 4))
fig, axes = plt.subplots(1, 4, figsize=(11, 3.2), layout="constrained")
axes[0].imshow(digit[0, 0], cmap="gray")
axes[0].set_title("a digit, 8 x 8")
for ax, (name, answer) in zip(axes[1:], answers.items(), strict=True):
    dx = answer(ones, digit)
    ax.imshow(dx[0, 0], cmap="Oranges", vmin=0, vmax=1)
    ax.set_title(f"dx: {name}, sum {dx.sum():g}")
for ax in axes:
    ax.set(xticks=[], yticks=[])
    for edge in (1.5, 3.5, 5.5):
        ax.axhline(edge, color="red", lw=0.8)
        ax.axvline(edge, color="red", lw=0.8)
plt.show()

# %% [markdown]
# ## What to take away
#
# - Max pooling sends its gradient back along one path: from each window to its winner.
# - At a tie there is more than one right answer. What is handed out has to add up to what came in.
# - `dx = dy * (x == y)` hands out too much. Behind a ReLU that hardly shows; on pixels it does.
# - Test a pooling layer on numbers without ties first, then on ties on purpose.
