"""The supervised contrastive loss (Khosla et al. 2020, arXiv:2004.11362)."""

from typing import Any

from keras import ops

FAR = -1e9  # a logit whose exponential is 0


def supervised_contrastive(
    labels: Any, embeddings: Any, temperature: Any, text_weights: Any
) -> Any:
    """How far each text is from those of its label in the batch, compared with all others.

    Equation 2 of the paper (its loss "out": the mean over positives is outside of the logarithm),
    on embeddings of length 1. Gunel et al. 2021 (arXiv:2011.01403) add it to the cross-entropy in
    fine-tuning a language model. Texts without another of their label in the batch are left out.

    Args:
        labels: `(texts,)` class numbers.
        embeddings: `(texts, width)` float32.
        temperature: divisor of the cosines.
        text_weights: `(texts,)` weight of each text in the mean.

    Returns:
        A number: the mean over the texts that have another of their label, 0 without any.
    """
    norms = ops.sqrt(ops.sum(ops.square(embeddings), -1, keepdims=True) + 1e-12)
    unit = embeddings / norms
    is_self = ops.eye(ops.shape(unit)[0], dtype="bool")
    logits = ops.where(is_self, FAR, ops.matmul(unit, ops.transpose(unit)) / temperature)
    log_probabilities = logits - ops.logsumexp(logits, -1, keepdims=True)
    is_same = ops.equal(ops.expand_dims(labels, 0), ops.expand_dims(labels, 1))
    is_positive = ops.cast(ops.logical_and(is_same, ops.logical_not(is_self)), "float32")
    positives = ops.sum(is_positive, -1)
    losses = -ops.sum(is_positive * log_probabilities, -1) / ops.maximum(positives, 1)
    has_positive = ops.cast(positives > 0, "float32")
    return ops.sum(losses * text_weights) / ops.maximum(ops.sum(has_positive), 1)
