"""The two-convolution network of the classic MNIST examples."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jtasks.models.convolution import Conv
from jtasks.models.dropout import Dropout


class ConvNet(nn.Module):
    """Images [b, h, w, c] -> class logits [b, classes], float32.

    Two 3x3 convolutions (32, 64), max-pool, dropout 0.25 on whole channels, dense 128, dropout 0.5.
    """

    classes: int = 10
    dropout: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, deterministic: bool = True) -> jax.Array:
        deterministic = deterministic or not self.dropout
        x = images.astype(self.dtype)
        x = nn.relu(Conv(32, (3, 3), dtype=self.dtype, name="conv1")(x))
        x = nn.relu(Conv(64, (3, 3), pool=True, dtype=self.dtype, name="conv2")(x))  # the same as pooling after relu
        x = Dropout(0.25, broadcast=(1, 2), name="dropout1")(x, deterministic)
        x = nn.relu(nn.Dense(128, dtype=self.dtype, name="dense1")(x.reshape(x.shape[0], -1)))
        x = Dropout(0.5, name="dropout2")(x, deterministic)
        return nn.Dense(self.classes, dtype=self.dtype, name="dense2")(x).astype(jnp.float32)
