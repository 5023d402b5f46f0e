"""The embedder: what the three architectures share, `encode` first of all.

Text → `tokenize` → ids → `hidden_states` of the frozen Gemma → `prepare_inputs` → `embed`. Training
repeats only the last step, and hidden states may as well come from the cache on disk.
"""

import importlib
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pandas as pd
from keras import ops
from scipy.special import softmax

from embedder_helpers.builtin import BUILTIN_PRESETS
from embedder_helpers.config import (
    Experiment,
    make_experiment,
    resolve_cutoffs,
    settings,
)
from embedder_helpers.data.files import as_list, validate_texts
from embedder_helpers.errors import InputError, show
from embedder_helpers.models import saving
from embedder_helpers.models.batching import (
    ModelInputs,
    MultiLayerStates,
    RaggedArray,
)
from embedder_helpers.models.cascade import CheapClassifier, answer, check_cheap
from embedder_helpers.models.gemma import Gemma, HiddenStateSpec
from embedder_helpers.models.layers import NEW_LAYERS, initialize
from embedder_helpers.models.manifest import CHEAP_FOLDER
from embedder_helpers.models.presets import Preset, from_preset
from embedder_helpers.models.shapes import count_parameters
from embedder_helpers.models.text_model import forward_batches
from embedder_helpers.models.tokenization import TokenizedTexts
from embedder_helpers.utils import environment, progress
from embedder_helpers.utils.keras_state import own_keras_state

PRESET_BYTES = 4 * 2**20  # of a saved preset besides its weights: tokenizer and HDF5's own
CHUNK = 2048  # texts whose hidden states are held in memory at a time


class Head(NamedTuple):
    """A linear classifier on embeddings, left by training or by a probe.

    Protocol scores do not use it; `Embedder.predict` does.

    Attributes:
        kernel: `(width, classes)`.
        bias: `(classes,)`.
        classes: `(classes,)` labels, integers or strings.
    """

    kernel: np.ndarray
    bias: np.ndarray
    classes: np.ndarray

    def predict(self, embeddings: np.ndarray) -> np.ndarray:
        """Labels `(texts,)` of embeddings `(texts, width)`; InputError if they are not finite."""
        return self.classes[self.logits(embeddings).argmax(-1)]

    def probabilities(self, embeddings: np.ndarray) -> np.ndarray:
        """Class probabilities `(texts, classes)`, not calibrated; InputError as in `predict`."""
        return softmax(self.logits(embeddings), axis=-1)

    def logits(self, embeddings: np.ndarray) -> np.ndarray:
        """Logits `(texts, classes)` of embeddings; InputError as in `predict`."""
        logits = embeddings @ self.kernel + self.bias
        if not np.isfinite(logits).all():  # else every text would get the first label
            raise InputError(
                "the classifier's scores are not finite: its weights, or the embedder's, are "
                "damaged, so train it again"
            )
        return logits


