import math

import keras
import numpy as np
import pytest
from keras import ops

from embedder_helpers import platform, training
from embedder_helpers.config import Experiment, InputError
from embedder_helpers.pooling import LayerPooling
from embedder_helpers.projection import build_projection
from embedder_helpers.tokens import Stacked, bucket, end_to_end
from embedder_helpers.training import Batches, Progress, TwoRateAdamW, add_head, fit

LENGTHS = [5, 30, 7, 31, 6, 60, 8, 29, 5, 12]


def ragged_states(lengths, width=4, seed=0):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(sum(lengths), width)).astype("float32")
    return end_to_end(values, lengths)


def mean_model(width=4, dtype="float32"):
    """A model whose embedding is a dense layer over the masked mean."""
    inputs = keras.Input((None, width), name="inputs")
    mask = keras.Input((None,), dtype="int32", name="mask")
    weights = keras.ops.cast(mask[:, :, None], "float32")
    mean = keras.ops.sum(inputs * weights, 1) / keras.ops.sum(weights, 1)
    output = keras.layers.Dense(8, activation="tanh", dtype=dtype, name="encoder")(mean)
    output = keras.ops.cast(output, "float32")
    return keras.Model({"inputs": inputs, "mask": mask}, output)


def separable(count, seed):
    """States whose first feature tells the class."""
    labels = np.arange(count) % 2
    prepared = ragged_states([4] * count, seed=seed)
    values = prepared.values.reshape(count, 4, 4).copy()
    values[:, :, 0] += 3 * (2 * labels[:, None] - 1)
    return end_to_end(values.reshape(-1, 4), [4] * count), labels


def batches_of(lengths, longest=256, **keys):
    return Batches(ragged_states(lengths), np.arange(len(lengths)), Experiment(**keys), longest)


def test_batches_hold_every_text_once_and_pad_to_the_bucket():
    batches = batches_of(LENGTHS, batch_size=3)
    labels = np.concatenate([batches[i][1] for i in range(len(batches))])
    assert sorted(labels.tolist()) == list(range(len(LENGTHS)))
    for i in range(len(batches)):
        inputs, rows = batches[i]
        assert inputs["inputs"].shape[1] == bucket(max(LENGTHS[row] for row in rows))
        assert inputs["mask"].sum(1).tolist() == [LENGTHS[row] for row in rows]


def test_batches_of_several_cutoffs_have_an_axis_for_them():
    layers = ragged_states(LENGTHS, seed=0), ragged_states(LENGTHS, seed=1)
    batches = Batches(Stacked(layers), np.arange(len(LENGTHS)), Experiment(batch_size=3), 256)
    inputs, rows = batches[0]
    length = bucket(max(LENGTHS[row] for row in rows))
    assert inputs["inputs"].shape == (3, length, 2, 4) and inputs["mask"].shape == (3, length)
    for cutoff, layer in enumerate(layers):
        found = inputs["inputs"][0, : LENGTHS[rows[0]], cutoff]
        np.testing.assert_array_equal(found, layer.text(rows[0]))


def test_batches_are_shuffled_each_epoch_and_repeat_with_the_seed():
    def orders(seed):
        batches = batches_of(LENGTHS, batch_size=2, seed=seed)
        epochs = []
        for _ in range(2):
            epochs.append([batches[i][1].tolist() for i in range(len(batches))])
            batches.on_epoch_end()
        return epochs

    assert orders(1) == orders(1)
    assert orders(1)[0] != orders(1)[1]


def test_the_first_two_batches_differ_in_length_where_any_do():
    for seed in range(20):
        batches = batches_of([20] * 30 + [5] * 3, batch_size=3, seed=seed)
        first, second = (batches[i][0]["inputs"].shape[1] for i in range(2))
        assert first != second


def test_where_all_batches_had_one_length_no_later_epoch_has_a_shorter_one():
    """Keras would refuse it: it holds on to the shapes of the first epoch."""
    for seed in range(40):
        batches = batches_of([20] * 62 + [5] * 2, batch_size=2, seed=seed)
        first = {batches[i][0]["inputs"].shape[1] for i in range(len(batches))}
        for _ in range(4):
            batches.on_epoch_end()
            if len(first) == 1:
                assert {batches[i][0]["inputs"].shape[1] for i in range(len(batches))} == first


def test_no_batch_is_padded_beyond_the_longest_text_there_can_be():
    batches = batches_of([90, 95], longest=95, batch_size=2)
    assert batches[0][0]["inputs"].shape[1] == 95


def test_a_loss_that_is_not_finite_ends_the_training_with_the_cause():
    classifier = add_head(mean_model(), 2)
    states, labels = separable(64, 1)
    states.values[:] = np.inf
    with pytest.raises(InputError, match="training diverged in epoch 1.*learning_rate"):
        fit(classifier, (states, labels), separable(24, 2), Experiment(epochs=2), 256)


