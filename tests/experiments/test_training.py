"""Training: batches, rates, early stopping and class weights, on a model of two layers."""

import logging
import math
import random
import types

import keras
import numpy as np
import pytest
from keras import ops
from reference_contrastive import brute_force

from embedder_helpers.config import Experiment
from embedder_helpers.errors import InputError
from embedder_helpers.experiments import training
from embedder_helpers.experiments.training import (
    EpochLogger,
    TwoRateAdamW,
    build_classifier,
    learning_rate,
    shuffled_batches,
    train_classifier,
)
from embedder_helpers.models import text_model
from embedder_helpers.models.batching import MultiLayerStates, bucket_length, from_lengths
from embedder_helpers.models.layers import LayerPooling, initialize
from embedder_helpers.models.projection import build_projection
from embedder_helpers.models.text_model import TextModel
from embedder_helpers.utils import progress

LENGTHS = [5, 30, 7, 31, 6, 60, 8, 29, 5, 12]
USUAL = {
    "objective": "cross_entropy", "learning_rate": 0.01, "projection_learning_rate": 0.02,
    "batch_size": 8, "seed": 1,
}  # fmt: skip


def random_states(lengths, width=4, seed=0):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(sum(lengths), width)).astype("float32")
    return from_lengths(values, lengths)


def mean_model(width=4, dtype="float32"):
    """A model whose embedding is a dense layer on the masked mean."""
    inputs = keras.Input((None, width), name="inputs")
    mask = keras.Input((None,), dtype="int32", name="mask")
    weights = keras.ops.cast(mask[:, :, None], "float32")
    mean = keras.ops.sum(inputs * weights, 1) / keras.ops.sum(weights, 1)
    output = keras.layers.Dense(8, activation="tanh", dtype=dtype, name="encoder")(mean)
    output = keras.ops.cast(output, "float32")
    return keras.Model({"inputs": inputs, "mask": mask}, output)


def separable_texts(count, seed, shift=3.0):
    """Hidden states whose first feature is shifted up or down by the class, and the classes."""
    labels = np.arange(count) % 2
    states = random_states([4] * count, seed=seed)
    values = states.values.reshape(count, 4, 4).copy()
    values[:, :, 0] += shift * (2 * labels[:, None] - 1)
    return from_lengths(values.reshape(-1, 4), [4] * count), labels


def whole_validation():
    """The validation texts of `train` in one batch."""
    return shuffled_batches(*separable_texts(24, 2), 24, 256, np.random.default_rng(0))


def new_classifier(dtype="float32"):
    """A classifier of two classes whose encoder has the same weights every time."""
    random.seed(1)  # Keras draws its seeds from here
    return build_classifier(mean_model(dtype=dtype), 2, clip_norm=1.0)


def train(classifier=None, epochs=4, work=0.0, texts=None, **settings):
    """Trains a new classifier, or the given one; returns it and the history."""
    classifier = classifier or new_classifier()
    experiment = Experiment(epochs=epochs, **USUAL | settings)
    texts = texts or separable_texts(64, 1)
    history = train_classifier(classifier, texts, separable_texts(24, 2), experiment, 256, work)
    return classifier, history


def logits_of(classifier, inputs):
    logits, _ = classifier(inputs)
    return ops.convert_to_numpy(logits)


def recorded(train_on_batch, batches):
    """`train_on_batch`, which also adds the texts of each batch to a list."""

    def record(inputs, *others, **options):
        batches.append([text.tobytes() for text in inputs["inputs"]])
        return train_on_batch(inputs, *others, **options)

    return record


