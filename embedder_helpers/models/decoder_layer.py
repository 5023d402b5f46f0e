"""A decoder layer of Gemma 1, 2 or 3 as a function of its weights and of nothing else.

It computes what keras-hub's layers compute, to which the tests compare it, with two differences.
No layer object has to exist, so that weights go from the preset's file to the device one layer at a
time. And only the operands of products with weights are in half precision: the residual
stream, norms, attention and the product of gate and value are float32, as mixed precision keeps
them (Micikevicius et al. 2018, arXiv:1710.03740). Gemma 3's residual stream reaches 100 000, which
float16 cannot hold.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

MASKED = -1e9  # a logit that softmax turns into 0
# Float16 ends at 65504. With it, the feed-forward output is computed from inputs divided by this
# power of two, which is exact, and multiplied by it in float32.
FLOAT16_SCALE = 64.0


class LayerKind(NamedTuple):
    """What layers may differ in besides their weights; hashable, to compile once for each kind.

    Attributes:
        head_dim: size of a query, key or value.
        num_key_value_heads: number of keys and values; each serves an equal part of the queries.
        window: number of tokens that a token attends to at most; None: all.
        bidirectional: whether tokens attend to later ones too (EmbeddingGemma).
        soft_cap: bound of the attention logits; None: none.
        rope_wavelength: longest wavelength of the rotary positions.
        rope_scaling: factor by which positions are divided.
        epsilon: of the norms.
    """

    head_dim: int
    num_key_value_heads: int
    window: int | None
    bidirectional: bool
    soft_cap: float | None
    rope_wavelength: float
    rope_scaling: float
    epsilon: float


def layer_kind(shape: Mapping[str, Any], index: int) -> LayerKind:
    """The kind of a layer.

    Args:
        shape: the model in keras-hub's terms, as `shapes.preset_shape` returns it.
        index: of the layer, from 0.
    """
    is_gemma3 = shape["class_name"] == "Gemma3Backbone"
    # Gemma 2: every second layer is local; Gemma 3: five of six (keras-hub's backbones).
    is_local = index % 6 < 5 if is_gemma3 else index % 2 == 0
    is_local = is_local and bool(shape.get("use_sliding_window_attention"))
    range_name = "local" if is_local else "global"
    return LayerKind(
        head_dim=shape["head_dim"],
        num_key_value_heads=shape["num_key_value_heads"],
        window=shape.get("sliding_window_size", 4096) if is_local else None,
        bidirectional=bool(shape.get("use_bidirectional_attention")),
        soft_cap=shape.get("attention_logit_soft_cap"),
        rope_wavelength=1e6 if is_gemma3 and not is_local else 1e4,
        rope_scaling=shape.get(f"{range_name}_rope_scaling_factor", 1.0) if is_gemma3 else 1.0,
        epsilon=shape.get("layer_norm_epsilon", 1e-6),
    )


def stored_shapes(shape: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each of a layer's weights, by its path in files that Keras writes."""
    width, inner, head = shape["hidden_dim"], shape["intermediate_dim"], shape["head_dim"]
    if shape["class_name"] == "GemmaBackbone":
        inner //= 2  # keras-hub's intermediate_dim is that of gate and value together
    queries, keys = shape["num_query_heads"], shape["num_key_value_heads"]
    shapes = {
        "pre_attention_norm": (width,),
        "attention/query_dense": (queries, width, head),
        "attention/key_dense": (keys, width, head),
        "attention/value_dense": (keys, width, head),
        "attention/output_dense": (queries, head, width),
        "pre_ffw_norm": (width,),
        "gating_ffw": (width, inner),
        "gating_ffw_2": (width, inner),
        "ffw_linear": (inner, width),
    }
    if shape.get("use_query_key_norm"):
        shapes |= {"attention/query_norm": (head,), "attention/key_norm": (head,)}
    if shape.get("use_post_attention_norm"):
        shapes["post_attention_norm"] = (width,)
    if shape.get("use_post_ffw_norm"):
        shapes["post_ffw_norm"] = (width,)
    return shapes


