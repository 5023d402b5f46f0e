"""Lets the built-in tiny models read English: `python -m embedder_helpers.builtin.pretrain`.

Gemma learns to tell the next token (Radford et al., 2018, section 3.1), RoBERTa to tell masked ones
(Liu et al., 2019: full sentences, masks drawn anew each time; 30 % of the tokens, of which 80 %
become <mask>, 10 % a random token, 10 % stay). Needs requirements-dev.txt, and `npm` and `apt-get`
for the text. Killed, the same command goes on behind the last full slice, to the same weights. Each
model also is kept as it was before it read anything, to compare with.
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

from embedder_helpers.builtin import build, corpus
from embedder_helpers.platform import write_whole
from embedder_helpers.presets import BUILTIN_FOLDER

SLICE = 250  # steps between two savings
WARMUP = 300  # steps
MASKED = 0.3  # of a sequence's tokens


class Reading(NamedTuple):
    """How a model reads: tokens a sequence, sequences a step, steps, and the highest rate."""

    length: int
    batch: int
    steps: int
    rate: float


READINGS = {
    "tiny_gemma": Reading(length=128, batch=32, steps=3250, rate=3e-3),
    # Short sequences, which leave less for attention to find.
    "tiny_roberta": Reading(length=48, batch=80, steps=3000, rate=1e-3),
}
Examples = tuple[dict[str, np.ndarray], np.ndarray]  # inputs, and the tokens to be told


def pretrain(name: str, folder: Path, target: Path) -> Path:
    """Trains one model in `folder`, writes its preset to `target / name`, and gives its curve."""
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = corpus.passages(folder / "corpus")
    reading = READINGS[name]
    if name == "tiny_gemma":
        tokenizer, backbone, pose = build.gemma_tokenizer(train), build.random_gemma(), next_token
    else:
        tokenizer, backbone = build.roberta_tokenizer(train), build.random_roberta()
        pose = masked_tokens
    save_preset(backbone, tokenizer, folder / "random" / name)

    sequences = pack(tokenizer, train, reading.length)
    unseen = pose(pack(tokenizer, held_out, reading.length), np.random.default_rng(build.SEED))
    if name == "tiny_gemma":
        model = keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None)
    else:
        # Without dropout, whose random state is not saved: killed, it goes on to the same weights.
        start = build.random_roberta(dropout=0.0)
        build.start_at_meanings(start, sequences[:, 1:].ravel())
        model = keras_hub.models.RobertaMaskedLM(backbone=start, preprocessor=None)
    print(f"{name}: {model.count_params():,} parameters, {sequences.size:,} tokens to read")

    def draw(step: int) -> Examples:
        """The examples of one slice: an epoch's sequences in an order of its own."""
        places = np.arange(step * reading.batch, (step + SLICE) * reading.batch)
        epochs, places = np.divmod(places, len(sequences))
        orders = {
            epoch: np.random.default_rng((build.SEED, epoch)).permutation(len(sequences))
            for epoch in np.unique(epochs)
        }
        drawn = [orders[epoch][place] for epoch, place in zip(epochs, places, strict=True)]
        return pose(sequences[drawn], np.random.default_rng((build.SEED, step)))

    # What is kept of a killed run is of these very sequences and settings.
    key = zlib.crc32(sequences.tobytes(), zlib.crc32(repr(reading).encode()))
    path = folder / f"{name}-{key:08x}"
    fit(model, reading, draw, unseen, path)
    backbone.set_weights(model.backbone.get_weights())
    save_preset(backbone, tokenizer, target / name)
    return path.with_suffix(".csv")