def first_step(variable):
    """How far one step at 0.001 moves a variable that new layers would move 20 times as far.

    Adam's first step is the rate itself, whatever the gradient.
    """
    before = keras.ops.convert_to_numpy(variable.value)
    TwoRateAdamW(1e-3, new_rate=20).apply([keras.ops.ones(variable.shape)], [variable])
    return (before - keras.ops.convert_to_numpy(variable.value)).mean()


def test_a_pretrained_layer_learns_at_the_rate_itself():
    layer = keras.layers.Dense(3, name="encoder")
    layer.build((None, 2))
    assert first_step(layer.bias) == pytest.approx(1e-3, rel=1e-3)


def test_the_head_learns_at_the_rate_of_new_layers():
    head = add_head(mean_model(), 2).get_layer("head")
    assert first_step(head.bias) == pytest.approx(2e-2, rel=1e-3)


def test_the_projection_learns_at_the_rate_of_new_layers():
    projection = build_projection(Experiment(), 4, 4)
    assert first_step(projection.get_layer("projection_linear").bias) == pytest.approx(
        2e-2, rel=1e-3
    )


def test_learned_weights_of_cutoffs_learn_at_the_rate_of_new_layers():
    layer = LayerPooling("learned", name="layer_pooling")
    layer.build((None, None, 3, 4))
    assert first_step(layer.logits) == pytest.approx(2e-2, rel=1e-3)


def test_rates_are_told_apart_within_one_model():
    classifier = add_head(mean_model(), 2)
    biases = [classifier.get_layer(name).bias for name in ("encoder", "head")]
    TwoRateAdamW(1e-3, new_rate=20).apply([keras.ops.ones(one.shape) for one in biases], biases)
    pretrained, new = (keras.ops.convert_to_numpy(one.value) for one in biases)
    np.testing.assert_allclose(pretrained, -1e-3, rtol=1e-3)
    np.testing.assert_allclose(new, -2e-2, rtol=1e-3)


def test_an_epoch_is_told_in_one_line_above_the_bar(capsys):
    progress = Progress(None)
    progress.set_params({"epochs": 3})
    progress.on_epoch_end(1, {"loss": 0.25, "val_accuracy": 0.9})
    told = capsys.readouterr().out
    assert told == "  epoch 2 of 3: loss 0.250, val_accuracy 0.900\n"


def trained(seed, epochs=4, work=0.0, dtype="float32", train=None, **keys):
    keras.utils.set_random_seed(seed)
    classifier = add_head(mean_model(dtype=dtype), 2)
    rates = {"learning_rate": 0.01, "projection_learning_rate": 0.02}
    experiment = Experiment(epochs=epochs, batch_size=8, seed=seed, **rates | keys)
    train = train or separable(64, 1)
    history = fit(classifier, train, separable(24, 2), experiment, 256, work)
    return classifier, history


def test_training_learns_what_can_be_learned():
    _, history = trained(seed=1)
    assert len(history) == 4
    assert history[-1]["val_accuracy"] > 0.9


def test_a_model_in_float16_learns_as_well_its_loss_scaled():
    classifier, history = trained(seed=1, dtype="mixed_float16")
    assert isinstance(classifier.optimizer, keras.optimizers.LossScaleOptimizer)
    assert isinstance(classifier.optimizer.inner_optimizer, TwoRateAdamW)
    assert history[-1]["val_accuracy"] > 0.9


def test_training_tells_each_epoch_once(capsys):
    _, history = trained(seed=1, epochs=2)
    lines = [line for line in capsys.readouterr().out.splitlines() if "epoch" in line]
    assert len(lines) == 2
    for number, (line, epoch) in enumerate(zip(lines, history, strict=True), 1):
        assert line.startswith(f"  epoch {number} of 2: ")
        assert f"val_accuracy {epoch['val_accuracy']:.3f}" in line


def test_training_moves_the_bar_of_the_whole_run_by_its_work():
    with platform.whole_progress(100, "sweep") as bar:
        trained(seed=1, epochs=2, work=30)
        assert bar.n == pytest.approx(30)


def test_a_seed_repeats_a_training():
    (first, history), (again, same) = trained(seed=1), trained(seed=1)
    assert history == [pytest.approx(epoch, rel=1e-5) for epoch in same]
    for one, other in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.fixture
def ruin(monkeypatch):
    """A function that lets one epoch, counted from 0, ruin the weights."""
    spoilt = []

    class Ruin(training.Progress):
        def on_epoch_begin(self, epoch, logs=None):
            self.spoils = epoch in spoilt

        def on_train_batch_end(self, batch, logs=None):
            if self.spoils:
                for variable in self.model.trainable_variables:
                    variable.assign(0 * variable.value)

    monkeypatch.setattr(training, "Progress", Ruin)
    return spoilt.append


def accuracy_of(classifier):
    batches = Batches(*separable(24, 2), Experiment(batch_size=24), 256)
    return classifier.evaluate(batches, return_dict=True, verbose=0)["accuracy"]


def test_with_patience_the_best_epochs_weights_are_kept(ruin):
    """An epoch that ruins the weights is not the one that is kept."""
    ruin(2)
    classifier, history = trained(seed=1, epochs=3, patience=3)
    accuracy = accuracy_of(classifier)
    assert accuracy == pytest.approx(max(epoch["val_accuracy"] for epoch in history))
    assert history[2]["val_accuracy"] < accuracy


