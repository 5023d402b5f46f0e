"""Ready encoders: equal to what their own library computes, and used as any embedder is."""

import importlib.util
import json
import shutil

import keras
import keras_hub
import numpy as np
import pytest
from made_encoder import install, letter_counts, write_model

from embedder_helpers.builtin import BUILTIN_FOLDER
from embedder_helpers.config import Experiment
from embedder_helpers.errors import InputError
from embedder_helpers.models.architectures import build_embedder
from embedder_helpers.models.embedder import Head
from embedder_helpers.models.encoders import _pooling_options
from embedder_helpers.models.presets import find_preset, find_presets

TEXTS = [
    "If it had rained, we would have stayed.",
    "Rain!",
    "",
    "The sun shone on all of them. " * 9,
]
CONFIG = {"model_type": "bert", "num_hidden_layers": 6, "hidden_size": 384}


def encoder(preset="tiny_roberta", **settings):
    return build_embedder(Experiment(kind="encoder_only", encoder_preset=str(preset), **settings))


def encode(embedder, texts=TEXTS):
    return embedder.encode(texts, allow_empty=True)


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """The stand-in's module, importable as sentence_transformers."""
    install(monkeypatch, tmp_path / "packages")
    import sentence_transformers

    return sentence_transformers


# === keras-hub ===


def test_a_backbone_of_keras_hub_is_pooled_by_the_mean_over_its_real_tokens():
    folder = str(BUILTIN_FOLDER / "tiny_roberta")
    models = keras_hub.models
    preprocessor = models.RobertaTextClassifierPreprocessor.from_preset(folder, sequence_length=32)
    inputs = preprocessor(TEXTS)
    states = models.RobertaBackbone.from_preset(folder).predict(inputs, verbose=0)
    mask = np.asarray(inputs["padding_mask"])[:, :, None]
    expected = (states * mask).sum(1) / mask.sum(1)
    assert mask[3].all() and not mask[0].all()  # one text is truncated, others are padded
    np.testing.assert_allclose(encode(encoder(max_tokens=32)), expected, atol=1e-5)


def skip_without(name):
    """Skip a test that needs a class of a later keras-hub."""
    if not hasattr(keras_hub.models, name):
        pytest.skip(f"this keras-hub has no {name}")


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    """A tiny BERT with a task that pools its first token, as sentence embedders may."""
    skip_without("BertTextEmbedder")
    folder = tmp_path_factory.mktemp("bert") / "preset"
    words = "if it had rained we would have stayed rain sun shone on all of them the . , !".split()
    tokenizer = keras_hub.models.BertTokenizer(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words], lowercase=True
    )
    keras.utils.set_random_seed(1)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=tokenizer.vocabulary_size(), num_layers=2, num_heads=2, hidden_dim=16,
        intermediate_dim=32, max_sequence_length=24,
    )  # fmt: skip
    preprocessor = keras_hub.models.BertTextEmbedderPreprocessor(tokenizer, sequence_length=24)
    task = keras_hub.models.BertTextEmbedder(backbone, preprocessor, pooling_mode="cls")
    task.save_to_preset(str(folder))
    return folder


