# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # A scanning MLP is a convolutional network
#
# Suppose you want to find a word in a recording. You do not know where it is, so you take a small
# network that looks at a short window, an MLP (multi-layer perceptron), and move it along the
# recording: it *scans*. This notebook shows that such a scan is exactly what a one-dimensional
# convolutional network computes, and that a convolutional network of several wide layers is a
# scanning MLP too, one that shares its weights *inside* as well.
#
# It follows homework 2 of CMU's course 11-785, Introduction to Deep Learning (sections 6 and 8),
# and needs `cnnfast` and matplotlib.

# %%
import matplotlib.pyplot as plt
import numpy as np

from cnnfast.models import DistributedScanningMLP, SimpleScanningMLP

rng = np.random.default_rng(0)

# %% [markdown]
# ## An MLP that scans
#
# The recording has 128 instants, with a vector of 24 numbers at each. The MLP looks at 8 instants
# at once, that is at 192 numbers, and moves on by 4. It has three layers of 8, 16 and 4 neurons,
# with a ReLU after the first two.
#
# Here is the scan, written as what it is: a loop.

# %%
T, C, window, stride = 128, 24, 8, 4
recording = rng.normal(size=(T, C))
weights = [rng.normal(size=shape) for shape in ((window * C, 8), (8, 16), (16, 4))]


def mlp(seen, weights):
    """Three layers, ReLU after the first two."""
    w1, w2, w3 = weights
    return np.maximum(np.maximum(seen @ w1, 0) @ w2, 0) @ w3


starts = range(0, T - window + 1, stride)
scanned = np.stack([mlp(recording[t : t + window].ravel(), weights) for t in starts])
print(len(starts), "places, outputs of shape", scanned.shape)

# %% [markdown]
# ## The same as a convolutional network
#
# Follow one neuron of the first layer. At each place it multiplies the 8 x 24 numbers that it sees
# with *the same* 192 weights. That is a convolution: a filter 8 instants wide, with 24 channels and
# stride 4. Its 8 neurons are 8 filters.
#
# The second layer looks at the 8 numbers that the first one gave *at the same place*: a convolution
# with a filter 1 wide. So does the third.
#
# | layer | filters | width | stride |
# |---|---|---|---|
# | 1 | 8 | 8 | 4 |
# | 2 | 16 | 1 | 1 |
# | 3 | 4 | 1 | 1 |
#
# `SimpleScanningMLP` is this network. `init_weights` takes the matrices of the MLP; all it has to
# do is to put their numbers in another order. A convolution's weights are (filters, channels,
# width), a recording is (N, channels, instants).

# %%
network = SimpleScanningMLP(C, (8, 16, 4), window, stride, dtype=np.float64)
network.init_weights(weights)
print(network)

y = network(recording.T[None]).reshape(4, -1).T
print("the largest difference from the loop:", np.abs(y - scanned).max())
assert np.allclose(y, scanned)

first = network.conv1.weight
assert np.array_equal(first, weights[0].reshape(window, C, 8).transpose(2, 1, 0))

# %% [markdown]
# ### The weights being shared
#
# For a picture, take something smaller: 12 instants of 2 numbers, an MLP that sees 4 instants,
# moves on by 2, and has 3 neurons in its first layer. As a function from all 24 numbers to all
# outputs, that layer is one large matrix. We find it by showing the layer one number at a time.
#
# Every band in the picture is the same 8 x 3 matrix, moved on by two instants (4 numbers). Equal
# colours are equal weights; white is no connection.

# %%
small = SimpleScanningMLP(2, (3, 4, 2), window=4, stride=2, dtype=np.float64, rng=rng)


def as_matrix(layer, channels, instants):
    """The matrix of a convolution without bias: a row for each input number, instant by instant."""
    one_number_each = np.eye(instants * channels).reshape(-1, instants, channels)
    outputs = layer(one_number_each.transpose(0, 2, 1))
    return outputs.transpose(0, 2, 1).reshape(instants * channels, -1)


def show(ax, matrix, title, xlabel, ylabel):
    """A matrix of weights, symmetric about white."""
    most = np.abs(matrix).max()
    ax.imshow(matrix, cmap="RdBu", vmin=-most, vmax=most, aspect="auto", interpolation="none")
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel, xticks=[], yticks=[])


scan = as_matrix(small.conv1, 2, 12)
own = small.conv1.weight.transpose(2, 1, 0).reshape(8, 3)

fig, axes = plt.subplots(1, 2, figsize=(10, 5), width_ratios=[1, 4], layout="constrained")
show(axes[0], own, "the MLP's first layer", "3 neurons", "4 instants x 2 numbers")
show(axes[1], scan, "the same layer, scanning", "5 places x 3 neurons", "12 instants x 2 numbers")
for place in range(5):
    axes[1].add_patch(
        plt.Rectangle((3 * place - 0.5, 4 * place - 0.5), 3, 8, fill=False, edgecolor="black")
    )
plt.show()

for place in range(5):
    assert np.array_equal(scan[4 * place : 4 * place + 8, 3 * place : 3 * place + 3], own)
print(f"{scan.size} places in the matrix, {own.size} weights")

# %% [markdown]
# ## Sharing inside the window as well
#
# Windows overlap, and still the scan above computes its first layer anew at each place. It has to:
# a neuron that looks at the whole window sees something new each time.
#
# Now let the first layer be made of smaller neurons, which look at 2 instants only, and use *the
# same* two neurons for instants 1-2, 3-4, 5-6 and 7-8. That makes 4 groups of 2 neurons: 8 again,
# but only 2 different ones. The second layer sees two neighbouring groups at a time; its 16 neurons
# are 2 groups of the same 8. The third sees everything. This is the *distributed* MLP of the
# homework. Its weight matrices have a pattern:

# %%
blocks = [rng.normal(size=shape) for shape in ((2 * C, 2), (2 * 2, 8), (2 * 8, 4))]
distributed = [np.kron(np.eye(n), block) for n, block in zip((4, 2, 1), blocks, strict=True)]
print("shapes as before:", [w.shape for w in distributed])

fig, axes = plt.subplots(1, 3, figsize=(11, 4.5), layout="constrained")
show(axes[0], distributed[0], "layer 1", "4 groups x 2 neurons", "8 instants x 24 numbers")
show(axes[1], distributed[1], "layer 2", "2 groups x 8 neurons", "4 groups x 2 neurons")
show(axes[2], distributed[2], "layer 3", "4 neurons", "2 groups x 8 neurons")
plt.show()

# %% [markdown]
# Scanning with this MLP is a convolutional network again, now with three wide layers: a group is a
# filter bank, and the groups are the places that it takes.
#
# | layer | filters | width | stride |
# |---|---|---|---|
# | 1 | 2 | 2 | 2 |
# | 2 | 8 | 2 | 2 |
# | 3 | 4 | 2 | 1 |
#
# The strides multiply: one step of the third layer is 2 x 2 = 4 instants, the stride of the scan.

# %%
network = DistributedScanningMLP(C, (2, 8, 4), (2, 2, 2), (2, 2, 1), dtype=np.float64)
network.init_weights(distributed)

scanned = np.stack([mlp(recording[t : t + window].ravel(), distributed) for t in starts])
y = network(recording.T[None]).reshape(4, -1).T
assert np.allclose(y, scanned)
print("the largest difference from the loop:", np.abs(y - scanned).max())

# %% [markdown]
# ### What sharing saves
#
# Weights: the network has to learn, and to store, each different one once. Work: what one window
# has computed, the next one, which overlaps it, uses again.

# %%
simple_weights = sum(w.size for w in weights)
shared_weights = sum(w.size for w in network.params.values())
print(f"weights: {simple_weights} without sharing inside, {shared_weights} with it")

loop = len(starts) * simple_weights
work = 0
signal = recording.T[None]
for layer in (network.conv1, network.conv2, network.conv3):
    signal = layer(signal)
    work += signal.shape[2] * layer.weight.size
print(f"multiplications: {loop} for the loop, {work} for the network")

# %% [markdown]
# ## Any such network is a scanning MLP
#
# It works the other way round, too. Take a convolutional network of three layers, with 2, 3 and 2
# filters that are 2, 3 and 3 wide, and strides as large as the widths. (It is the one of the
# homework's appendix.) One output sees 2 x 3 x 3 = 18 instants. Follow its connections down:

# %%
filters, widths = (2, 3, 2), (2, 3, 3)
places = [18, 9, 3]  # within the window: instants, then those of each layer's outputs

palette = [["tab:red", "tab:green"], ["tab:blue", "skyblue", "gold"], ["black", "grey"]]
fig, ax = plt.subplots(figsize=(11, 4.5), layout="constrained")
center = [np.arange(18.0)]
for width in widths:
    center.append(center[-1].reshape(-1, width).mean(axis=1))
ax.bar(center[0], 0.3, width=0.25, bottom=-0.15, color="black", zorder=3)
for level in (1, 2, 3):
    count, width, colors = filters[level - 1], widths[level - 1], palette[level - 1]
    below = 1 if level == 1 else filters[level - 2]
    for p, middle in enumerate(center[level]):
        for f, color in enumerate(colors):
            spot = middle + 0.45 * (f - (count - 1) / 2)
            for q in range(p * width, (p + 1) * width):
                for g in range(below):
                    foot = center[level - 1][q] + 0.45 * (g - (below - 1) / 2)
                    ax.plot([foot, spot], [level - 1, level], color=color, alpha=0.5, linewidth=0.8)
            ax.scatter(spot, level, s=110, color=color, edgecolor="black", zorder=3)
ax.set_yticks(range(4), ["18 instants", "9 x 2 neurons", "3 x 3 neurons", "2 neurons"])
ax.set_xticks([])
ax.set_title("an MLP of 29 neurons, but of 7 colours: neurons of one colour share their weights")
ax.spines[:].set_visible(False)
plt.show()

# %% [markdown]
# The convolutional network with 7 filters is an MLP with 29 neurons that scans with stride 18. Here
# are its matrices, made from the filters as above, and the proof by numbers.

# %%
network = DistributedScanningMLP(1, filters, widths, widths, dtype=np.float64, rng=rng)
matrices = [
    as_matrix(network.conv1, 1, places[0]),
    as_matrix(network.conv2, 2, places[1]),
    as_matrix(network.conv3, 3, places[2]),
]
print("the MLP's layers:", [m.shape[1] for m in matrices], "neurons")

long_signal = rng.normal(size=18 * 5)
loop = np.stack([mlp(long_signal[t : t + 18], matrices) for t in range(0, len(long_signal), 18)])
y = network(long_signal.reshape(1, 1, -1)).reshape(2, -1).T
assert np.allclose(y, loop)
print("the largest difference from the loop:", np.abs(y - loop).max())

# %% [markdown]
# ## What to take away
#
# - Moving a network along a signal *is* convolution. Nothing is approximated: the numbers agree to
#   the last rounding.
# - A convolutional layer is a fully connected layer in which most weights are zero and the rest are
#   used many times.
# - Layers that are wide all the way up share more than layers that look at everything at once: they
#   have fewer weights, and what they have computed is used again.
