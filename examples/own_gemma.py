"""Use your own Gemma: save a preset with keras-hub and give its folder as `llm_preset`.

    python -m examples.own_gemma    # from the project's folder; about 15 seconds

A preset is a folder with `config.json`, `model.weights.h5`, `tokenizer.json` and `assets/`, which
keras-hub's `save_to_preset` writes. Here it is a random Gemma 3 of three layers with the tokenizer
of the built-in Gemma. A preset is identified by its content, so its hidden states and results are
found again after the folder is moved, and another preset at the same path is not confused with it.

Not shown: converting weights, or a useful model. Random weights score near chance.
"""

from pathlib import Path

import keras_hub

import embedder_helpers as eh
from embedder_helpers.models.presets import find_preset

OUT = Path("build/examples/own_gemma")


def write_preset(folder: Path) -> Path:
    """Save a random 3-layer Gemma 3 with the built-in Gemma's tokenizer."""
    gemma = keras_hub.models.Gemma3Backbone(
        vocabulary_size=4096,
        image_size=None,  # a text model
        num_layers=3,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=16,
        intermediate_dim=32,
        head_dim=8,
    )
    gemma.save_to_preset(str(folder))
    builtin = find_preset("llm_preset", "tiny_gemma")
    keras_hub.models.Tokenizer.from_preset(builtin.handle).save_to_preset(str(folder))
    return folder


def main(out: Path = OUT) -> list:
    """Run the example; returns the results."""
    folder = write_preset(out / "my_gemma")
    print(find_preset("llm_preset", str(folder)))

    experiment = eh.Experiment(kind="gemma_only", llm_preset=str(folder), llm_layers=-1)
    results, _ = eh.run_experiments([experiment], out)
    print(eh.results_table(results).round(3).to_string(index=False))
    return results


if __name__ == "__main__":
    main()