def fit(
    model: keras.Model,
    reading: Reading,
    draw: Callable[[int], Examples],
    unseen: Examples,
    path: Path,
) -> None:
    """Trains in slices; behind each, model, optimizer and a row of the curve are kept.

    Args:
        model: to be trained.
        reading: how.
        draw: gives the examples of the slice that begins at a step.
        unseen: held-out examples.
        path: of what is kept, without its endings.
    """
    kept, curve = path.with_suffix(".weights.h5"), path.with_suffix(".csv")
    rate = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        warmup_target=reading.rate,
        warmup_steps=WARMUP,
        decay_steps=reading.steps - WARMUP,
    )
    model.compile(
        optimizer=keras.optimizers.AdamW(rate, weight_decay=0.01, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[],
        jit_compile=True,
    )
    model.optimizer.build(model.trainable_variables)
    if kept.exists():
        model.load_weights(kept)  # the optimizer's too
    done = int(model.optimizer.iterations)
    rows = pd.read_csv(curve).to_dict("records") if curve.exists() else []
    rows = [row for row in rows if row["step"] <= done]
    for step in tqdm(range(done, reading.steps, SLICE), desc=path.name, unit="slice"):
        history = model.fit(*draw(step), batch_size=reading.batch, shuffle=False, verbose=0)
        told = {"step": step + SLICE, "loss": history.history["loss"][0]}
        told["held_out_loss"] = model.evaluate(*unseen, batch_size=reading.batch, verbose=0)
        rows.append(told)
        write_whole(curve, lambda to: pd.DataFrame(rows).to_csv(to, index=False))
        write_whole(kept, model.save_weights)
        tqdm.write(f"{told}, held-out perplexity {math.exp(told['held_out_loss']):.1f}")


def pack(tokenizer: keras_hub.tokenizers.Tokenizer, texts: list[str], length: int) -> np.ndarray:
    """All texts end to end, each closed by the end token, cut into sequences.

    `(sequences, length + 1)`: each opens with the start token, and has one token more than is
    read, which Gemma is to tell.
    """
    ids = [np.append(found, tokenizer.end_token_id) for found in tokenizer(texts)]
    stream = np.concatenate(ids).astype(np.int32)
    stream = stream[: len(stream) // length * length].reshape(-1, length)
    start = np.full((len(stream), 1), tokenizer.start_token_id, np.int32)
    return np.concatenate([start, stream], axis=1)


def next_token(sequences: np.ndarray, _: np.random.Generator) -> Examples:
    """Each token is to be told from those before it."""
    inputs, told = sequences[:, :-1], sequences[:, 1:]
    return {"token_ids": inputs, "padding_mask": np.ones_like(inputs)}, told


def masked_tokens(sequences: np.ndarray, random: np.random.Generator) -> Examples:
    """A share of each sequence's tokens, never the first, is to be told from the rest."""
    ids = sequences[:, :-1].copy()
    order = random.random((len(ids), ids.shape[1] - 1)).argsort(axis=1)
    places = np.sort(order[:, : round(MASKED * ids.shape[1])] + 1, axis=1).astype(np.int32)
    told = np.take_along_axis(ids, places, axis=1)
    chance = random.random(places.shape)
    other = random.integers(5, build.WORDS, places.shape)  # the first five are special
    mask = 4
    shown = np.where(chance < 0.8, mask, np.where(chance < 0.9, other, told))
    np.put_along_axis(ids, places, shown.astype(np.int32), axis=1)
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids), "mask_positions": places}
    return inputs, told


def plot(paths: dict[str, Path], target: Path) -> None:
    """The models' curves, as a figure."""
    from matplotlib.figure import Figure

    curves = {name: pd.read_csv(path, index_col="step") for name, path in paths.items()}
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    told = {"tiny_gemma": "the next token", "tiny_roberta": "masked tokens"}
    for panel, (name, curve) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        panel.plot(np.exp(curve["loss"]), color="#136", label="read")
        panel.plot(np.exp(curve["held_out_loss"]), "--", color="#c50", label="held out")
        panel.set(title=f"{name}: {told[name]}", xlabel="step", ylabel="perplexity", yscale="log")
        panel.grid(alpha=0.3, which="both")
        panel.legend()
    write_whole(target, figure.savefig)


def save_preset(backbone: keras.Model, tokenizer: object, target: Path) -> None:
    """A Keras preset: the model and its tokenizer."""
    backbone.save_to_preset(str(target))
    tokenizer.save_to_preset(str(target))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", nargs="+", choices=list(READINGS), default=list(READINGS))
    parser.add_argument("--folder", type=Path, default=Path("build/pretrain"))
    parser.add_argument("--target", type=Path, default=BUILTIN_FOLDER)
    asked = parser.parse_args()
    found = {name: pretrain(name, asked.folder, asked.target) for name in asked.models}
    if len(found) == len(READINGS):
        plot(found, asked.target / "curves.png")
