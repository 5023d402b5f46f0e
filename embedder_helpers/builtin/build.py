"""The built-in tiny models before they have read anything: their shapes and their tokenizers."""

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
WORDS = 4096  # vocabulary of each tokenizer
WINDOW = 4  # tokens on either side that count as beside


def random_gemma() -> keras_hub.models.GemmaBackbone:
    """As deep as `gemma_2b_en`, 96 wide: 2.2 million parameters, seeded."""
    keras.utils.set_random_seed(SEED)
    return keras_hub.models.GemmaBackbone(
        vocabulary_size=WORDS,
        num_layers=18,
        num_query_heads=3,
        num_key_value_heads=1,
        hidden_dim=96,
        intermediate_dim=512,
        head_dim=32,
    )


def random_roberta(dropout: float = 0.1) -> keras_hub.models.RobertaBackbone:
    """Four layers, 128 wide: 1.4 million parameters, seeded.

    Kernels have a standard deviation of 1 / sqrt(width), where RoBERTa's 0.02 is for 768 and more,
    and positions start as sines (Vaswani et al., 2017, section 3.5), alike where they are near.
    """
    keras.utils.set_random_seed(SEED)
    model = keras_hub.models.RobertaBackbone(
        vocabulary_size=WORDS,
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
    positions.assign(0.02 * 2**0.5 * sines(*positions.shape))
    return model


def start_at_meanings(model: keras_hub.models.RobertaBackbone, stream: np.ndarray) -> None:
    """Token embeddings in closed form: tokens are alike that stand beside the same tokens.

    Positive pointwise mutual information within WINDOW tokens, in as many dimensions as the model
    has, which word2vec approaches (Levy & Goldberg, 2014, sections 3.2 and 5). From masked tokens
    alone so small a model takes several times as long to get there.

    Args:
        model: gets the embeddings, of the size that it started with.
        stream: `(tokens,)` ids of the text.
    """
    counts = scipy.sparse.csr_matrix((WORDS, WORDS))
    for apart in range(1, WINDOW + 1):
        pair = stream[:-apart], stream[apart:]
        counts += scipy.sparse.csr_matrix((np.ones(len(pair[0])), pair), shape=counts.shape)
    counts = (counts + counts.T).tocoo()
    each = np.asarray(counts.sum(axis=1)).ravel()
    told = np.log(counts.data * each.sum() / (each[counts.row] * each[counts.col]))
    table = scipy.sparse.csr_matrix((told.clip(0), (counts.row, counts.col)), shape=counts.shape)
    embeddings = TruncatedSVD(model.hidden_dim, random_state=SEED).fit_transform(table)
    embeddings -= embeddings.mean(axis=0)
    model.token_embedding.embeddings.assign(0.02 * embeddings / embeddings.std())


def sines(positions: int, width: int) -> np.ndarray:
    """`(positions, width)`: sines, then cosines, of wavelengths from 2 pi to 128 times that."""
    angles = np.arange(positions)[:, None] / 128 ** np.linspace(0, 1, width // 2)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype("float32")


def gemma_tokenizer(texts: list[str]) -> keras_hub.models.GemmaTokenizer:
    """A SentencePiece tokenizer with Gemma's special tokens."""
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=proto,
        vocab_size=WORDS,
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
        texts, vocab_size=WORDS, special_tokens=special, show_progress=False
    )
    vocabulary = trainer.get_vocab()
    merges = json.loads(trainer.to_str())["model"]["merges"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    return keras_hub.models.RobertaTokenizer(vocabulary=vocabulary, merges=merges)
