"""The two-convolution network of the classic MNIST examples."""

from typing import Any

import flax.linen as nn
import jax

from jtasks.errors import ConfigError
from jtasks.models.convolution import Conv
from jtasks.models.dense import Dense
from jtasks.models.dropout import Dropout
from jtasks.models.layers import Head


class ConvNet(nn.Module):
    """Images [b, h, w, c] -> class logits [b, classes], float32; the last layer's input [b, 128] with `pooled`.

    Two 3x3 convolutions (32, 64), max-pool, dropout 0.25 on whole channels, dense 128, dropout 0.5. `plain` uses XLA's
    convolutions, which have forward-mode derivatives (`jax.jvp`).

    Raises:
      ConfigError: h or w is below 6, which leaves nothing to pool.
    """

    classes: int = 10
    dropout: bool = True
    plain: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, images: jax.Array, deterministic: bool = True, *, pooled: bool = False) -> jax.Array:
        deterministic = deterministic or not self.dropout
        if min(images.shape[1:3]) < 6:
            h, w = images.shape[1:3]
            raise ConfigError(f"images of {h}x{w} are too small for the ConvNet: it needs at least 6x6 pixels")
        options = {"plain": self.plain, "dtype": self.dtype}
        x = nn.relu(Conv(32, (3, 3), name="conv1", **options)(images))
        x = nn.relu(Conv(64, (3, 3), pool=True, name="conv2", **options)(x))  # equals pooling after relu
        x = Dropout(0.25, broadcast=(1, 2), name="dropout1")(x, deterministic)
        x = nn.relu(Dense(128, dtype=self.dtype, name="dense1")(x.reshape(x.shape[0], -1)))
        x = Dropout(0.5, name="dropout2")(x, deterministic)
        return x if pooled else Head(self.classes, dtype=self.dtype, name="dense2")(x)