def test_an_encoder_that_keras_hub_has_a_task_for_is_pooled_as_its_preset_says(bert_folder):
    task = keras_hub.models.TextEmbedder.from_preset(str(bert_folder))
    expected = task.predict(TEXTS, verbose=0)
    embedder = encoder(bert_folder)
    assert embedder.max_tokens == 24  # the preset's positions, which are fewer than 256
    np.testing.assert_allclose(encode(embedder), expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(encode(embedder), axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("task", "options"),
    [
        (None, {}),
        ("{", {}),
        ("[]", {}),
        ('{"class_name": 1}', {}),
        ('{"class_name": "BertTextClassifier", "config": {"pooling_mode": "cls"}}', {}),
        (
            '{"class_name": "BertTextEmbedder", "config": {"normalize": false}}',
            {"normalize": False},
        ),
    ],
)
def test_only_what_a_task_for_embeddings_says_changes_the_pooling(
    bert_folder, tmp_path, task, options
):
    folder = shutil.copytree(bert_folder, tmp_path / "preset")
    (folder / "task.json").unlink()
    if task is not None:
        (folder / "task.json").write_text(task)
    assert _pooling_options(find_preset("encoder_preset", str(folder))) == options


def test_an_embedding_gemma_has_the_embedding_of_its_own_last_layers(tmp_path):
    skip_without("Gemma3TextEmbedderPreprocessor")
    models = keras_hub.models
    vocabulary = BUILTIN_FOLDER / "tiny_gemma" / "assets" / "tokenizer" / "vocabulary.spm"
    tokenizer = models.Gemma3Tokenizer(str(vocabulary), has_vision_tokens=False)
    keras.utils.set_random_seed(2)
    backbone = models.Gemma3Backbone(
        vocabulary_size=4096, image_size=16, num_layers=2, num_query_heads=2,
        num_key_value_heads=1, hidden_dim=16, intermediate_dim=32, head_dim=8,
        is_embedding_model=True, embedding_dim=12, pooling_intermediate_dim=20,
        use_bidirectional_attention=True,
    )  # fmt: skip
    backbone.save_to_preset(str(tmp_path / "gemma"))
    tokenizer.save_to_preset(str(tmp_path / "gemma"))
    preprocessor = models.Gemma3TextEmbedderPreprocessor(tokenizer, sequence_length=24)
    expected = backbone.predict(preprocessor(TEXTS), verbose=0)["pooled_output"]
    embedder = encoder(tmp_path / "gemma", max_tokens=24)
    assert embedder.width == 12
    np.testing.assert_allclose(encode(embedder), expected, atol=1e-5)


def test_the_weights_are_counted_and_the_license_of_the_built_in_models_is_known():
    embedder = encoder()
    folder = str(BUILTIN_FOLDER / "tiny_roberta")
    backbone = keras_hub.models.Backbone.from_preset(folder)
    assert embedder.count_parameters() == sum(np.size(weight) for weight in backbone.weights)
    assert embedder.license == "apache-2.0"


def test_an_encoder_of_another_family_is_an_error(tmp_path):
    config = {"class_name": "ViTBackbone", "config": {"num_layers": 1}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="is a ViTBackbone, but a text encoder of keras-hub is"):
        find_preset("encoder_preset", str(tmp_path))


# === sentence-transformers ===


def test_a_model_of_sentence_transformers_is_used_as_it_is(stand_in, tmp_path):
    embedder = encoder(write_model(tmp_path / "letters", CONFIG), max_tokens=10)
    np.testing.assert_array_equal(encode(embedder), letter_counts(TEXTS, 10))
    assert stand_in.LOADED == [(str(tmp_path / "letters"), None)]
    assert (embedder.width, embedder.count_parameters()) == (26, 26 * 26)
    assert embedder.license == "mit" and embedder.devices() == ["cpu, float32"]


def test_the_models_own_length_holds_if_it_is_lower(stand_in, tmp_path):
    embedder = encoder(write_model(tmp_path / "letters", CONFIG), max_tokens=256)
    assert embedder.max_tokens == 12
    assert embedder.tokenize(TEXTS).truncated.tolist() == [False, False, False, True]
    np.testing.assert_array_equal(encode(embedder), letter_counts(TEXTS, 12))


def test_texts_get_the_models_own_prompt_for_classification(stand_in, tmp_path, monkeypatch):
    folder, load = write_model(tmp_path / "letters", CONFIG), stand_in.SentenceTransformer.__init__

    def with_prompt(self, *arguments, **options):
        load(self, *arguments, **options)
        self.prompts = {"query": "no", "Classification": "task: classification | "}

    monkeypatch.setattr(stand_in.SentenceTransformer, "__init__", with_prompt)
    embedder = encoder(folder, max_tokens=9)
    expected = letter_counts(TEXTS, 9, "task: classification | ")
    np.testing.assert_array_equal(encode(embedder), expected)
    assert embedder.tokenize(TEXTS).truncated.tolist() == [True, False, False, True]


def test_a_static_model_reads_texts_of_any_length(stand_in, tmp_path, monkeypatch):
    model = stand_in.SentenceTransformer

    class Static(model):
        tokenizer = object()  # not to be called
        max_seq_length = property(lambda self: np.inf, lambda self, value: None)

        def encode(self, texts, **options):
            return letter_counts(texts, 10_000)

    monkeypatch.setattr(stand_in, "SentenceTransformer", Static)
    embedder = encoder(write_model(tmp_path / "letters"), max_tokens=4)
    assert not embedder.tokenize(TEXTS).truncated.any()
    np.testing.assert_array_equal(encode(embedder), letter_counts(TEXTS, 10_000))
    preset = embedder.presets["encoder_preset"]
    assert (preset.num_layers, preset.width) == (0, 0)


def test_a_model_without_the_library_is_an_error_with_the_command_to_install_it(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    experiment = Experiment(
        kind="encoder_only", encoder_preset=str(write_model(tmp_path / "letters", CONFIG))
    )
    with pytest.raises(InputError, match='not installed: pip install "sentence-transformers>=5"'):
        find_presets(experiment)


def test_a_model_that_cannot_be_loaded_is_an_error_with_the_reason(stand_in, tmp_path, monkeypatch):
    def fail(self, *arguments, **options):
        raise OSError("no weights")

    monkeypatch.setattr(stand_in.SentenceTransformer, "__init__", fail)
    with pytest.raises(InputError, match="cannot be loaded by sentence-transformers .*no weights"):
        encoder(write_model(tmp_path / "letters", CONFIG))


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        (
            '[{"type": "sentence_transformers.models.Pooling"}, {"type": "evil.Thing"}]',
            "evil.Thing",
        ),
        ('[{"type": "sentence_transformers"}]', "code of the model's own"),
        ('[{"path": "1_Pooling"}]', "is damaged"),
        ("[1]", "is damaged"),
        ("{", "is damaged"),
    ],
)
def test_a_folder_that_names_code_of_its_own_is_not_loaded(
    stand_in, tmp_path, monkeypatch, modules, words
):
    folder = write_model(tmp_path / "letters", CONFIG)
    (folder / "modules.json").write_text(modules, encoding="utf-8")
    monkeypatch.delattr(stand_in.SentenceTransformer, "__init__")
    with pytest.raises(InputError, match=words):
        encoder(folder)


