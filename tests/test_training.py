import keras
import numpy as np
import pytest

from embedder_helpers.config import Experiment, InputError
from embedder_helpers.tokens import bucket, end_to_end
from embedder_helpers.training import Batches, TwoRateAdamW, add_head, fit

LENGTHS = [5, 30, 7, 31, 6, 60, 8, 29, 5, 12]


def ragged_states(lengths, width=4, seed=0):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(sum(lengths), width)).astype("float32")
    return end_to_end(values, lengths)


def mean_model(width=4):
    """A model whose embedding is a dense layer over the masked mean."""
    inputs = keras.Input((None, width), name="inputs")
    mask = keras.Input((None,), dtype="int32", name="mask")
    weights = keras.ops.cast(mask[:, :, None], "float32")
    mean = keras.ops.sum(inputs * weights, 1) / keras.ops.sum(weights, 1)
    output = keras.layers.Dense(8, activation="tanh", name="encoder")(mean)
    return keras.Model({"inputs": inputs, "mask": mask}, output)


def separable(count, seed):
    """States whose first feature tells the class."""
    labels = np.arange(count) % 2
    prepared = ragged_states([4] * count, seed=seed)
    values = prepared.values.reshape(count, 4, 4).copy()
    values[:, :, 0] += 3 * (2 * labels[:, None] - 1)
    return end_to_end(values.reshape(-1, 4), [4] * count), labels


def batches_of(lengths, **keys):
    return Batches(ragged_states(lengths), np.arange(len(lengths)), Experiment(**keys))


def test_batches_hold_every_text_once_and_pad_to_the_bucket():
    batches = batches_of(LENGTHS, batch_size=3)
    labels = np.concatenate([batches[i][1] for i in range(len(batches))])
    assert sorted(labels.tolist()) == list(range(len(LENGTHS)))
    for i in range(len(batches)):
        inputs, rows = batches[i]
        assert inputs["inputs"].shape[1] == bucket(max(LENGTHS[row] for row in rows))
        assert inputs["mask"].sum(1).tolist() == [LENGTHS[row] for row in rows]


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
    batches = batches_of([90, 95], batch_size=2, max_tokens=95)
    assert batches[0][0]["inputs"].shape[1] == 95


def test_a_loss_that_is_not_finite_ends_the_training_with_the_cause():
    classifier = add_head(mean_model(), 2)
    states, labels = separable(64, 1)
    states.values[:] = np.inf
    with pytest.raises(InputError, match="training diverged in epoch 1.*learning_rate"):
        fit(classifier, (states, labels), separable(24, 2), Experiment(epochs=2))


def test_new_layers_learn_at_their_own_rate():
    pretrained = keras.Variable(np.zeros(1), name="kernel", dtype="float32")
    with keras.name_scope("head"):
        new = keras.Variable(np.zeros(1), name="kernel", dtype="float32")
    optimizer = TwoRateAdamW(1e-3, new_rate=20)
    gradient = keras.ops.ones(1)
    optimizer.apply([gradient, gradient], [pretrained, new])
    # Adam's first step is the rate itself, whatever the gradient.
    np.testing.assert_allclose(keras.ops.convert_to_numpy(pretrained.value), -1e-3, rtol=1e-4)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(new.value), -2e-2, rtol=1e-4)


def trained(seed, epochs=4):
    keras.utils.set_random_seed(seed)
    classifier = add_head(mean_model(), 2)
    experiment = Experiment(
        epochs=epochs, batch_size=8, learning_rate=0.01, projection_learning_rate=0.02, seed=seed
    )
    history = fit(classifier, separable(64, 1), separable(24, 2), experiment)
    return classifier, history


def test_training_learns_what_can_be_learned():
    _, history = trained(seed=1)
    assert len(history) == 4
    assert history[-1]["val_accuracy"] > 0.9


def test_a_seed_repeats_a_training():
    (first, history), (again, same) = trained(seed=1), trained(seed=1)
    assert history == same
    for one, other in zip(first.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_best_epochs_weights_are_kept(monkeypatch):
    """An epoch that ruins the weights is not the one that is kept."""

    class Ruin(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                for variable in self.model.trainable_variables:
                    variable.assign(0 * variable.value)

    early_stopping = keras.callbacks.EarlyStopping
    monkeypatch.setattr(
        keras.callbacks,
        "EarlyStopping",
        lambda *args, **kwargs: keras.callbacks.CallbackList(
            [Ruin(), early_stopping(*args, **kwargs)]
        ),
    )
    classifier, history = trained(seed=1, epochs=3)
    inputs, labels = separable(24, 2)
    batches = Batches(inputs, labels, Experiment(batch_size=24))
    accuracy = classifier.evaluate(batches, return_dict=True, verbose=0)["accuracy"]
    assert accuracy == pytest.approx(max(epoch["val_accuracy"] for epoch in history))
    assert history[2]["val_accuracy"] < accuracy