def test_patience_ends_the_training_and_gives_the_best_weights_back(ruin):
    ruin(1)
    ruin(2)
    classifier, history = trained(seed=1, epochs=9, patience=2)
    assert len(history) == 3
    assert history[2]["val_accuracy"] < history[0]["val_accuracy"]
    assert accuracy_of(classifier) == pytest.approx(history[0]["val_accuracy"])


def test_without_patience_every_epoch_is_trained_and_the_last_is_kept(ruin):
    ruin(1)
    ruin(4)
    classifier, history = trained(seed=1, epochs=5)
    assert len(history) == 5
    assert history[4]["val_accuracy"] < max(epoch["val_accuracy"] for epoch in history)
    assert accuracy_of(classifier) == pytest.approx(history[4]["val_accuracy"])


# Rates


def rates_of(steps, **keys):
    """The rate of each step, and the one behind the last."""
    classifier = add_head(mean_model(), 2)
    training._compile(classifier, Experiment(learning_rate=0.01, **keys), steps)
    rates = []
    for step in range(steps + 1):
        classifier.optimizer.iterations.assign(step)
        rates.append(float(classifier.optimizer.learning_rate))
    return rates


@pytest.mark.parametrize("steps, share, warmup", [(40, 0.1, 4), (41, 0.25, 10), (7, 0.5, 4)])
def test_rates_rise_over_the_warm_up_and_fall_to_0_as_a_cosine(steps, share, warmup):
    rise = [0.01 * step / warmup for step in range(warmup)]
    fall = [math.cos(math.pi * step / (steps - warmup)) for step in range(steps - warmup + 1)]
    expected = rise + [0.005 * (1 + height) for height in fall]
    assert rates_of(steps, warmup=share) == pytest.approx(expected, rel=1e-4, abs=1e-8)


def test_without_a_warm_up_the_first_step_has_the_highest_rate():
    rates = rates_of(20, warmup=0)
    assert rates[0] == pytest.approx(0.01) and rates[-1] == pytest.approx(0, abs=1e-8)
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("steps", [1, 2, 20])
def test_a_warm_up_of_nearly_all_steps_leaves_one_to_fall(steps):
    rates = rates_of(steps, warmup=0.99)
    assert rates[steps - 1] == max(rates) == pytest.approx(0.01)


def test_a_training_ends_at_rate_0():
    classifier, _ = trained(seed=1, epochs=2)
    assert float(classifier.optimizer.learning_rate) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("factor, clip_norm", [(10.0, 1.0), (10.0, 0.5), (1e-3, 1.0), (10.0, None)])
def test_gradients_are_scaled_down_to_the_norm_that_all_may_have(factor, clip_norm, monkeypatch):
    classifier = add_head(mean_model(), 2)
    training._compile(classifier, Experiment(clip_norm=clip_norm), 10)
    variables = classifier.trainable_variables
    generator = np.random.default_rng(0)
    given = [factor * generator.normal(size=one.shape).astype("float32") for one in variables]
    applied = []
    monkeypatch.setattr(
        TwoRateAdamW,
        "update_step",
        lambda _, gradient, *rest: applied.append(ops.convert_to_numpy(gradient)),
    )
    classifier.optimizer.apply([keras.ops.convert_to_tensor(one) for one in given], variables)
    norm = np.sqrt(sum(np.square(one).sum() for one in given))
    scale = 1 if clip_norm is None else min(1, clip_norm / norm)
    assert len(applied) == len(given)
    for one, expected in zip(applied, given, strict=True):
        np.testing.assert_allclose(one, expected * scale, rtol=1e-4)


# Class weights


def few_of_one_class():
    """56 texts of class 0 and 8 of class 1."""
    states, labels = separable(112, 1)
    rows = np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:8]])
    return states.select(rows), labels[rows]


def test_class_weights_let_every_class_count_alike_and_a_text_1_on_average():
    assert training._class_weights(np.array([2, 0, 2, 2, 1, 2])) == {
        0: pytest.approx(2.0),
        1: pytest.approx(2.0),
        2: pytest.approx(0.5),
    }


def test_the_loss_is_weighed_by_class_where_asked():
    # Steps this small change nothing, so the first loss is that of the starting weights.
    still = {"learning_rate": 1e-9, "projection_learning_rate": 1e-9, "epochs": 1}
    states, labels = few_of_one_class()
    plain, weighed = (
        trained(seed=1, train=(states, labels), class_weights=asked, **still)[1][0]
        for asked in (False, True)
    )
    assert abs(weighed["loss"] - plain["loss"]) > 1e-3
    assert weighed["val_loss"] == pytest.approx(plain["val_loss"], rel=1e-5)


def test_balanced_classes_are_trained_alike_with_and_without_weights():
    plain, weighed = (trained(seed=1, epochs=2, class_weights=asked)[1] for asked in (False, True))
    assert weighed == [pytest.approx(epoch, rel=1e-5) for epoch in plain]
