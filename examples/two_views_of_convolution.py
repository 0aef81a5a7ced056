# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Two views of convolution
#
# A convolutional layer slides a small filter over an image. Both of the usual fast ways to compute
# it say: that is a product of two matrices. They disagree about which one of the two, the image or
# the filter, should be written out as a large matrix.
#
# 1. **im2col**: each window of the *image* becomes a column; the filter stays a short row.
# 2. **Toeplitz**: the *filter* becomes a large matrix with many zeros; the image stays a column.
#
# This notebook makes both matrices for an image that is small enough to see everything, then
# filters a photograph. It needs `cnnfast` and matplotlib; the photograph comes with scikit-learn.

# %%
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

import cnnfast

# %% [markdown]
# ## A small image and a small filter
#
# Images have the shape (N, C, H, W): how many, channels, rows, columns. Here there is one image of
# one channel with 5 rows and 6 columns, and one filter of 3 by 2. (Nothing needs to be square.)

# %%
H, W, KH, KW = 5, 6, 3, 2
OH, OW = H - KH + 1, W - KW + 1
x = np.arange(1.0, H * W + 1).reshape(1, 1, H, W)
w = np.array([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]).reshape(1, 1, KH, KW)

y = cnnfast.conv2d(x, w)
print(f"{H} x {W} image, {KH} x {KW} filter -> {OH} x {OW} output:\n", y[0, 0])


# %%
def show(ax, matrix, title, cmap="viridis", numbers=True):
    """A matrix as a picture, with its entries written in."""
    low = 0 if cmap == "OrRd" else matrix.min()  # of the filter's numbers, 0 is white everywhere
    ax.imshow(matrix, cmap=cmap, vmin=low)
    ax.set(title=title, xticks=[], yticks=[])
    middle = (matrix.max() + low) / 2
    for (i, j), value in np.ndenumerate(matrix):
        if numbers and value:
            dark = (value < middle) == (cmap == "viridis")
            color = "white" if dark else "black"
            ax.text(j, i, f"{value:g}", ha="center", va="center", color=color, fontsize=8)


def frame(ax, row, column, rows, columns, color="red"):
    """A frame around a block of a matrix."""
    corner = column - 0.5, row - 0.5
    ax.add_patch(Rectangle(corner, columns, rows, fill=False, edgecolor=color, linewidth=2))


# %% [markdown]
# ## First view: windows as columns
#
# `im2col` copies each window of the image into a column. There is one column for each output pixel,
# and one row for each entry of the filter. The filter, written as a row, times this matrix gives
# all output pixels at once.
#
# The red window is the red column, and gives the red output pixel.

# %%
columns = cnnfast.im2col(x, (KH, KW))[0]
row = w.reshape(1, -1)
assert np.array_equal((row @ columns).reshape(OH, OW), y[0, 0])

i, j = 1, 2  # the output pixel in red
sizes = {"figsize": (11, 4.4), "width_ratios": [1, 2.4], "height_ratios": [5, 1.2]}
fig, axes = plt.subplots(2, 2, **sizes, layout="constrained")
show(axes[0, 0], x[0, 0], "image")
frame(axes[0, 0], i, j, KH, KW)
show(axes[0, 1], columns, f"im2col: {KH * KW} filter entries x {OH * OW} windows")
frame(axes[0, 1], 0, i * OW + j, KH * KW, 1)
show(axes[1, 0], row, "filter as a row", cmap="OrRd")
show(axes[1, 1], row @ columns, "row @ columns: the output, as a row")
frame(axes[1, 1], 0, i * OW + j, 1, 1)
plt.show()

# %% [markdown]
# Look at the numbers: most pixels of the image appear in several columns, since windows overlap.
# That is the price of this view. A 3 x 3 filter needs 9 times the memory of the image.
#
# With several filters there is one row for each, and the product is one matrix product, which
# computers are very good at. With several channels, the columns are longer: C * KH * KW.

# %% [markdown]
# ## Second view: the filter as a matrix
#
# Convolution is *linear*: twice the image gives twice the output, and the sum of two images gives
# the sum of the outputs. Every linear function is a matrix. To find it, apply the function to the
# images that are 1 in one pixel and 0 elsewhere: each gives one column.

# %%
one_pixel_each = np.eye(H * W).reshape(H * W, 1, H, W)
T = cnnfast.conv2d(one_pixel_each, w).reshape(H * W, OH * OW).T
assert np.array_equal((T @ x.ravel()).reshape(OH, OW), y[0, 0])

fig, axes = plt.subplots(1, 2, figsize=(11, 6), width_ratios=[1, 6], layout="constrained")
show(axes[0], w[0, 0], "filter", cmap="OrRd")
show(axes[1], T, f"the filter as a matrix: {OH * OW} output pixels x {H * W} pixels", cmap="OrRd")
for r in range(0, OH * OW, OW):
    for c in range(0, H * W, W):
        frame(axes[1], r, c, OW, W, color="lightgrey")
frame(axes[1], i * OW + j, 0, 1, H * W)
plt.show()

# %% [markdown]
# Each row holds the whole filter, spread out, with zeros where the window is not. The red row is
# the one of the red window above. Within a block, go down one row and everything moves right by
# one.
#
# - Within a grey block, each diagonal holds one number. Such a matrix is called *Toeplitz*.
# - The blocks themselves are equal along diagonals, too: the matrix is *doubly blocked Toeplitz*.
# - Only 6 different numbers stand in 450 places. That is what "sharing weights" means: a fully
#   connected layer would have 450 weights of its own.

