"""Makes the built-in tiny models: `python -m embedder_helpers.builtin.build [FOLDER]`.

Ordinary Keras presets of Gemma's and RoBERTa's own architectures, with tokenizers trained on the
sample task's training texts. Their weights are random (seeded): they show the machinery, no more.
"""

import io
import json
import sys
from pathlib import Path

import keras
import keras_hub
import sentencepiece
from tokenizers import ByteLevelBPETokenizer

from embedder_helpers.presets import BUILTIN_FOLDER
from embedder_helpers.tasks import load_task

SEED = 33
WORDS = 1000  # vocabulary of each tokenizer


def build(folder: Path) -> None:
    """Writes `tiny_gemma` and `tiny_roberta` into a folder."""
    texts = load_task("sample").train.texts()
    keras.utils.set_random_seed(SEED)
    gemma = keras_hub.models.GemmaBackbone(
        vocabulary_size=WORDS,
        num_layers=18,  # as deep as gemma_2b_en
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=64,
        intermediate_dim=256,
        head_dim=32,
    )
    roberta = keras_hub.models.RobertaBackbone(
        vocabulary_size=WORDS,
        num_layers=2,
        num_heads=2,
        hidden_dim=64,
        intermediate_dim=256,
        max_sequence_length=512,
    )
    for name, model in (("tiny_gemma", gemma), ("tiny_roberta", roberta)):
        model.save_to_preset(str(folder / name))
    gemma_tokenizer(texts).save_to_preset(str(folder / "tiny_gemma"))
    roberta_tokenizer(texts).save_to_preset(str(folder / "tiny_roberta"))


def gemma_tokenizer(texts: list[str]) -> keras_hub.models.GemmaTokenizer:
    """A SentencePiece tokenizer with Gemma's special tokens."""
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=proto,
        vocab_size=WORDS,
        model_type="bpe",
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        minloglevel=2,
    )
    return keras_hub.models.GemmaTokenizer(proto=proto.getvalue())


def roberta_tokenizer(texts: list[str]) -> keras_hub.models.RobertaTokenizer:
    """A byte-pair tokenizer with RoBERTa's special tokens."""
    trainer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer.train_from_iterator(
        texts, vocab_size=WORDS, special_tokens=special, show_progress=False
    )
    vocabulary = trainer.get_vocab()
    merges = json.loads(trainer.to_str())["model"]["merges"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    return keras_hub.models.RobertaTokenizer(vocabulary=vocabulary, merges=merges)


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else BUILTIN_FOLDER)
