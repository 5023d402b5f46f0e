"""Join Gemma and RoBERTa in another way: the average of hidden state and token embedding.

    python -m examples.own_fusion    # from the project's folder; about 30 seconds

A fusion is a function of projected hidden states and token embeddings, both `(texts, positions,
width)` and aligned token by token. Since the closed-form initialization of the projection is the
best linear estimate of a token's own embedding, their average starts near RoBERTa alone, without a
gate. The name is part of a result's name, so results of different fusions are not confused.

Not shown: that averaging is a good idea. The fusion is registered in this process only, so
another process (a further GPU's, or one that loads a saved embedder) has to import this file first.
"""

from pathlib import Path

import embedder_helpers as eh
from embedder_helpers.models.layers import register_fusion

OUT = Path("build/examples/own_fusion")


def average(projected, own, tokens):
    """The mean of hidden state and token embedding, at every token."""
    return (own + projected) / 2


register_fusion("average", average)


def main(out: Path = OUT) -> list:
    """Run the example; returns the results."""
    experiment = eh.Experiment(
        fusion="average", llm_layers=2, max_tokens=48, max_train_texts=64, epochs=1
    )
    results, _ = eh.run_experiments([experiment], out)
    print(eh.results_table(results).round(3).to_string(index=False))
    return results


if __name__ == "__main__":
    main()