# %%
print(f"entries {T.size}, not zero {np.count_nonzero(T)}, different {len(np.unique(T[T != 0]))}")

# %% [markdown]
# ## Going back is the transposed matrix
#
# To train the layer, the gradient of the loss by the output, `dy`, has to become the gradient by
# the image, `dx`. For a matrix product that is the product with the transposed matrix. Each view
# shows it in its own way:
#
# - `T.T @ dy` uses the large filter matrix.
# - `row.T @ dy` gives gradients of columns; `col2im` puts each entry back to its pixel, and *adds*
#   where windows overlap.
#
# The gradient by the filter is a product with the columns.

# %%
dy = np.random.default_rng(0).normal(size=y.shape)
dx, dw, _ = cnnfast.conv2d_backward(dy, x, w)

by_the_filters_matrix = (T.T @ dy.ravel()).reshape(x.shape)
by_columns = cnnfast.col2im(row.T @ dy.reshape(1, 1, -1), (H, W), (KH, KW))
assert np.allclose(dx, by_the_filters_matrix)
assert np.allclose(dx, by_columns)
assert np.allclose(dw.ravel(), dy.ravel() @ columns.T)
print("all three ways give the same gradients")

# %% [markdown]
# ## The same by name
#
# Both views are methods of `cnnfast`, and so are plain loops. They give the same numbers. What runs
# if you do not ask for one is decided by a cost model, which `explain` shows.

# %%
for method in ("naive", "im2col", "toeplitz"):
    if method in cnnfast.methods("conv2d"):
        print(method, np.array_equal(cnnfast.conv2d(x, w, method=method), y))
print(cnnfast.explain("conv2d", x, w))


# %% [markdown]
# ## A photograph
#
# Now a real picture: a temple in China, from scikit-learn's sample images. Colours are channels,
# numbers from 0 to 1.


# %%
def photograph():
    """A photograph, (1, 3, H, W); a drawing where scikit-learn or Pillow is not installed."""
    try:
        from sklearn.datasets import load_sample_image

        pixels = load_sample_image("china.jpg")
    except ImportError as missing:
        print(f"no photograph, a drawing takes its place ({missing})")
        rows, columns = np.mgrid[0:240, 0:320]
        disc = (rows - 120) ** 2 + (columns - 160) ** 2 < 80**2
        pixels = 255 * np.stack([disc, columns / 320, rows / 240], axis=-1)
    return np.asarray(pixels, np.float32).transpose(2, 0, 1)[None] / 255


photo = photograph()
print("shape (N, C, H, W):", photo.shape)

# %% [markdown]
# ### Grey is a convolution
#
# A filter of one pixel mixes channels. With the weights of red, green and blue in brightness (from
# the television standard ITU-R BT.601) it makes the picture grey.
#
# ### Edges are a convolution
#
# Sobel's filters subtract the neighbours on one side from those on the other. They answer where
# brightness changes from left to right, and from top to bottom. The length of the two answers,
# taken as a vector, says how strong an edge is, in whatever direction.

# %%
brightness = np.array([0.299, 0.587, 0.114], np.float32)
sobel = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32)
edges = np.stack([sobel, sobel.T])  # left to right, top to bottom

grey = cnnfast.conv2d(photo, brightness.reshape(1, 3, 1, 1))
changes = cnnfast.conv2d(grey, edges[:, None], padding=1)
strength = np.hypot(changes[0, 0], changes[0, 1])

fig, axes = plt.subplots(2, 2, figsize=(11, 7.6), layout="constrained")
for ax, picture, title, options in (
    (axes[0, 0], photo[0].transpose(1, 2, 0), "photograph", {}),
    (axes[0, 1], grey[0, 0], "grey: one 1 x 1 filter", {"cmap": "gray"}),
    (axes[1, 0], changes[0, 0], "from left to right", {"cmap": "coolwarm", "vmin": -2, "vmax": 2}),
    (axes[1, 1], strength, "strength of edges", {"cmap": "gray_r", "vmin": 0, "vmax": 2}),
):
    ax.imshow(picture, **options)
    ax.set_title(title)
    ax.axis("off")
plt.show()

# %% [markdown]
# ### Two convolutions in a row are one
#
# Both steps are linear, so together they are linear: one convolution from three colours to two
# kinds of edges. Its filters are the products of the two sets of weights. (Only a function that is
# *not* linear between two layers, such as ReLU, makes a network of two layers more than one.)

# %%
at_once = edges[:, None] * brightness[None, :, None, None]  # 2 filters, 3 channels, 3 x 3
print("filters:", at_once.shape)
assert np.allclose(cnnfast.conv2d(photo, at_once, padding=1), changes, atol=1e-5)

# %% [markdown]
# ## How large would the matrices be?
#
# For the photograph, the two views are no longer a matter of taste: written out in full, the
# filter's matrix has one entry for each pair of an output pixel and an input value.

# %%
C, height, width = photo.shape[1:]
pixels = height * width
values = {
    "photograph": C * pixels,
    "windows as columns": C * 3 * 3 * pixels,
    "filter as a matrix": 2 * pixels * C * pixels,
    "... without its zeros": 2 * pixels * C * 3 * 3,
}
for name, count in values.items():
    print(f"{name:22} {count * 4 / 2**20:14,.1f} MiB")