def arrange_weights(
    stored: Mapping[str, np.ndarray], dtype: str
) -> tuple[dict[str, np.ndarray], int]:
    """A layer's weights as `apply_layer` takes them: norms in float32, matrices in `dtype`.

    Args:
        stored: weights by path, of the shapes of `stored_shapes`.
        dtype: `float32`, `float16` or `bfloat16`.

    Returns:
        The weights by the last part of their paths, matrices as `(inputs, outputs)`; and how many
        of them float16 cannot hold: infinite now, or 0. Bfloat16 has the range of float32.
    """
    width = len(stored["pre_ffw_norm"])
    matrices = {
        f"{name}_dense": np.moveaxis(stored[f"attention/{name}_dense"], 1, 0).reshape(width, -1)
        for name in ("query", "key", "value")
    }
    matrices["output_dense"] = stored["attention/output_dense"].reshape(-1, width)
    matrices |= {name: stored[name] for name in ("gating_ffw", "gating_ffw_2", "ffw_linear")}
    weights, lost = {}, 0
    for name, matrix in matrices.items():
        with np.errstate(over="ignore"):
            weights[name] = matrix.astype(dtype)
        if dtype == "float16":
            is_kept = np.isfinite(weights[name]) & (weights[name].astype(bool) | (matrix == 0))
            lost += np.size(is_kept) - np.count_nonzero(is_kept)
    norms = (path for path in stored if path.endswith("norm"))
    weights |= {path.split("/")[-1]: stored[path].astype("float32") for path in norms}
    return weights, lost


def apply_layer(
    kind: LayerKind, matmul: Callable, weights: Mapping[str, Any], states: Any, mask: Any
) -> tuple[Any, Any]:
    """Apply a layer to a batch.

    Args:
        kind: of the layer.
        matmul: `compiled_matmul` where XLA compiles this function, else `ops.matmul`.
        weights: as `arrange_weights` returns them, on the device.
        states: `(texts, length, width)` float32.
        mask: `(texts, length)`, 1 for tokens and 0 for padding, which must be on the right.

    Returns:
        The new states, of the same shape and dtype, zero at padding, and whether they are finite.
    """

    def norm(values, name):
        return rms_norm(values, weights[name], kind.epsilon) if name in weights else values

    def product(values, name):
        """`(texts, length, n)` times `(n, m)` as float32, computed in the matrix's dtype."""
        texts, length, _ = ops.shape(values)
        matrix = weights[name]
        rows = ops.cast(ops.reshape(values, (-1, matrix.shape[0])), matrix.dtype)
        return ops.reshape(
            ops.cast(matmul(rows, matrix), "float32"), (texts, length, matrix.shape[1])
        )

    normed = norm(states, "pre_attention_norm")
    queries, keys, values = (product(normed, f"{name}_dense") for name in ("query", "key", "value"))
    attended = product(_attend(kind, queries, keys, values, mask, norm), "output_dense")
    states = states + norm(attended, "post_attention_norm")

    normed = norm(states, "pre_ffw_norm")
    gate, value = product(normed, "gating_ffw"), product(normed, "gating_ffw_2")
    inner = ops.gelu(gate, approximate=True) * value
    if keras.backend.standardize_dtype(weights["ffw_linear"].dtype) == "float16":
        output = FLOAT16_SCALE * product(inner / FLOAT16_SCALE, "ffw_linear")
    else:
        output = product(inner, "ffw_linear")
    states = states + norm(output, "post_ffw_norm")

    # Zero padding, since what overflows there would spread through attention's sums: 0 · ∞.
    states = ops.where(ops.expand_dims(ops.cast(mask, "bool"), -1), states, 0.0)
    return states, ops.isfinite(ops.sum(states))


