import numpy as np
from sklearn.linear_model import LogisticRegression

from embedder_helpers.head import Head

GENERATOR = np.random.default_rng(0)


def test_a_head_answers_as_scikit_learns_regression_of_the_same_weights():
    classes = np.array(["a", "b", "c"])
    embeddings, labels = GENERATOR.normal(size=(60, 5)), classes[np.arange(60) % 3]
    peer = LogisticRegression().fit(embeddings, labels)
    head = Head(peer.coef_.T, peer.intercept_, classes)
    np.testing.assert_array_equal(head.predict(embeddings), peer.predict(embeddings))
    np.testing.assert_allclose(head.probabilities(embeddings), peer.predict_proba(embeddings))
