"""Ready text encoders, scored as they are: of sentence-transformers, or of keras-hub.

They are embedders too, so that they pass the same protocol and the same probe as all others. They
are frozen, and read neither hidden states nor a seed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops

from embedder_helpers.builtin import BUILTIN_PRESETS
from embedder_helpers.config import Experiment
from embedder_helpers.errors import InputError, show, show_list
from embedder_helpers.models.batching import RaggedArray
from embedder_helpers.models.embedder import Embedder, check_finite
from embedder_helpers.models.layers import pool
from embedder_helpers.models.presets import (
    KERAS_HUB,
    MODULES_FILE,
    SENTENCE_TRANSFORMERS,
    Preset,
    from_preset,
    preset_file,
)
from embedder_helpers.models.text_model import TextModel, tokens_input
from embedder_helpers.models.tokenization import TokenizedTexts, tokenize
from embedder_helpers.utils import environment, progress
from embedder_helpers.utils.hub import error_kind
from embedder_helpers.utils.json_files import read_json

ROLE = "encoder_preset"
PROMPT = "Classification"  # MTEB's name of the prompt that a model may have for such tasks
BATCH = 32  # texts, sentence-transformers' default
SLICE = 256  # texts between two steps of the progress bar
LETTERS_PER_TOKEN = 4  # for progress bars


def build_encoder(experiment: Experiment, presets: dict[str, Preset]) -> "ReadyEncoder":
    """Load the encoder of an Experiment.

    Raises:
        InputError: it cannot be loaded.
    """
    kinds = {KERAS_HUB: KerasEncoder, SENTENCE_TRANSFORMERS: SentenceTransformersEncoder}
    return kinds[presets[ROLE].library](experiment, presets)


class ReadyEncoder(Embedder):
    """What both kinds of encoder share: nothing is initialized, trained or saved."""

    def prepare(self, experiment: Experiment, presets: dict[str, Preset]) -> None:
        """Set what an experiment determines; all weights are pretrained, and stay."""
        self.experiment, self.presets = experiment, presets
        self.head = self.result = None
        positions = presets[ROLE].positions or experiment.max_tokens
        self.max_tokens = self.longest = min(experiment.max_tokens, positions)

    def save(self, folder: str | Path, *args: Any, **kwargs: Any) -> Path:
        """Refuse.

        Raises:
            InputError: always; names the encoder, which is kept where it comes from.
        """
        raise InputError(
            f"an encoder_only embedder is not saved, since it is {show(self.presets[ROLE].name)} "
            "as it was: load it from there again"
        )


class KerasEncoder(ReadyEncoder):
    """Text → token ids → a backbone of keras-hub → its own pooling, or the mean over the tokens.

    A backbone for which keras-hub has a `TextEmbedder` (BERT, XLM-RoBERTa, Gemma 3) is pooled by
    it, as its preset says; EmbeddingGemma's own layers after the pooling belong to the backbone.

    Args:
        experiment: settings: length.
        presets: the encoder's, by its setting.
    """

    def __init__(self, experiment: Experiment, presets: dict[str, Preset]):
        import keras_hub

        # === Layers ===
        preset = presets[ROLE]
        self.backbone = from_preset(keras_hub.models.Backbone, ROLE, preset, dtype="float32")
        self.tokenizer = from_preset(keras_hub.models.Tokenizer, ROLE, preset)

        # === Functional Model ===
        tokens, mask = tokens_input("inputs"), tokens_input("mask")
        known = {"token_ids": tokens, "padding_mask": mask, "segment_ids": ops.zeros_like(tokens)}
        inputs = {name: known[name] for name in self.backbone.input}
        if text_embedder := _text_embedder(self.backbone, preset):
            pooled = text_embedder(inputs)
        else:
            output = self.backbone(inputs)
            states = output["sequence_output"] if isinstance(output, dict) else output
            pooled = pool(states, mask, "mean")
        self.model = TextModel({"inputs": tokens, "mask": mask}, pooled)

        # === Config ===
        self.width, self.num_layers = self.model.output.shape[-1], preset.num_layers
        self.license = "apache-2.0" if preset.name in BUILTIN_PRESETS else None
        self.prepare(experiment, presets)

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenize for the encoder, with its start and its end token."""
        ids, truncated = tokenize(self.tokenizer, texts, self.max_tokens, end=True)
        return TokenizedTexts(texts, None, ids, truncated)

    def prepare_inputs(self, tokens: TokenizedTexts, states: None = None) -> RaggedArray:
        """The token ids as they are."""
        return tokens.roberta

    def forward_flops(self, lengths: np.ndarray) -> float:
        """Operations of the backbone's layers."""
        return progress.forward_flops(lengths.sum(), self.num_layers, self.backbone.hidden_dim)

    def count_parameters(self) -> int:
        """Number of the backbone's weights."""
        return self.backbone.count_params()

    def devices(self) -> list[str]:
        """The devices that Keras computes on, and the precision."""
        return [*environment.devices(), "float32"]