class Embedder:
    """What the three architectures share.

    Attributes:
        experiment: settings from which it was built.
        presets: pretrained models, by the setting that names them.
        head: classifier left by training; None if there is none.
        cheap: classifier that answers before it in a cascade; None if none is attached.
        result: fields of the result file it was loaded with; None if there is none.
        license: of a ready encoder, as its model card names it; None if unknown.
        packages: names of packages that it depends on besides those of all embedders.
        gemma: the frozen Gemma; None for RoBERTa alone.
        roberta: the fine-tuned backbone; None for Gemma alone.
        specs: hidden states it reads; empty for RoBERTa alone.
        model: Keras model `{"inputs", "mask", …} -> (texts, width)` after hidden states or ids.
        width: size of an embedding.
        max_tokens: number of tokens at which texts are truncated.
        longest: number of positions of the model's longest input.
    """

    experiment: Experiment
    presets: dict[str, Preset]
    head: Head | None = None
    cheap: CheapClassifier | None = None
    result: dict[str, Any] | None = None
    license: str | None = None
    packages: tuple[str, ...] = ()
    gemma: Gemma | None = None
    roberta: Any = None
    tokenizer: Any = None
    specs: tuple[HiddenStateSpec, ...] = ()
    model: keras.Model
    width: int
    max_tokens: int
    longest: int

    def prepare(self, experiment: Experiment, presets: dict[str, Preset]) -> None:
        """Set all that an experiment determines besides the architecture and pretrained weights."""
        self.experiment, self.presets = experiment, presets
        self.head = self.cheap = self.result = None
        self.max_tokens = self.longest = experiment.max_tokens
        initialize(self.model.layers, experiment.seed)

    def tokenize(self, texts: Sequence[str]) -> TokenizedTexts:
        """Tokenize texts for each model that reads them."""
        raise NotImplementedError

    def hidden_states(
        self, tokens: TokenizedTexts, batch_size: int | None = None
    ) -> RaggedArray | MultiLayerStates | None:
        """Compute Gemma's hidden states in memory; None for RoBERTa alone."""
        if self.gemma is None:
            return None
        return self.gemma.hidden_states(tokens.gemma, self.specs, batch_size)

    def prepare_inputs(
        self, tokens: TokenizedTexts, states: RaggedArray | MultiLayerStates | None
    ) -> ModelInputs:
        """Combine tokens and hidden states into the model's inputs."""
        raise NotImplementedError

    def embed(self, inputs: ModelInputs, batch_size: int | None = None) -> np.ndarray:
        """Run the model: embeddings `(texts, width)` float32.

        Raises:
            InputError: embeddings that are not finite.
        """
        embeddings = np.empty((len(inputs), self.width), "float32")
        work = {progress.EMBEDDING: self.forward_flops(inputs.lengths)}
        with progress.progress_bar(int(inputs.lengths.sum()), "embedding", "token", work) as bar:
            for rows, length, texts in forward_batches(inputs.lengths, self.longest, batch_size):
                output = self.model.predict_on_batch(inputs.batch(rows, length, texts))
                embeddings[rows] = output[: len(rows)]
                bar.update(int(inputs.lengths[rows].sum()))
        return check_finite(embeddings)

    def forward_flops(self, lengths: np.ndarray) -> float:
        """Approximate operations of one forward pass of the model over texts of these lengths."""
        raise NotImplementedError

    def count_parameters(self) -> int | None:
        """Number of weights that a text passes; None if the shape of a preset is unknown."""
        cutoffs = (spec.cutoff for spec in self.specs)
        return count_parameters(self.experiment, max(cutoffs, default=None))

    def devices(self) -> list[str]:
        """The devices that it computes on, and in which precision."""
        gemma = [f"Gemma in {self.gemma.dtype}"] if self.gemma else []
        return [*environment.devices(), *gemma, f"trained in {environment.training_dtype()}"]

    def encode(
        self,
        texts: str | Sequence[str],
        batch_size: int | None = None,
        show_progress_bar: bool = True,
        normalize_embeddings: bool = False,
        convert_to_numpy: bool = True,
        *,
        allow_empty: bool = False,
    ) -> Any:
        """Encode texts as embeddings.

        The arguments mean the same as in sentence-transformers' `encode`, except the last.

        Args:
            texts: a list of texts, or a single text.
            batch_size: maximum number of texts per batch; None: as many as fit a budget of some
                thousand tokens, which is fastest.
            show_progress_bar: show a bar if it takes longer than two seconds.
            normalize_embeddings: scale to unit length, so that a dot product is the cosine.
            convert_to_numpy: return a NumPy array; False: a tensor of Keras's backend.
            allow_empty: accept empty texts, as some of MTEB's are.

        Returns:
            `(texts, width)` float32 in the order of the texts; `(width,)` for a single text.

        Raises:
            InputError: a text that is None, NaN, empty or not a string (names the rows); no list
                but a table, for example; a `batch_size` that is not a positive integer;
                embeddings that are not finite.
        """
        is_single = isinstance(texts, str)
        texts = [texts] if is_single else as_list(texts)
        validate_texts(texts, "encode", allow_empty=allow_empty)
        batch_size = _validate_batch_size(batch_size)
        with progress.show_bars(show_progress_bar):
            embeddings = self._encode(texts, batch_size)
        if normalize_embeddings:
            lengths = np.linalg.norm(embeddings, axis=-1, keepdims=True)
            embeddings /= np.maximum(lengths, np.finfo("float32").tiny)
        embeddings = embeddings[0] if is_single else embeddings
        return embeddings if convert_to_numpy else ops.convert_to_tensor(embeddings)

    @own_keras_state()
    def _encode(self, texts: Sequence[str], batch_size: int | None) -> np.ndarray:
        embeddings = np.empty((len(texts), self.width), "float32")
        for start in range(0, len(texts), CHUNK):
            tokens = self.tokenize(texts[start : start + CHUNK])
            inputs = self.prepare_inputs(tokens, self.hidden_states(tokens, batch_size))
            embeddings[start : start + CHUNK] = self.embed(inputs, batch_size)
        return embeddings

    def attach(self, cheap: "Embedder", temperature: float = 1.0) -> None:
        """Attach a cheap classifier, which `predict` asks first in a cascade; `save` keeps it.

        Args:
            cheap: RoBERTa alone with a head of the same labels; it replaces one attached before.
            temperature: by which its logits are divided, so that its probabilities are calibrated:
                what `results.cascade.fit_temperature` finds on validation texts.

        Raises:
            InputError: one of the two is no classifier; Gemma is in the cheap one, or not in this
                one; other labels; a temperature that is no positive number.
        """
        self.cheap = check_cheap(self, cheap, temperature)

    def predict(self, texts: str | Sequence[str], cascade: float | None = None) -> pd.DataFrame:
        """Classify texts with the head, or in a cascade.

        Args:
            texts: a list of texts, or a single text.
            cascade: probability, from 0 to 1, at which the attached cheap classifier is sure of its
                label: texts of which it is answers it alone, and only the others pass through
                Gemma. None: the head classifies all.

        Returns:
            A row per text: `text`, `label`, and `p(…)`, the probability of each class, which is
            not calibrated. In a cascade also `answered_by`, the kind of the embedder that answered,
            and `confidence`, the cheap one's calibrated probability of its own label; where it
            answered, the probabilities are calibrated.

        Raises:
            InputError: there is no head; an invalid text, as in `encode`; in a cascade, no cheap
                classifier is attached, or the probability is none.
        """
        if self.head is None:
            raise InputError(
                "this embedder has no classifier: train one (epochs of 1 or more; for gemma_only "
                "and encoder_only, probe: true) and save it again"
            )
        texts = [texts] if isinstance(texts, str) else as_list(texts)
        more: dict[str, np.ndarray] = {}
        if cascade is None:
            probabilities = self.head.probabilities(self.encode(texts)).astype("float64")
        else:
            more = answer(self, self.cheap, texts, cascade)
            probabilities = more.pop("probabilities")
        columns = {"text": texts, "label": self.head.classes[probabilities.argmax(-1)]}
        columns |= {f"p({label})": probabilities[:, i] for i, label in enumerate(self.head.classes)}
        return pd.DataFrame(columns | more)

    def __copy__(self) -> "Embedder":  # a shallow one, which shares the models
        copied = object.__new__(type(self))
        vars(copied).update(vars(self))
        return copied

    def __getstate__(self) -> dict[str, Any]:
        raise InputError(
            "an embedder cannot be pickled or copied deeply: save it with save(folder), and load "
            "it with load_embedder(folder)"
        )

    @own_keras_state()
    def save(
        self,
        folder: str | Path,
        with_gemma: bool = False,
        result: dict[str, Any] | None = None,
    ) -> Path:
        """Save to a folder that `load_embedder` reads; a saved embedder there is replaced.

        Costs the bytes of RoBERTa's weights in float32, and with Gemma those of its kept layers
        and embedding table; with an attached cheap classifier those of its RoBERTa besides.

        Args:
            folder: target folder.
            with_gemma: include the truncated Gemma, whose license then applies; one that the
                embedder was loaded with is included in any case.
            result: fields of the result file to save beside it; None: those it was loaded with.

        Returns:
            The folder's absolute path.

        Raises:
            InputError: the folder cannot be written, or holds something else; the disk is full.
        """

        def write(part: Path) -> None:
            self._write(part, with_gemma, result)

        num_bytes = self._saved_bytes()
        if self.cheap:
            num_bytes += self.cheap.embedder._saved_bytes()
        return saving.save_folder(folder, write, num_bytes)

    def _saved_bytes(self) -> int:
        """Bytes that the folder takes at least, without Gemma and a cheap classifier."""
        return 4 * self.roberta.count_params() + PRESET_BYTES if self.roberta else 0

    def _write(self, part: Path, with_gemma: bool, result: dict[str, Any] | None) -> None:
        """Write the content of a saved embedder's folder into an empty one."""
        if self.roberta:
            _save_preset(part / "roberta", self.roberta, self.tokenizer)
        if self.gemma and (with_gemma or self._was_loaded_with_gemma()):
            self._save_gemma(part / "gemma")
        if self.cheap:
            (part / CHEAP_FOLDER).mkdir()
            self.cheap.embedder._write(part / CHEAP_FOLDER, with_gemma=False, result=None)
        saving.write_arrays(part, self._arrays())
        experiment = self._portable_experiment().as_dict()
        saving.write_manifest(
            part,
            {name: experiment[name] for name, setting in settings().items() if setting.saved},
            self.presets,
            classes=self.head.classes.tolist() if self.head else None,
            width=self.width,
            result=result or self.result,
            cheap_temperature=self.cheap.temperature if self.cheap else None,
        )

    def push_to_hub(self, address: str, **options: Any) -> str:
        """Upload to Hugging Face or Kaggle with a model card; see `sharing.publish.push_to_hub`.

        Args:
            address: `hf:owner/model` or `kaggle:owner/model`.
            options: `results`, `llm`, `public` and `with_gemma`, as documented there.

        Returns:
            The address of the model's page.

        Raises:
            InputError: no account, a refusal by the hub, or no network.
        """
        # Found by name when it is called, as the public API finds its modules: a method is where
        # users look for this, but `sharing` imports `models`, not the other way round.
        publish = importlib.import_module("embedder_helpers.sharing.publish")
        return publish.push_to_hub(self, address, **options)

    def array_shapes(self, num_classes: int) -> dict[str, tuple[int, ...]]:
        """The shape of each array that `load_weights` needs, by name.

        Args:
            num_classes: number of the head's labels; 0 without a head.
        """
        shapes = {item.path: tuple(item.shape) for item in self._joint_variables()}
        if num_classes:
            shapes |= {"head/kernel": (self.width, num_classes), "head/bias": (num_classes,)}
        return shapes

    def load_weights(self, arrays: Mapping[str, np.ndarray], classes: list[Any] | None) -> None:
        """Set the joint layers' weights and the head.

        Args:
            arrays: arrays of the shapes of `array_shapes`.
            classes: labels of the head; None without a head.
        """
        for variable in self._joint_variables():
            variable.assign(arrays[variable.path])
        if classes is not None:
            self.head = Head(arrays["head/kernel"], arrays["head/bias"], np.array(classes))

    def _joint_variables(self) -> list[Any]:
        """The variables of the layers between Gemma and RoBERTa."""
        variables = self.model.variables
        return [item for item in variables if item.path.split("/")[0].startswith(NEW_LAYERS)]

    def _arrays(self) -> dict[str, np.ndarray]:
        arrays = {item.path: ops.convert_to_numpy(item) for item in self._joint_variables()}
        if self.head:
            arrays |= {"head/kernel": self.head.kernel, "head/bias": self.head.bias}
        return arrays

    def _portable_experiment(self) -> Experiment:
        """The Experiment as it holds for a truncated Gemma and in another folder."""
        values = {
            **self.experiment.as_dict(),
            "projection_start": self.experiment.projection_init(),
        }
        for role, preset in self.presets.items():
            is_local = preset.name not in BUILTIN_PRESETS and Path(preset.name).is_dir()
            values[role] = str(Path(preset.name).resolve()) if is_local else preset.name
        if self.gemma:
            num_layers = self.presets["llm_preset"].num_layers
            cutoffs = resolve_cutoffs(self.experiment.llm_layers, num_layers)
            values["llm_layers"] = cutoffs if len(cutoffs) > 1 else cutoffs[0]
            if self.experiment.final_norm == "last" and cutoffs[-1] < num_layers:
                values["final_norm"] = "none"
        return make_experiment(values)

    def _was_loaded_with_gemma(self) -> bool:
        return (Path(self.gemma.preset.handle).parent / saving.MANIFEST_FILE).is_file()

    def _save_gemma(self, folder: Path) -> None:
        """Save Gemma up to the largest cutoff, in float32."""
        import keras_hub

        backbone = from_preset(
            keras_hub.models.Backbone,
            "llm_preset",
            self.gemma.preset,
            num_layers=max(spec.cutoff for spec in self.specs),
            dtype="float32",
        )
        _save_preset(folder, backbone, self.gemma.tokenizer)


def check_finite(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings `(texts, width)` as they are; InputError if any of them is not finite."""
    if bad := np.count_nonzero(~np.isfinite(embeddings).all(-1)):
        raise InputError(
            f"the embeddings of {bad} of {len(embeddings)} texts are not finite: the "
            "embedder's weights are damaged, so train or copy it again"
        )
    return embeddings


def _save_preset(folder: Path, backbone: Any, tokenizer: Any) -> None:
    backbone.save_to_preset(str(folder))
    tokenizer.save_to_preset(str(folder))


def _validate_batch_size(batch_size: Any) -> int | None:
    """A positive integer, NumPy's included, or None."""
    if batch_size is None:
        return None
    try:
        if not isinstance(batch_size, bool) and operator.index(batch_size) > 0:
            return operator.index(batch_size)
    except TypeError:
        pass
    raise InputError(f"batch_size is {show(batch_size)}, but must be a positive integer")