def rms_norm(states: Any, scale: Any, epsilon: float) -> Any:
    """Divide by the root mean square, then multiply by 1 + scale (Zhang & Sennrich 2019)."""
    mean_square = ops.mean(ops.square(states), -1, keepdims=True)
    return states * ops.rsqrt(mean_square + epsilon) * (1 + scale)


def compiled_matmul(rows: Any, matrix: Any) -> Any:
    """A matrix product with float32 results, whatever the operands' dtype; for XLA only.

    TensorFlow's own kernels round results to the operands' dtype, after adding up in float32.
    """
    if keras.config.backend() == "jax":
        import jax.numpy as jnp

        return jnp.matmul(rows, matrix, preferred_element_type="float32")
    import tensorflow as tf

    return tf.raw_ops.BatchMatMulV3(x=rows, y=matrix, Tout=tf.float32)


def _attend(
    kind: LayerKind, queries: Any, keys: Any, values: Any, mask: Any, norm: Callable
) -> Any:
    """Multi-query attention, in float32: `(texts, length, …)` to the queries' shape."""
    texts, length, query_width = ops.shape(queries)
    heads, size = kind.num_key_value_heads, kind.head_dim
    groups = queries.shape[-1] // size // heads
    queries = ops.reshape(queries, (texts, length, heads * groups, size))
    queries = _rotate(norm(queries, "query_norm"), kind) / size**0.5
    keys = _rotate(norm(ops.reshape(keys, (texts, length, heads, size)), "key_norm"), kind)
    # The axis of a single head is left out: it would cost transpositions.
    k, head_axis = ("k", (heads,)) if heads > 1 else ("", ())
    queries = ops.reshape(queries, (texts, length, *head_axis, groups, size))
    keys = ops.reshape(keys, (texts, length, *head_axis, size))
    values = ops.reshape(values, (texts, length, *head_axis, size))

    logits = ops.einsum(f"bt{k}gh,bs{k}h->bt{k}gs", queries, keys)
    if kind.soft_cap is not None:
        logits = kind.soft_cap * ops.tanh(logits / kind.soft_cap)
    visible = _visible(kind, length) & ops.cast(mask, "bool")[:, None, :]  # (texts, length, length)
    visible = ops.reshape(visible, (texts, length, *(1 for _ in head_axis), 1, length))
    probabilities = ops.softmax(ops.where(visible, logits, MASKED))
    attended = ops.einsum(f"bt{k}gs,bs{k}h->bt{k}gh", probabilities, values)
    return ops.reshape(attended, (texts, length, query_width))


def _visible(kind: LayerKind, length: Any) -> Any:
    """`(1, length, length)` whether a token (rows) may attend to another (columns)."""
    positions = ops.arange(length)
    distance = positions[:, None] - positions[None, :]
    if not kind.bidirectional:
        visible = distance >= 0
        return (visible if kind.window is None else visible & (distance < kind.window))[None]
    if kind.window is None:
        return ops.ones_like(distance, "bool")[None]
    later = kind.window // 2
    return ((distance < kind.window - later) & (distance >= -later))[None]


def _rotate(states: Any, kind: LayerKind) -> Any:
    """Rotary positions (Su et al. 2021) of `(texts, length, heads, head_dim)`.

    The two halves of a head are the coordinates that are rotated. Gemma 1 in keras-hub then orders
    them alternately, in queries and keys alike, which changes no product of the two.
    """
    half = kind.head_dim // 2
    frequencies = kind.rope_wavelength ** (-np.arange(half) / half) / kind.rope_scaling
    positions = ops.cast(ops.arange(ops.shape(states)[1]), "float32")
    angles = positions[:, None, None] * frequencies.astype("float32")  # (length, 1, half)
    cosine, sine = ops.cos(angles), ops.sin(angles)
    first, second = states[..., :half], states[..., half:]
    return ops.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )
