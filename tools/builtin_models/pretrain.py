"""Pretrain the built-in tiny models on English text: `python -m tools.builtin_models.pretrain`.

Gemma predicts the next token (Radford et al., 2018, section 3.1), RoBERTa masked tokens (Liu et
al., 2019: full sentences, dynamic masking; 30 % of the tokens, of which 80 % become <mask>, 10 % a
random token, 10 % stay). Run it in the project's folder, with requirements-dev.txt installed; the
text is downloaded with `npm` and `apt-get`. If interrupted, the same command resumes from the last
checkpoint and ends with the same weights. Each model's random initialization is saved too, for
comparison.
"""

import argparse
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras
import keras_hub
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from embedder_helpers.builtin import BUILTIN_FOLDER
from embedder_helpers.utils.files import atomic_write
from tools.builtin_models import build, corpus

CHECKPOINT_STEPS = 250  # steps between two checkpoints
WARMUP = 300  # steps
MASKED = 0.3  # of a sequence's tokens


class Schedule(NamedTuple):
    """Tokens per sequence, sequences per step, number of steps, and peak learning rate."""

    length: int
    batch: int
    steps: int
    rate: float


SCHEDULES = {
    "tiny_gemma": Schedule(length=128, batch=32, steps=3250, rate=3e-3),
    # Short sequences, which make attention easier to learn.
    "tiny_roberta": Schedule(length=48, batch=80, steps=3000, rate=1e-3),
}
Examples = tuple[dict[str, np.ndarray], np.ndarray]  # inputs, and the tokens to predict


def pretrain(name: str, folder: Path, target: Path) -> Path:
    """Pretrain one model.

    Args:
        name: `tiny_gemma` or `tiny_roberta`.
        folder: folder for the text, checkpoints and the random initialization.
        target: parent folder of the preset's folder `name`.

    Returns:
        The CSV file of its training curve.
    """
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = corpus.passages(folder / "corpus")
    schedule = SCHEDULES[name]
    if name == "tiny_gemma":
        tokenizer, backbone = build.gemma_tokenizer(train), build.random_gemma()
        make_examples = next_token
    else:
        tokenizer, backbone = build.roberta_tokenizer(train), build.random_roberta()
        make_examples = masked_tokens
    save_preset(backbone, tokenizer, folder / "random" / name)

    sequences = pack(tokenizer, train, schedule.length)
    evaluation = make_examples(
        pack(tokenizer, held_out, schedule.length), np.random.default_rng(build.SEED)
    )
    if name == "tiny_gemma":
        model = keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None)
    else:
        # Without dropout, whose random state is not saved: a resumed run has the same weights.
        initial = build.random_roberta(dropout=0.0)
        build.initialize_token_embeddings(initial, sequences[:, 1:].ravel())
        model = keras_hub.models.RobertaMaskedLM(backbone=initial, preprocessor=None)
    print(f"{name}: {model.count_params():,} parameters, {sequences.size:,} training tokens")

    def sample(step: int) -> Examples:
        """The examples from one checkpoint to the next: every epoch is shuffled differently."""
        positions = np.arange(step * schedule.batch, (step + CHECKPOINT_STEPS) * schedule.batch)
        epochs, positions = np.divmod(positions, len(sequences))
        orders = {
            epoch: np.random.default_rng((build.SEED, epoch)).permutation(len(sequences))
            for epoch in np.unique(epochs)
        }
        pairs = zip(epochs, positions, strict=True)
        rows = [orders[epoch][position] for epoch, position in pairs]
        return make_examples(sequences[rows], np.random.default_rng((build.SEED, step)))

    # The name of a checkpoint depends on sequences and schedule: no other run resumes from it.
    key = zlib.crc32(sequences.tobytes(), zlib.crc32(repr(schedule).encode()))
    path = folder / f"{name}-{key:08x}"
    fit(model, schedule, sample, evaluation, path)
    backbone.set_weights(model.backbone.get_weights())
    save_preset(backbone, tokenizer, target / name)
    return path.with_suffix(".csv")


def fit(
    model: keras.Model,
    schedule: Schedule,
    sample: Callable[[int], Examples],
    evaluation: Examples,
    path: Path,
) -> None:
    """Train, saving model, optimizer and training curve every `CHECKPOINT_STEPS` steps.

    Args:
        model: model to train in place.
        schedule: batch size, steps and learning rate.
        sample: function that returns the examples of the steps from a checkpoint, given by its
            step, to the next.
        evaluation: held-out examples.
        path: path of the checkpoint and the curve, without suffix.
    """
    checkpoint, curve = path.with_suffix(".weights.h5"), path.with_suffix(".csv")
    rate = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        warmup_target=schedule.rate,
        warmup_steps=WARMUP,
        decay_steps=schedule.steps - WARMUP,
    )
    model.compile(
        optimizer=keras.optimizers.AdamW(rate, weight_decay=0.01, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[],
        jit_compile=True,
    )
    model.optimizer.build(model.trainable_variables)
    if checkpoint.exists():
        model.load_weights(checkpoint)  # the optimizer's too
    done = int(model.optimizer.iterations)
    rows = pd.read_csv(curve).to_dict("records") if curve.exists() else []
    rows = [row for row in rows if row["step"] <= done]
    for step in tqdm(range(done, schedule.steps, CHECKPOINT_STEPS), desc=path.name):
        history = model.fit(*sample(step), batch_size=schedule.batch, shuffle=False, verbose=0)
        row = {"step": step + CHECKPOINT_STEPS, "loss": history.history["loss"][0]}
        row["held_out_loss"] = model.evaluate(*evaluation, batch_size=schedule.batch, verbose=0)
        rows.append(row)
        atomic_write(curve, lambda part: pd.DataFrame(rows).to_csv(part, index=False))
        atomic_write(checkpoint, model.save_weights)
        tqdm.write(f"{row}, held-out perplexity {math.exp(row['held_out_loss']):.1f}")


def pack(tokenizer: keras_hub.tokenizers.Tokenizer, texts: list[str], length: int) -> np.ndarray:
    """All texts concatenated, each with an end token, and split into sequences.

    `(sequences, length + 1)`: each begins with the start token, and has one token more than the
    model's input, which Gemma is to predict.
    """
    ids = [np.append(text_ids, tokenizer.end_token_id) for text_ids in tokenizer(texts)]
    stream = np.concatenate(ids).astype(np.int32)
    stream = stream[: len(stream) // length * length].reshape(-1, length)
    start = np.full((len(stream), 1), tokenizer.start_token_id, np.int32)
    return np.concatenate([start, stream], axis=1)


def next_token(sequences: np.ndarray, _: np.random.Generator) -> Examples:
    """Examples that predict each token from those before it."""
    inputs, targets = sequences[:, :-1], sequences[:, 1:]
    return {"token_ids": inputs, "padding_mask": np.ones_like(inputs)}, targets


def masked_tokens(sequences: np.ndarray, random: np.random.Generator) -> Examples:
    """Examples that predict a fraction of a sequence's tokens, never the first, from the rest."""
    ids = sequences[:, :-1].copy()
    order = random.random((len(ids), ids.shape[1] - 1)).argsort(axis=1)
    positions = np.sort(order[:, : round(MASKED * ids.shape[1])] + 1, axis=1).astype(np.int32)
    targets = np.take_along_axis(ids, positions, axis=1)
    chance = random.random(positions.shape)
    other = random.integers(5, build.VOCABULARY_SIZE, positions.shape)  # the first 5 are special
    mask = 4
    shown = np.where(chance < 0.8, mask, np.where(chance < 0.9, other, targets))
    np.put_along_axis(ids, positions, shown.astype(np.int32), axis=1)
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids), "mask_positions": positions}
    return inputs, targets


def plot(paths: dict[str, Path], target: Path) -> None:
    """Plot the models' training curves."""
    from matplotlib.figure import Figure

    curves = {name: pd.read_csv(path, index_col="step") for name, path in paths.items()}
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    targets = {"tiny_gemma": "next token", "tiny_roberta": "masked tokens"}
    for axes, (name, curve) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        axes.plot(np.exp(curve["loss"]), color="#136", label="training")
        axes.plot(np.exp(curve["held_out_loss"]), "--", color="#c50", label="held out")
        axes.set(title=f"{name}: {targets[name]}", xlabel="step", ylabel="perplexity", yscale="log")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    atomic_write(target, figure.savefig)


def save_preset(backbone: keras.Model, tokenizer: object, target: Path) -> None:
    """Save a Keras preset: the model and its tokenizer."""
    backbone.save_to_preset(str(target))
    tokenizer.save_to_preset(str(target))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=list(SCHEDULES), default=list(SCHEDULES))
    parser.add_argument("--folder", type=Path, default=Path("build/pretrain"))
    parser.add_argument("--target", type=Path, default=BUILTIN_FOLDER)
    options = parser.parse_args()
    files = {name: pretrain(name, options.folder, options.target) for name in options.models}
    if len(files) == len(SCHEDULES):
        plot(files, options.target / "curves.png")