@pytest.mark.parametrize("fault", [MemoryError(), RuntimeError("CUDA out of memory")])
def test_a_lack_of_memory_is_an_error_that_says_what_to_do(stand_in, tmp_path, monkeypatch, fault):
    embedder = encoder(write_model(tmp_path / "letters", CONFIG))

    def fail(*arguments, **options):
        raise fault

    monkeypatch.setattr(embedder.encoder, "encode", fail, raising=False)
    with pytest.raises(InputError, match="lower max_tokens.*TF_FORCE_GPU_ALLOW_GROWTH"):
        embedder.encode(["a"])


def test_embeddings_that_are_not_finite_are_an_error(stand_in, tmp_path, monkeypatch):
    embedder = encoder(write_model(tmp_path / "letters", CONFIG))
    monkeypatch.setattr(
        embedder.encoder, "encode", lambda texts, **options: np.full((len(texts), 26), np.nan)
    )
    with pytest.raises(InputError, match="embeddings of 2 of 2 texts are not finite"):
        embedder.encode(["a", "b"])


@pytest.mark.parametrize(
    "readme", [None, "no front matter", "---\nlicense: [a, b]\n---\n", "---\n{"]
)
def test_a_license_that_the_card_does_not_name_is_unknown(stand_in, tmp_path, readme):
    folder = write_model(tmp_path / "letters", CONFIG, license=None)
    if readme:
        (folder / "README.md").write_text(readme)
    assert encoder(folder).license is None


