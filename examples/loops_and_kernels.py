# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Loops, columns, kernels: one convolution, computed in several ways
#
# A convolution written as loops is easy to read and very slow. `im2col` turns it into a matrix
# product. Compiled kernels do without the large matrix that this needs. All give the same numbers.
# This notebook writes the first two ways out, checks all of them against each other, and then
# measures how long each takes.
#
# It needs `cnnfast` and matplotlib; the photograph comes with scikit-learn. All times are of the
# machine on which the notebook was run; yours will differ, and so may the order of the fast ones.

# %%
import os
import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_image

import cnnfast

SHORT = "CNNFAST_EXAMPLES_SHORT" in os.environ  # a form that takes seconds, for tests

# %% [markdown]
# ## The layer
#
# The layer with which Stanford's CS231n compares slow and fast code: images of 3 x 31 x 31, 25
# filters of 3 x 3, stride 2, padding 1. Our images are patches of a photograph.

# %%
N, C, H, W = 2 if SHORT else 10, 3, 31, 31
F, KH, KW, stride, padding = 25, 3, 3, 2, 1
options = {"stride": stride, "padding": padding}

photo = np.asarray(load_sample_image("china.jpg"), np.float32).transpose(2, 0, 1) / 255
x = np.stack([photo[:, 150 : 150 + H, 40 * n : 40 * n + W] for n in range(N)])
rng = np.random.default_rng(0)
w = rng.normal(size=(F, C, KH, KW)).astype(np.float32)
b = rng.normal(size=F).astype(np.float32)

fig, axes = plt.subplots(1, N, figsize=(11, 1.4), layout="constrained")
for ax, image in zip(axes, x, strict=True):
    ax.imshow(image.transpose(1, 2, 0))
    ax.axis("off")
plt.show()


# %% [markdown]
# ## 1. Loops
#
# The definition. Each number of the output is the sum of a window times a filter.


# %%
def conv_loops(x, w, b, stride, padding):
    """A loop over images, filters, rows and columns of the output."""
    N, _, H, W = x.shape
    F, _, KH, KW = w.shape
    OH, OW = (H + 2 * padding - KH) // stride + 1, (W + 2 * padding - KW) // stride + 1
    xp = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    y = np.empty((N, F, OH, OW), x.dtype)
    for n in range(N):
        for f in range(F):
            for i in range(OH):
                for j in range(OW):
                    top, left = i * stride, j * stride
                    window = xp[n, :, top : top + KH, left : left + KW]
                    y[n, f, i, j] = np.sum(window * w[f]) + b[f]
    return y


# %% [markdown]
# ## 2. Columns and one matrix product
#
# Copy each window into a column; then a filter, as a row, times all columns is all that filter's
# output. (The notebook "Two views of convolution" has pictures of this.)


# %%
def conv_columns(x, w, b, stride, padding):
    """im2col, and a matrix product for each image."""
    N, _, H, W = x.shape
    F, _, KH, KW = w.shape
    OH, OW = (H + 2 * padding - KH) // stride + 1, (W + 2 * padding - KW) // stride + 1
    columns = cnnfast.im2col(x, (KH, KW), stride, padding)  # (N, C * KH * KW, OH * OW)
    return (w.reshape(F, -1) @ columns + b[:, None]).reshape(N, F, OH, OW)


# %% [markdown]
# ## 3. Kernels
#
# `cnnfast.conv2d` chooses among several methods. `naive` are loops like those above, `im2col` is
# the second way, and the compiled engine takes the windows straight from the image, a few at a
# time, while they are in the processor's cache. `explain` says what would run, and why.

# %%
print(cnnfast.explain("conv2d", x, w, b, **options))

# %% [markdown]
# ## First check, then time
#
# The time of a wrong result is worth nothing. So each way is compared with the loops of
# `cnnfast.naive` in float64 first. float32 has about 7 digits, so a relative error of some 1e-6 is
# as good as it gets.