@pytest.fixture(scope="module")
def trained():
    """A training of four epochs: model, history, log lines, work on the bar, and texts by epoch."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    level = training.logger.level
    training.logger.addHandler(handler)
    training.logger.setLevel(logging.INFO)
    classifier, orders = new_classifier(), []
    overall = progress.overall_progress({"training": 100}, {}, "sweep")
    with overall as left, pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "train_on_batch", recorded(classifier.train_on_batch, orders))
        _, history = train(classifier, work=30)
        work = 100 - left.left["training"]
    training.logger.removeHandler(handler)
    training.logger.setLevel(level)
    orders = [sum(orders[start : start + 8], []) for start in range(0, len(orders), 8)]
    return types.SimpleNamespace(
        classifier=classifier, history=history, lines=lines, work=work, orders=orders
    )


# Batches


def batches_of(lengths, longest=256, batch_size=3, seed=33):
    generator = np.random.default_rng(seed)
    labels = np.arange(len(lengths))
    return list(shuffled_batches(random_states(lengths), labels, batch_size, longest, generator))


@pytest.fixture(params=["longest", "bucket"])
def padded_length(request, monkeypatch):
    """The function from a batch's longest text to its length, on backends of either kind."""
    monkeypatch.setattr(text_model, "is_traced_once", lambda: request.param == "longest")
    return int if request.param == "longest" else bucket_length


def test_batches_hold_every_text_once_padded_to_the_longest_or_its_bucket(padded_length):
    batches = batches_of(LENGTHS)
    rows = np.concatenate([labels for _, labels in batches])
    assert sorted(rows.tolist()) == list(range(len(LENGTHS)))
    for inputs, labels in batches:
        assert inputs["inputs"].shape[1] == padded_length(max(LENGTHS[row] for row in labels))
        assert inputs["mask"].sum(1).tolist() == [LENGTHS[row] for row in labels]


def test_batches_of_several_cutoffs_have_an_axis_for_them(padded_length):
    layers = random_states(LENGTHS, seed=0), random_states(LENGTHS, seed=1)
    states, rows = MultiLayerStates(layers), np.arange(len(LENGTHS))
    inputs, rows = next(shuffled_batches(states, rows, 3, 256, np.random.default_rng(33)))
    length = padded_length(max(LENGTHS[row] for row in rows))
    assert inputs["inputs"].shape == (3, length, 2, 4) and inputs["mask"].shape == (3, length)
    for cutoff, layer in enumerate(layers):
        states = inputs["inputs"][0, : LENGTHS[rows[0]], cutoff]
        np.testing.assert_array_equal(states, layer.text(rows[0]))


def test_batches_are_shuffled_in_the_order_of_the_generator():
    def order(seed):
        return [labels.tolist() for _, labels in batches_of(LENGTHS, batch_size=2, seed=seed)]

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_every_epoch_has_another_order(trained):
    first, second = trained.orders[:2]
    assert sorted(first) == sorted(second) and first != second


def test_no_batch_is_padded_beyond_the_longest_possible_text(padded_length):
    batches = batches_of([90, 95], longest=95, batch_size=2)
    assert batches[0][0]["inputs"].shape[1] == 95


# Two rates


def stepped(variables):
    """How far one step at 0.001 moves variables, which for new layers is 20 times as far.

    Adam's first step is the rate itself, whatever the gradient.
    """
    before = [ops.convert_to_numpy(variable.value) for variable in variables]
    optimizer = TwoRateAdamW()
    optimizer.build(variables)
    optimizer.learning_rate = 1e-3
    optimizer.rate_factor.assign(20)
    optimizer.apply([ops.ones(variable.shape) for variable in variables], variables)
    after = [ops.convert_to_numpy(variable.value) for variable in variables]
    return [(one - other).mean() for one, other in zip(before, after, strict=True)]


def test_a_pretrained_layer_learns_at_the_rate_itself():
    layer = keras.layers.Dense(3, name="encoder")
    layer.build((None, 2))
    assert stepped([layer.bias]) == [pytest.approx(1e-3, rel=1e-3)]


def test_the_projection_learns_at_the_rate_of_new_layers():
    layer = build_projection(Experiment(), 4, 4).get_layer("projection_linear")
    assert stepped([layer.bias]) == [pytest.approx(2e-2, rel=1e-3)]


def test_learned_layer_weights_learn_at_the_rate_of_new_layers():
    layer = LayerPooling("learned", name="layer_pooling")
    layer.build((None, None, 3, 4))
    assert stepped([layer.logits]) == [pytest.approx(2e-2, rel=1e-3)]


