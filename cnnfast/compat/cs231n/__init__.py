"""Stanford CS231n's assignment 2, and UCLA ECE 239AS's homework 5 (``nndl``, ``utils``).

The modules are named as the course's, so that only the package changes in a notebook's imports::

    from cs231n.layers import *          ->  from cnnfast.compat.cs231n.layers import *
    from cs231n.solver import Solver     ->  from cnnfast.compat.cs231n.solver import Solver

UCLA's are in the same modules: ``nndl.conv_layers`` in `layers`, ``nndl.conv_layer_utils`` in
`layer_utils`, ``nndl.cnn`` in `classifiers.cnn`, and those of ``utils`` under their names.
``from cnnfast.compat.cs231n import *`` brings all at once. Nothing has to be compiled first.

What is otherwise than in the handouts, and why:

- Images and windows may be rectangular, padding 0, windows overlap, sizes not divide (floored), and
  arrays lie in memory in any order. The fast layers indexed the rows of wide kernels by the height
  and took C order on trust; UCLA's pooling mixed up height and width, its ``pad:-pad`` was empty at
  padding 0, and its pooling's gradient overwrote where windows overlap.
- A max pooling's gradient goes to the first of equal pixels, whichever function is called;
  ``max_pool_backward_fast`` used to spread it over all of them.
- The fast convolutions keep ``(x, w, b, conv_param)``, as the naive ones do, without the matrix of
  columns. Any backward function serves for any forward function of its kind.
- A whole float is a size, as in ``{"pad": (filter_size - 1) / 2}``; any other is refused.
- float32 stays float32, and a call changes none of its arrays: where the course keeps something in
  ``bn_param`` or ``config``, it is a new array.
- `Solver` goes through all examples in an epoch instead of drawing with replacement, and
  `get_CIFAR10_data` gives float32.
- All chance comes from ``np.random``, which the notebooks seed.
"""

from __future__ import annotations

from cnnfast.compat.cs231n import (
    data_utils,
    fast_layers,
    gradient_check,
    im2col,
    layer_utils,
    layers,
    optim,
    solver,
)
from cnnfast.compat.cs231n.classifiers import cnn
from cnnfast.compat.cs231n.classifiers.cnn import *  # noqa: F403
from cnnfast.compat.cs231n.data_utils import *  # noqa: F403
from cnnfast.compat.cs231n.fast_layers import *  # noqa: F403
from cnnfast.compat.cs231n.gradient_check import *  # noqa: F403
from cnnfast.compat.cs231n.im2col import *  # noqa: F403
from cnnfast.compat.cs231n.layer_utils import *  # noqa: F403
from cnnfast.compat.cs231n.layers import *  # noqa: F403
from cnnfast.compat.cs231n.optim import *  # noqa: F403
from cnnfast.compat.cs231n.solver import *  # noqa: F403

__all__: list[str] = []
__all__ += layers.__all__
__all__ += fast_layers.__all__
__all__ += im2col.__all__
__all__ += layer_utils.__all__
__all__ += optim.__all__
__all__ += solver.__all__
__all__ += gradient_check.__all__
__all__ += data_utils.__all__
__all__ += cnn.__all__