# %%
forward = {
    "loops above": lambda: conv_loops(x, w, b, **options),
    "columns above": lambda: conv_columns(x, w, b, **options),
}
for method in ("naive", "im2col", "portable", "auto"):
    if method == "auto" or method in cnnfast.methods("conv2d"):
        forward[method] = lambda m=method: cnnfast.conv2d(x, w, b, **options, method=m)

exact = cnnfast.naive.conv2d(np.float64(x), np.float64(w), np.float64(b), **options)
for name, run in forward.items():
    error = np.abs(run() - exact).max() / np.abs(exact).max()
    print(f"{name:14} largest error {error:.1e} of the largest value")
    assert error < 1e-5

# %% [markdown]
# ## Timing
#
# Some rules that keep a comparison fair:
#
# - All ways get the same arrays, with real numbers in them.
# - Each runs once before the clock starts, so that memory is there and choices are made.
# - They take *turns*: if the machine is busy for a moment, all suffer alike.
# - Short calls are repeated until they take some milliseconds: clocks are not fine enough for one.
# - The *median* of the rounds is reported, and the quartiles say how much it varies. A mean is
#   spoiled by one interruption, and the best time is luck.


# %%
def measure(ways, rounds, shortest=2e-3):
    """Seconds per call of each way: lower quartile, median, upper quartile."""
    calls, times = {}, {name: [] for name in ways}
    for name, run in ways.items():
        run()
        start = time.perf_counter()
        run()
        calls[name] = max(1, round(shortest / (time.perf_counter() - start)))
    for _ in range(rounds):
        for name, run in ways.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                run()
            times[name].append((time.perf_counter() - start) / calls[name])
    return {name: np.percentile(seconds, [25, 50, 75]) for name, seconds in times.items()}


def table(results, slowest):
    """Medians and quartiles, in milliseconds, and how many times faster than the slowest."""
    for name, (low, median, high) in results.items():
        times = f"{median * 1e3:10.3f} ms  ({low * 1e3:.3f} to {high * 1e3:.3f})"
        print(f"{name:14} {times:34} {results[slowest][1] / median:8,.0f} x")


rounds = 2 if SHORT else 15
found = cnnfast.info()
print(f"{found['processor']}, {found['threads']} threads, instruction set {found['isa']}")
print(f"NumPy {found['numpy']}, {found['blas']['name']}; {rounds} rounds\n")
forward_times = measure(forward, rounds)
table(forward_times, "loops above")

# %% [markdown]
# ### Going back
#
# Training needs the gradients as well: by the image, by the filters and by the bias. That is about
# twice the work of going forward. (A few rounds fewer, since the loops take long.)

# %%
dy = rng.normal(size=exact.shape).astype(np.float32)
backward = {}
for method in ("naive", "im2col", "portable", "auto"):
    if method == "auto" or method in cnnfast.methods("conv2d_backward"):
        backward[method] = lambda m=method: cnnfast.conv2d_backward(dy, x, w, **options, method=m)

exact_gradients = cnnfast.naive.conv2d_backward(
    np.float64(dy), np.float64(x), np.float64(w), **options
)
for run in backward.values():
    for gradient, right in zip(run(), exact_gradients, strict=True):
        assert np.abs(gradient - right).max() < 1e-5 * np.abs(right).max()

backward_times = measure(backward, 2 if SHORT else 9)
table(backward_times, "naive")

# %%
fig, axes = plt.subplots(1, 2, figsize=(11, 3.4), sharex=True, layout="constrained")
for ax, results, title in (
    (axes[0], forward_times, "forward"),
    (axes[1], backward_times, "backward: dx, dw and db"),
):
    for i, (name, times) in enumerate(results.items()):
        low, median, high = 1e3 * times
        color = "tab:orange" if name in ("loops above", "naive") else "tab:blue"
        ax.errorbar(median, i, xerr=[[median - low], [high - median]], fmt="o", color=color)
        ax.annotate(f"{median:.3g} ms", (high, i), (8, 0), textcoords="offset points", va="center")
    ax.set_yticks(range(len(results)), results)
    ax.set_ylim(len(results) - 0.5, -0.5)
    ax.set_xscale("log")
    ax.set(title=title, xlabel="milliseconds per call: each line is ten times the one before")
    ax.grid(axis="x", alpha=0.4)
    ax.spines[["top", "right"]].set_visible(False)