def test_both_rates_hold_within_one_model():
    classifier = new_classifier()
    biases = [classifier.get_layer(name).bias for name in ("encoder", "head")]
    assert stepped(biases) == [pytest.approx(1e-3, rel=1e-3), pytest.approx(2e-2, rel=1e-3)]


# Training


def test_training_learns_separable_classes(trained):
    assert len(trained.history) == 4
    assert trained.history[-1]["val_accuracy"] > 0.9


def test_each_epoch_is_logged_once(trained):
    lines = [line for line in trained.lines if "epoch" in line]
    assert len(lines) == 4
    for number, (line, epoch) in enumerate(zip(lines, trained.history, strict=True), 1):
        assert f"epoch {number} of 4" in line
        assert f"val_accuracy {epoch['val_accuracy']:.3f}" in line


def test_training_advances_the_overall_bar_by_its_work(trained):
    assert trained.work == pytest.approx(30)


def test_the_metrics_of_an_epoch_are_means_over_its_texts():
    # Steps this small change nothing, so the metrics are those of the final weights.
    still = {"learning_rate": 1e-9, "projection_learning_rate": 1e-9, "epochs": 1}
    classifier, (epoch,) = train(batch_size=7, **still)  # the last batch has three texts
    (inputs, labels), *_ = whole_validation()
    logits = logits_of(classifier, inputs).astype("float64")
    losses = np.logaddexp.reduce(logits, -1) - logits[np.arange(24), labels]
    assert epoch["val_loss"] == pytest.approx(losses.mean(), rel=1e-4)
    assert epoch["val_accuracy"] == pytest.approx((logits.argmax(-1) == labels).mean())


def test_a_seed_repeats_a_training(trained):
    classifier, history = train()
    assert history == [pytest.approx(epoch, rel=1e-5) for epoch in trained.history]
    weights = zip(classifier.get_weights(), trained.classifier.get_weights(), strict=True)
    for again, first in weights:
        np.testing.assert_allclose(again, first, rtol=1e-4, atol=1e-5)


def test_a_model_in_float16_learns_with_a_scaled_loss():
    classifier, history = train(new_classifier("mixed_float16"))
    assert isinstance(classifier.optimizer, keras.optimizers.LossScaleOptimizer)
    assert isinstance(classifier.optimizer.inner_optimizer, TwoRateAdamW)
    assert history[-1]["val_accuracy"] > 0.9


def test_a_loss_that_is_not_finite_is_an_error_that_names_the_learning_rate():
    states, labels = separable_texts(64, 1)
    states.values[:] = np.inf
    with pytest.raises(InputError, match="diverged in epoch 1.*learning_rate"):
        train(epochs=2, texts=(states, labels))


def test_a_validation_loss_that_is_not_finite_is_an_error_too(monkeypatch):
    metrics = {"loss": np.inf, "accuracy": 0.5}
    monkeypatch.setattr(training, "_evaluate", lambda *_: metrics)
    with pytest.raises(InputError, match="diverged in epoch 1.*learning_rate"):
        train(epochs=2)


# A classifier that is trained again


OBJECTIVES = {
    "cross_entropy": {"objective": "cross_entropy"},
    "contrastive": {"objective": "contrastive"},
    "another contrastive": {
        "objective": "contrastive", "contrastive_weight": 0.3, "contrastive_temperature": 0.7,
    },
}  # fmt: skip


def assert_same_weights(one, other):
    for ours, theirs in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
def test_a_classifier_that_was_trained_before_trains_as_a_new_one(dtype, objective):
    settings = {"epochs": 2, "patience": 1} | OBJECTIVES[objective]
    fresh, history = train(new_classifier(dtype), **settings)
    used = new_classifier(dtype)
    encoder = used.get_layer("encoder")
    pretrained = encoder.get_weights()
    before = {"epochs": 3, "batch_size": 5, "learning_rate": 0.1, "seed": 2, "class_weights": True}
    for other in OBJECTIVES.keys() - {objective}:
        train(used, **before | OBJECTIVES[other])
    encoder.set_weights(pretrained)
    _, again = train(used, **settings)
    assert again == history
    assert_same_weights(used, fresh)