def _text_embedder(backbone: Any, preset: Preset) -> Any:
    """The backbone with keras-hub's pooling for embeddings of its kind; None if it has none."""
    import keras_hub

    base = getattr(keras_hub.models, "TextEmbedder", None)  # older versions have none
    for embedder in base.__subclasses__() if base else ():
        if embedder.backbone_cls is type(backbone):
            return embedder(backbone, **_pooling_options(preset))
    return None


def _pooling_options(preset: Preset) -> dict[str, Any]:
    """How a preset's own task pools, as far as it says so.

    The file is read here, since keras-hub would build whatever class a stranger's file names.
    """
    try:
        task = read_json(preset_file(ROLE, preset, "task.json"))
        if task["class_name"].endswith("TextEmbedder"):
            names = {"pooling_mode": str, "normalize": bool}
            config = task["config"]
            return {name: kind(config[name]) for name, kind in names.items() if name in config}
    except (InputError, OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # most presets have none, or that of another task
    return {}


class SentenceTransformersEncoder(ReadyEncoder):
    """Text → a sentence-transformers model, with its own tokens, pooling and normalization.

    Where it has a prompt for classification, as EmbeddingGemma has, texts get it, as in MTEB.

    Args:
        experiment: settings: length.
        presets: the encoder's, by its setting.
    """

    packages = ("sentence-transformers", "torch", "transformers")

    def __init__(self, experiment: Experiment, presets: dict[str, Preset]):
        preset = presets[ROLE]
        self.encoder = _load_sentence_transformer(preset)
        self.prompt = (getattr(self.encoder, "prompts", None) or {}).get(PROMPT)
        self.license = _license(preset)
        self.prepare(experiment, presets)
        own = getattr(self.encoder, "max_seq_length", None)
        if own != np.inf:  # that of a static model, which reads any length
            self.max_tokens = self.longest = min(own or self.max_tokens, self.max_tokens)
            self.encoder.max_seq_length = self.max_tokens
        self.width = self._embed_texts(["a"]).shape[-1]

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Find the texts that will be truncated; the model itself tokenizes them again."""
        truncated = np.zeros(len(texts), bool)
        tokenizer = getattr(self.encoder, "tokenizer", None)
        if callable(tokenizer) and len(texts):  # that of a static model is not, nor truncates
            prompted = [(self.prompt or "") + text for text in texts]
            ids = tokenizer(prompted, truncation=False, verbose=False)["input_ids"]
            truncated = np.array([len(text) > self.max_tokens for text in ids])
        return TokenizedTexts(texts, None, None, truncated)

    def prepare_inputs(self, tokens: TokenizedTexts, states: None = None) -> TokenizedTexts:
        """The texts."""
        return tokens

    def embed(self, inputs: TokenizedTexts, batch_size: int | None = None) -> np.ndarray:
        """Encode the texts: `(texts, width)` float32.

        Raises:
            InputError: embeddings that are not finite; no memory.
        """
        texts = list(inputs.texts)
        embeddings = np.empty((len(texts), self.width), "float32")
        work = {progress.EMBEDDING: self.forward_flops(np.array([len(text) for text in texts]))}
        with progress.progress_bar(len(texts), "embedding", "text", work) as bar:
            for start in range(0, len(texts), SLICE):
                part = texts[start : start + SLICE]
                embeddings[start : start + SLICE] = self._embed_texts(part, batch_size or BATCH)
                bar.update(len(part))
        return check_finite(embeddings)

    def _embed_texts(self, texts: list[str], batch_size: int = BATCH) -> np.ndarray:
        options = {"prompt": self.prompt} if self.prompt else {}
        try:
            return self.encoder.encode(
                texts, batch_size=batch_size, show_progress_bar=False, **options
            )
        except Exception as error:
            if not environment.is_out_of_memory(error):
                raise
            raise InputError(
                f"memory ran out in encoding with {show(self.presets[ROLE].name)}: lower "
                "max_tokens, or on a GPU, of whose memory TensorFlow takes all, set the "
                "environment variable TF_FORCE_GPU_ALLOW_GROWTH=true"
            ) from None

    def forward_flops(self, lengths: np.ndarray) -> float:
        """Approximate operations of texts of so many letters."""
        preset = self.presets[ROLE]
        tokens = lengths.sum() / LETTERS_PER_TOKEN
        return progress.forward_flops(tokens, preset.num_layers, preset.width)

    def count_parameters(self) -> int:
        """Number of the model's weights."""
        return sum(weight.numel() for weight in self.encoder.parameters())

    def devices(self) -> list[str]:
        """The device that PyTorch computes on, and the precision."""
        dtype = next((str(weight.dtype) for weight in self.encoder.parameters()), "")
        return [f"{self.encoder.device}, {dtype.removeprefix('torch.')}".removesuffix(", ")]


def _load_sentence_transformer(preset: Preset) -> Any:
    """Load a model, at the revision that its fingerprint names; no code of the model's own is run.

    Raises:
        InputError: it cannot be loaded; its folder names code of its own.
    """
    from sentence_transformers import SentenceTransformer

    is_local = Path(preset.handle).is_dir()
    if is_local:
        _check_modules(Path(preset.handle))
    revision = {} if is_local else {"revision": preset.fingerprint.rpartition("@")[2]}
    try:
        name = preset.handle if is_local else _repository(preset)
        return SentenceTransformer(name, **revision)
    except Exception as error:  # the library, its hub and PyTorch have errors of their own
        reason = " ".join(str(error).split())[:200] if is_local else error_kind(error)
        version = environment.package_versions(SENTENCE_TRANSFORMERS)[SENTENCE_TRANSFORMERS]
        raise InputError(
            f"{ROLE} {show(preset.name)} cannot be loaded by sentence-transformers {version} "
            f"({reason}): use a complete model, or another one"
        ) from None


def _check_modules(folder: Path) -> None:
    """Raise InputError if a model's parts are not all of the library.

    Versions of it below 6 import what a local folder names, unasked.
    """
    file = folder / MODULES_FILE
    if not file.exists():  # a model of Hugging Face's alone
        return
    try:
        types = [str(part["type"]) for part in read_json(file)]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{file} is damaged ({error_kind(error)}): copy the model again") from None
    if own := [name for name in types if not name.startswith("sentence_transformers.")]:
        raise InputError(
            f"{file} names {show_list(own, 3)}, which is code of the model's own and is not run: "
            "use a model that has only parts of sentence-transformers"
        )


def _repository(preset: Preset) -> str:
    """A model's name at Hugging Face, `owner/name`."""
    return preset.handle.removeprefix("hf://")


def _license(preset: Preset) -> str | None:
    """The license that a model's card names; None if it names none, or cannot be read."""
    import huggingface_hub

    try:
        if Path(preset.handle).is_dir():
            card = Path(preset.handle) / "README.md"
        else:
            revision = preset.fingerprint.rpartition("@")[2]
            card = huggingface_hub.hf_hub_download(
                _repository(preset), "README.md", revision=revision
            )
        license = (huggingface_hub.metadata_load(card) or {}).get("license")
    except Exception:  # a card that is missing or damaged says nothing
        return None
    return license if isinstance(license, str) else None