# === Names ===


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hugging Face with the repositories of a dictionary: their files by name."""
    import huggingface_hub
    from huggingface_hub import errors

    def serve(**repositories):
        def download(name, file, revision=None):
            files = repositories[name.replace("/", "__").replace("-", "_")]
            if file not in files:
                raise errors.EntryNotFoundError.__new__(errors.EntryNotFoundError)
            path = tmp_path / "hub" / name / "snapshots" / "0a1b2c" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files[file])
            return str(path)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)

    return serve


@pytest.mark.parametrize(
    "name",
    ["mini-LM", "sentence-transformers/mini-LM", "hf://sentence-transformers/mini-LM"],
)
def test_a_name_is_found_as_in_sentence_transformers_and_loaded_at_its_revision(
    stand_in, hub, name
):
    card = "---\nlicense: apache-2.0\n---\n"
    hub(sentence_transformers__mini_LM={"config.json": json.dumps(CONFIG), "README.md": card})
    preset = find_preset("encoder_preset", name)
    assert preset.fingerprint == "hf://sentence-transformers/mini-LM@0a1b2c"
    assert (preset.num_layers, preset.width, preset.library) == (6, 384, "sentence-transformers")
    assert encoder(name).license == "apache-2.0"
    assert stand_in.LOADED == [("sentence-transformers/mini-LM", "0a1b2c")]


def test_a_static_model_is_found_by_its_list_of_modules(stand_in, hub):
    hub(me__static={"modules.json": "[]"})
    preset = find_preset("encoder_preset", "me/static")
    assert (preset.fingerprint, preset.num_layers) == ("hf://me/static@0a1b2c", 0)


def test_a_repository_without_a_model_is_an_error(stand_in, hub):
    hub(me__data={"README.md": ""})
    with pytest.raises(InputError, match="encoder_preset: 'hf://me/data' is not a model in"):
        find_preset("encoder_preset", "me/data")


def test_a_preset_of_keras_hubs_own_is_fetched_from_kaggle(monkeypatch, bert_folder):
    handles = []

    def fetch(role, name, handle, file="config.json"):
        handles.append(handle)
        return bert_folder / file

    monkeypatch.setattr("embedder_helpers.models.presets.kaggle_file", fetch)
    preset = find_preset("encoder_preset", "bert_tiny_en_uncased")
    assert handles[0].startswith("kaggle://keras/bert/keras/bert_tiny_en_uncased")
    assert (preset.library, preset.num_layers, preset.positions) == ("keras-hub", 2, 24)


@pytest.mark.parametrize("name", ["./not/there", "a\\b", "/not/there", "x/y/z"])
def test_a_folder_that_is_missing_is_an_error(name):
    with pytest.raises(InputError, match="encoder_preset: there is no folder"):
        find_preset("encoder_preset", name)


def test_the_fingerprint_of_a_folder_follows_its_weights(stand_in, tmp_path):
    folder = write_model(tmp_path / "letters", CONFIG)
    (folder / "weights.bin").write_bytes(b"one")
    before = find_preset("encoder_preset", str(folder)).fingerprint
    (folder / "weights.bin").write_bytes(b"other")
    assert find_preset("encoder_preset", str(folder)).fingerprint != before


# === As any embedder ===


def test_an_encoder_with_a_head_classifies_and_without_one_says_how_to_get_it():
    embedder = encoder()
    with pytest.raises(InputError, match="gemma_only and encoder_only, probe: true"):
        embedder.predict(["a"])
    kernel = np.random.default_rng(0).normal(size=(embedder.width, 2))
    embedder.head = Head(kernel, np.zeros(2), np.array(["no", "yes"]))
    table = embedder.predict(["It rained.", "The sun shone."])
    best = (embedder.encode(["It rained.", "The sun shone."]) @ kernel).argmax(-1)
    assert table["label"].tolist() == [["no", "yes"][i] for i in best]


def test_an_encoder_is_not_saved(tmp_path):
    with pytest.raises(InputError, match="not saved, since it is 'tiny_roberta' as it was"):
        encoder().save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