def test_a_training_of_other_shapes_rates_lengths_and_objectives_traces_nothing(monkeypatch):
    classifier, traced = new_classifier(), []
    for name in ("train_step", "test_step"):
        step = getattr(TextModel, name)
        monkeypatch.setattr(
            TextModel, name, lambda *given, step=step: (traced.append(1), step(*given))[1]
        )
    train(classifier, epochs=1)
    if keras.config.backend() == "tensorflow":  # JAX compiles every shape, torch nothing
        assert len(traced) == 2
    traced.clear()
    train(classifier, epochs=1)
    if keras.config.backend() != "torch":
        assert not traced
    texts = random_states(LENGTHS, seed=3), np.arange(len(LENGTHS)) % 2
    train(classifier, texts=texts, batch_size=3, learning_rate=0.002, warmup=0.5, epochs=2)
    train(classifier, texts=texts, batch_size=4, **OBJECTIVES["another contrastive"], epochs=2)
    if keras.config.backend() == "tensorflow":
        assert not traced


# Objectives

# Steps this small change nothing, so the losses are those of the initial weights.
STILL = {"learning_rate": 1e-30, "projection_learning_rate": 1e-30, "epochs": 1}


def plain_training(experiment, texts):
    """A training by cross-entropy as Keras itself does it: its losses and the trained model."""
    model, steps = new_classifier(), -(-len(texts[1]) // experiment.batch_size)
    plain = keras.Model(model.input, model.output[0])
    initialize([plain.get_layer(name) for name in ("head_dropout", "head")], experiment.seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    plain.compile(TwoRateAdamW(1.0), loss, jit_compile=False)
    plain.optimizer.build(plain.trainable_variables)
    plain.optimizer.rate_factor.assign(
        experiment.projection_learning_rate / experiment.learning_rate
    )
    order = np.random.default_rng(experiment.seed)
    losses = []
    for step, batch in enumerate(shuffled_batches(*texts, experiment.batch_size, 256, order)):
        plain.optimizer.learning_rate = learning_rate(step, steps, experiment)
        plain.reset_metrics()
        losses.append(float(plain.train_on_batch(*batch)))
    return losses, plain


@pytest.mark.skipif(
    keras.config.backend() == "jax", reason="XLA rounds differently in different programs"
)
def test_cross_entropy_alone_is_kerass_own_bit_for_bit():
    texts = separable_texts(64, 1)
    classifier, (epoch,) = train(epochs=1, texts=texts)
    losses, plain = plain_training(Experiment(epochs=1, **USUAL), texts)
    assert epoch["loss"] == np.mean(losses)
    for layer in plain.layers:
        assert_same_weights(classifier.get_layer(layer.name), layer)


def test_cross_entropy_alone_ignores_the_settings_of_the_contrastive_loss():
    one, history = train(epochs=1)
    extreme = {"contrastive_weight": 1e30, "contrastive_temperature": 1e-300}
    other, again = train(epochs=1, **extreme)
    assert again == history
    assert_same_weights(one, other)


@pytest.mark.parametrize("class_weights", [False, True])
@pytest.mark.parametrize("objective", ["contrastive", "another contrastive"])
def test_the_contrastive_loss_of_the_embeddings_is_added_times_its_weight(
    objective, class_weights, monkeypatch
):
    monkeypatch.setattr(training, "HEAD_DROPOUT", 0.0)
    texts, validation = unbalanced_texts(), separable_texts(24, 2)
    settings = STILL | {"texts": texts, "batch_size": 128, "class_weights": class_weights}
    classifier, (plain,) = train(**settings)
    _, (both,) = train(**settings | OBJECTIVES[objective])
    chosen, weights = Experiment(**OBJECTIVES[objective]), np.ones(64)
    if class_weights:
        weights = training._class_weights(texts[1])[texts[1]]
    for name, split, text_weights in (("loss", texts, weights), ("val_loss", validation, None)):
        _, embeddings = classifier(split[0].batch(range(len(split[1])), 4, len(split[1])))
        values = ops.convert_to_numpy(embeddings), chosen.contrastive_temperature, text_weights
        expected = chosen.contrastive_weight * brute_force(split[1], *values)
        assert both[name] - plain[name] == pytest.approx(expected, rel=1e-4) and expected > 0.1


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
def test_training_with_the_contrastive_loss_learns_and_reports_finite_numbers(dtype):
    settings = OBJECTIVES["contrastive"] | {"class_weights": True}
    _, history = train(new_classifier(dtype), texts=unbalanced_texts(), **settings)
    assert np.isfinite([list(epoch.values()) for epoch in history]).all()
    assert history[-1]["val_accuracy"] > 0.9


def spread(classifier):
    """The mean of 1 less the cosine of two validation texts of a class."""
    (inputs, labels), *_ = whole_validation()
    embeddings = ops.convert_to_numpy(classifier(inputs)[1])
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    is_pair = (labels[:, None] == labels) & ~np.eye(len(labels), dtype=bool)
    return (1 - unit @ unit.T)[is_pair].mean()


def test_the_contrastive_loss_makes_classes_more_compact_than_cross_entropy_alone(trained):
    contrastive, _ = train(**OBJECTIVES["contrastive"])
    assert spread(contrastive) < 0.9 * spread(trained.classifier)


def test_no_label_is_alone_in_a_step_with_the_contrastive_loss(monkeypatch):
    classifier, counts = new_classifier(), []
    train_on_batch = classifier.train_on_batch

    def record(inputs, labels, *others, **options):
        counts.append(np.bincount(labels, minlength=2).tolist())
        return train_on_batch(inputs, labels, *others, **options)

    monkeypatch.setattr(classifier, "train_on_batch", record)
    settings = OBJECTIVES["contrastive"] | {"epochs": 2, "batch_size": 6}
    train(classifier, texts=unbalanced_texts(), **settings)
    assert np.sum(counts, 0).tolist() == [2 * 56, 2 * 8]
    assert not any(1 in count for count in counts)


def test_the_initial_head_depends_on_the_seed_alone():
    def head(classifier=None, **settings):
        return train(classifier, **STILL | settings)[0].get_layer("head").get_weights()[0]

    random.seed(7)
    drawn = build_classifier(mean_model(), 2)
    drawn.predict_on_batch(next(whole_validation())[0])
    others = {"batch_size": 5, "class_weights": True, "warmup": 0.0} | OBJECTIVES["contrastive"]
    np.testing.assert_array_equal(head(), head(drawn, **others))
    assert not np.allclose(head(), head(seed=2), atol=1e-3)


# Early stopping


@pytest.fixture
def destroy_weights(monkeypatch):
    """A function that makes one epoch, counted from 0, set all weights to 0."""
    epochs = []

    class Destroyer(EpochLogger):
        def on_epoch_begin(self, epoch, logs=None):
            self.destroys = epoch in epochs

        def on_train_batch_end(self, batch, logs=None):
            if self.destroys:
                for variable in self.model.trainable_variables:
                    variable.assign(0 * variable.value)

    monkeypatch.setattr(training, "EpochLogger", Destroyer)
    return epochs.append


def validation_accuracy(classifier):
    (inputs, labels), *_ = whole_validation()
    return (logits_of(classifier, inputs).argmax(-1) == labels).mean()


def test_patience_restores_the_best_epochs_weights_if_training_is_not_stopped(destroy_weights):
    destroy_weights(2)
    classifier, history = train(epochs=3, patience=3)
    accuracy = validation_accuracy(classifier)
    assert accuracy == pytest.approx(max(epoch["val_accuracy"] for epoch in history))
    assert history[2]["val_accuracy"] < accuracy


def test_patience_stops_the_training_and_restores_the_best_epochs_weights(destroy_weights):
    destroy_weights(1)
    destroy_weights(2)
    classifier, history = train(epochs=9, patience=2)
    assert len(history) == 3
    assert history[2]["val_accuracy"] < history[0]["val_accuracy"]
    assert validation_accuracy(classifier) == pytest.approx(history[0]["val_accuracy"])


def test_without_patience_every_epoch_is_trained_and_the_last_ones_weights_stay(destroy_weights):
    destroy_weights(1)
    destroy_weights(4)
    classifier, history = train(epochs=5)
    assert len(history) == 5
    assert history[4]["val_accuracy"] < max(epoch["val_accuracy"] for epoch in history)
    assert validation_accuracy(classifier) == pytest.approx(history[4]["val_accuracy"])


# The schedule of rates


def rates_of(steps, **settings):
    """The rate of each step, and the one after the last."""
    experiment = Experiment(learning_rate=0.01, **settings)
    return [learning_rate(step, steps, experiment) for step in range(steps + 1)]


@pytest.mark.parametrize(
    ("steps", "fraction", "warmup"), [(40, 0.1, 4), (41, 0.25, 10), (7, 0.5, 4)]
)
def test_rates_rise_during_the_warmup_and_fall_to_0_as_a_cosine(steps, fraction, warmup):
    rise = [0.01 * step / warmup for step in range(warmup)]
    fall = [math.cos(math.pi * step / (steps - warmup)) for step in range(steps - warmup + 1)]
    expected = rise + [0.005 * (1 + height) for height in fall]
    assert rates_of(steps, warmup=fraction) == pytest.approx(expected, rel=1e-4, abs=1e-8)


def test_without_a_warmup_the_first_step_has_the_highest_rate():
    rates = rates_of(20, warmup=0)
    assert rates[0] == pytest.approx(0.01) and rates[-1] == pytest.approx(0, abs=1e-8)
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("steps", [1, 2, 20])
def test_a_warmup_of_nearly_all_steps_leaves_one_to_fall(steps):
    rates = rates_of(steps, warmup=0.99)
    assert rates[steps - 1] == max(rates) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("factor", "clip_norm"), [(10.0, 1.0), (10.0, 0.5), (1e-3, 1.0), (10.0, None)]
)
def test_gradients_are_scaled_down_to_the_global_norm(factor, clip_norm, monkeypatch):
    classifier = build_classifier(mean_model(), 2, clip_norm)
    variables = classifier.trainable_variables
    generator = np.random.default_rng(0)
    gradients = [
        factor * generator.normal(size=variable.shape).astype("float32") for variable in variables
    ]
    applied = []
    monkeypatch.setattr(
        TwoRateAdamW,
        "update_step",
        lambda _, gradient, *rest: applied.append(ops.convert_to_numpy(gradient)),
    )
    tensors = [keras.ops.convert_to_tensor(gradient) for gradient in gradients]
    classifier.optimizer.apply(tensors, variables)
    norm = np.sqrt(sum(np.square(gradient).sum() for gradient in gradients))
    scale = 1 if clip_norm is None else min(1, clip_norm / norm)
    for gradient, expected in zip(applied, gradients, strict=True):
        np.testing.assert_allclose(gradient, expected * scale, rtol=1e-4)


# Class weights


def unbalanced_texts():
    """56 texts of class 0 and 8 of class 1."""
    states, labels = separable_texts(112, 1)
    rows = np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:8]])
    return states.select(rows), labels[rows]


def test_class_weights_make_all_classes_count_the_same_and_a_text_1_on_average():
    weights = training._class_weights(np.array([2, 0, 2, 2, 1, 2]))
    assert weights == pytest.approx([2.0, 2.0, 0.5])


def test_class_weights_change_the_training_loss_only():
    # Steps this small change nothing, so the first loss is that of the initial weights.
    still = {"learning_rate": 1e-9, "projection_learning_rate": 1e-9, "epochs": 1}
    plain, weighted = (
        train(texts=unbalanced_texts(), class_weights=class_weights, **still)[1][0]
        for class_weights in (False, True)
    )
    assert abs(weighted["loss"] - plain["loss"]) > 1e-5
    assert weighted["val_loss"] == pytest.approx(plain["val_loss"], rel=1e-5)


def test_class_weights_change_nothing_if_classes_are_balanced(trained):
    _, weighted = train(class_weights=True)
    assert weighted == [pytest.approx(epoch, rel=1e-5) for epoch in trained.history]