low, high = axes[0].get_xlim()
axes[0].set_xlim(low, 10 * high)  # room for the numbers
plt.show()

# %% [markdown]
# Dots are medians, the lines through them reach from quartile to quartile.
#
# Most of the way from loops to kernels is made by the first step, away from Python: the loops go
# through Python and NumPy once for each number of the output, 64,000 times, which costs far more
# than the 27 multiplications that it is for. A processor makes billions of these in a second.
#
# Among the fast ways this layer tells little. They differ by fractions of a millisecond, and which
# of `im2col` and `auto` is ahead can change from run to run. Larger images tell more.

# %%
each = forward_times["loops above"][1] / exact.size
print(f"{exact.size:,} numbers in the output, {each * 1e6:.1f} microseconds for each")

# %% [markdown]
# ## What the columns cost
#
# The columns hold each pixel up to KH * KW / stride² times.
# Let the images grow, with 7 x 7 filters and stride 1, where a pixel is in 49 columns:

# %%
sizes = (8, 16, 32) if SHORT else (16, 32, 64, 128, 256)
ways = [m for m in ("naive", "im2col", "auto") if m == "auto" or m in cnnfast.methods("conv2d")]
filters = rng.normal(size=(16, 3, 7, 7)).astype(np.float32)
seconds = {m: [] for m in ways}
workspace = {m: [] for m in ways}
for size in sizes:
    image = np.ascontiguousarray(photo[None, :, :size, :size])
    runs, right = {}, cnnfast.conv2d(image, filters, padding=3)
    for m in ways:
        if m == "naive" and size > 64:  # minutes
            continue
        runs[m] = lambda m=m, image=image: cnnfast.conv2d(image, filters, padding=3, method=m)
        assert np.allclose(runs[m](), right, atol=1e-4 * np.abs(right).max())
    results = measure(runs, 2 if SHORT else 7)
    for m in ways:
        seconds[m].append(results[m][1] if m in results else np.nan)
        told = cnnfast.explain("conv2d", image, filters, padding=3, method=m)
        workspace[m].append(told.workspace)

fig, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for m, marker in zip(ways, "osd", strict=False):
    axes[0].loglog(sizes, 1e3 * np.array(seconds[m]), marker=marker, label=m)
    axes[1].loglog(sizes, np.array(workspace[m]) / 2**20, marker=marker, label=m)
axes[0].set(title="time", ylabel="milliseconds")
axes[1].set(title="memory for the work itself", ylabel="MiB")
for ax in axes:
    ax.set_xlabel("height and width of the image")
    ax.set_xticks(sizes, sizes)
    ax.minorticks_off()
    ax.grid(alpha=0.4)
    ax.legend(frameon=False)
plt.show()

# %%
largest = sizes[-1]
print(f"one image of 3 x {largest} x {largest}: {4 * 3 * largest**2 / 2**20:.2f} MiB")
for m in ways:
    print(f"{m:8} needs {workspace[m][-1] / 2**20:5.2f} MiB besides")

# %% [markdown]
# On logarithmic axes, lines of about the same slope mean: the same growth. All ways make about as
# many multiplications, four times as many for an image of twice the width. What differs is the
# memory. The columns are 49 times as large as the image, and have to be written and read again.
# `auto`, which takes the windows from the image as it goes, needs no more than a small part of a
# MiB for any of these images.
#
# ## What to take away
#
# - Keep the loops. They are the definition, and everything else is checked against them.
# - `im2col` is one line of thought and a thousand times faster than loops. It pays with memory.
# - Kernels that know the structure of the problem save that memory, and on large images time.
# - Check first, take turns, take medians, say on which machine.
