"""Put another encoder in RoBERTa's place: DistilBERT, with two lines and a tokenizer class.

    python -m examples.own_encoder    # from the project's folder; about 20 seconds

The code relies on the layers that `models/roberta.py` calls (`token_embedding`,
`embeddings.position_embedding`, `embeddings_layer_norm`, `embeddings_dropout` and
`transformer_layers`), which keras-hub's DistilBERT has too, and on the tokenizer's start and end
tokens. Two things differ: its class has to be registered (`FAMILIES`), and its tokenizer prefixes a
token inside a word with `##`, which would be counted as two bytes of the text when tokens are
aligned with Gemma's.

Not shown: pretrained weights, training. `FAMILIES` is extended in this process only, so
another process (a further GPU's, or one that loads a saved embedder) has to import this file first.
To be added permanently, a family also needs an entry in `kaggle_handle` of `models/presets.py`, for
presets named without a handle, and in `models/shapes.py`, which counts weights for `estimate` and
`parameters`.
"""

from pathlib import Path

import keras
import keras_hub
import numpy as np

import embedder_helpers as eh
from embedder_helpers.models.preset_config import FAMILIES
from embedder_helpers.models.presets import find_preset
from embedder_helpers.models.roberta import encode_embeddings, load_roberta

OUT = Path("build/examples/own_encoder")

_, ARCHITECTURES = FAMILIES["slm_preset"]
ARCHITECTURES.add("DistilBertBackbone")


@keras.saving.register_keras_serializable(package="examples")
class UnmarkedDistilBertTokenizer(keras_hub.models.DistilBertTokenizer):
    """DistilBERT's tokenizer, whose tokens are spelled without the prefix `##`."""

    def id_to_token(self, id):
        """The token as it is spelled in the text."""
        return super().id_to_token(id).removeprefix("##")


def write_preset(folder: Path) -> Path:
    """Save a random 2-layer DistilBERT whose vocabulary is one word and the letters."""
    letters = "abcdefghijklmnopqrstuvwxyz,."
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = [*special, "rain", *letters, *(f"##{letter}" for letter in letters)]
    backbone = keras_hub.models.DistilBertBackbone(
        vocabulary_size=len(vocabulary),
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        intermediate_dim=64,
        max_sequence_length=64,
    )
    backbone.save_to_preset(str(folder))
    tokenizer = UnmarkedDistilBertTokenizer(vocabulary=vocabulary, lowercase=True)
    tokenizer.save_to_preset(str(folder))
    return folder


def check_forward_pass(folder: Path) -> None:
    """Compare with keras-hub's own model, as should be done for every new family."""
    bert, tokenizer = load_roberta(find_preset("slm_preset", str(folder)))
    assert isinstance(tokenizer, UnmarkedDistilBertTokenizer)
    ids, mask = np.array([[2, 5, 6, 3, 0]]), np.array([[1, 1, 1, 1, 0]])
    ours = encode_embeddings(bert, bert.token_embedding(ids), mask)
    theirs = bert({"token_ids": ids, "padding_mask": mask})
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=1e-6)


def main(out: Path = OUT) -> list:
    """Run the example; returns the results."""
    folder = write_preset(out / "my_bert")
    check_forward_pass(folder)
    experiment = eh.Experiment(
        slm_preset=str(folder), fusion="replace", llm_layers=2, max_tokens=48, epochs=0
    )
    results, _ = eh.run_experiments([experiment], out)
    print(eh.results_table(results).round(3).to_string(index=False))
    return results


if __name__ == "__main__":
    main()
