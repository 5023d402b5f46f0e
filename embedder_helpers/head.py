"""The head: a linear classifier on embeddings, which training or a probe left behind.

The protocol's scores do not use it; it answers for the embedder when somebody asks for a label.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import softmax


class Head(NamedTuple):
    """A linear classifier.

    Attributes:
        kernel: `(width, classes)`.
        bias: `(classes,)`.
        classes: `(classes,)` labels, whole numbers or strings.
    """

    kernel: np.ndarray
    bias: np.ndarray
    classes: np.ndarray

    def predict(self, embeddings: np.ndarray) -> np.ndarray:
        """`(texts,)` labels of embeddings `(texts, width)`."""
        return self.classes[self._logits(embeddings).argmax(-1)]

    def probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        """`(texts, classes)`; not calibrated."""
        return softmax(self._logits(embeddings), axis=-1)

    def _logits(self, embeddings: np.ndarray) -> np.ndarray:
        return embeddings @ self.kernel + self.bias
