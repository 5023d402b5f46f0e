"""The built-in tiny models before pretraining: their shapes and their tokenizers."""

import io
import json

import keras
import keras_hub
import numpy as np
import scipy.sparse
import sentencepiece
from sklearn.decomposition import TruncatedSVD
from tokenizers import ByteLevelBPETokenizer

SEED = 33
VOCABULARY_SIZE = 4096  # of each tokenizer
WINDOW = 4  # tokens on either side that count as context


def random_gemma() -> keras_hub.models.GemmaBackbone:
    """A Gemma with as many layers as `gemma_2b_en`, of width 96: 2.2 million parameters, seeded."""
    keras.utils.set_random_seed(SEED)
    return keras_hub.models.GemmaBackbone(
        vocabulary_size=VOCABULARY_SIZE,
        num_layers=18,
        num_query_heads=3,
        num_key_value_heads=1,
        hidden_dim=96,
        intermediate_dim=512,
        head_dim=32,
    )


def random_roberta(dropout: float = 0.1) -> keras_hub.models.RobertaBackbone:
    """A RoBERTa of four layers and width 128: 1.4 million parameters, seeded.

    Kernels have a standard deviation of 1 / sqrt(width), since RoBERTa's 0.02 is for widths of 768
    and more. Position embeddings are initialized to sinusoids (Vaswani et al., 2017, section 3.5),
    which are similar for near positions.
    """
    keras.utils.set_random_seed(SEED)
    model = keras_hub.models.RobertaBackbone(
        vocabulary_size=VOCABULARY_SIZE,
        num_layers=4,
        num_heads=4,
        hidden_dim=128,
        intermediate_dim=512,
        dropout=dropout,
        max_sequence_length=512,
    )
    for weight in model.trainable_variables:
        if weight.name == "kernel":
            weight.assign(weight / (0.02 * model.hidden_dim**0.5))
    positions = model.embeddings.position_embedding.position_embeddings
    positions.assign(0.02 * 2**0.5 * sinusoids(*positions.shape))
    return model


def initialize_token_embeddings(
    model: keras_hub.models.RobertaBackbone, stream: np.ndarray
) -> None:
    """Initialize token embeddings in closed form: tokens with similar contexts are similar.

    Positive pointwise mutual information within WINDOW tokens, reduced to the model's width by a
    truncated SVD; word2vec approximates the same factorization (Levy & Goldberg, 2014, sections 3.2
    and 5). With masked tokens alone a model this small takes several times as long to get there.

    Args:
        model: model whose token embeddings are replaced, at the scale of their random
            initialization.
        stream: `(tokens,)` ids of the text.
    """
    size = VOCABULARY_SIZE
    counts = scipy.sparse.csr_matrix((size, size))
    for distance in range(1, WINDOW + 1):
        pairs = stream[:-distance], stream[distance:]
        counts += scipy.sparse.csr_matrix((np.ones(len(pairs[0])), pairs), shape=counts.shape)
    counts = (counts + counts.T).tocoo()
    totals = np.asarray(counts.sum(axis=1)).ravel()
    pmi = np.log(counts.data * totals.sum() / (totals[counts.row] * totals[counts.col]))
    ppmi = scipy.sparse.csr_matrix((pmi.clip(0), (counts.row, counts.col)), shape=counts.shape)
    embeddings = TruncatedSVD(model.hidden_dim, random_state=SEED).fit_transform(ppmi)
    embeddings -= embeddings.mean(axis=0)
    model.token_embedding.embeddings.assign(0.02 * embeddings / embeddings.std())


def sinusoids(positions: int, width: int) -> np.ndarray:
    """`(positions, width)`: sines, then cosines, of wavelengths from 2 pi to 128 times that."""
    angles = np.arange(positions)[:, None] / 128 ** np.linspace(0, 1, width // 2)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype("float32")


def gemma_tokenizer(texts: list[str]) -> keras_hub.models.GemmaTokenizer:
    """A SentencePiece tokenizer with Gemma's special tokens."""
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=proto,
        vocab_size=VOCABULARY_SIZE,
        model_type="bpe",
        byte_fallback=True,
        max_sentence_length=20_000,
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
        texts, vocab_size=VOCABULARY_SIZE, special_tokens=special, show_progress=False
    )
    vocabulary = trainer.get_vocab()
    merges = json.loads(trainer.to_str())["model"]["merges"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    return keras_hub.models.RobertaTokenizer(vocabulary=vocabulary, merges=merges)
