"""Linear classifiers of texts: what they learn, what they say of themselves, and what is kept of them."""

from pathlib import Path

import numpy as np
import pytest
from experiments import classifiers
from experiments.classifiers import Linear, accuracy, bag_of_words, embeddings, fit, fit_pairs, fitted

GOOD = ["a wonderful film", "wonderful and warm", "what a warm film"]
BAD = ["a dreadful film", "dreadful and dull", "what a dull film"]


@pytest.fixture(autouse=True)
def _no_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifiers, "_encoder", lambda: None)
    monkeypatch.setattr(classifiers, "_KNOWN", {})


@pytest.mark.parametrize("features", [bag_of_words, embeddings], ids=["words", "embeddings"])
def test_words_that_tell_two_kinds_of_texts_apart_are_learned(features: classifiers.Features) -> None:
    model = fit(features([*GOOD, *BAD]), [1, 1, 1, 0, 0, 0], strength=100.0)
    good, bad, neither = model(features(["wonderful", "dull", "the sea"]))
    assert good > 0.5 and bad < -0.5 and abs(neither) < min(good, -bad)


def test_labels_weigh_the_same_however_many_there_are() -> None:
    texts = [*GOOD, *BAD * 20]
    model = fit(bag_of_words(texts), [1] * 3 + [0] * 60, strength=100.0)
    assert model(bag_of_words(["wonderful"]))[0] > 0 > model(bag_of_words(["dull"]))[0]


def test_pairs_are_put_in_order() -> None:
    generator = np.random.default_rng(0)
    worse = generator.normal(size=(200, 4)).astype(np.float32)
    better = worse + np.array([1.0, 0.0, 0.0, 0.0], dtype=np.float32)
    model = fit_pairs(better, worse)
    assert model.bias == 0 and np.argmax(model.weight) == 0 and model.weight[0] > 5 * np.abs(model.weight[1:]).max()


def test_accuracy_is_that_of_each_label() -> None:
    found = accuracy([2.0, -1.0, -1.0, -3.0], [1, 1, 0, 0])
    assert found == {
        "balanced accuracy": 0.75,
        "found of label 1": 0.5,
        "found of label 0": 1.0,
        "AUROC": 0.875,
        "texts": 4,
    }


def test_a_classifier_is_fitted_once_and_saved(tmp_path: Path) -> None:
    """Without the encoder under another name, so that no study takes it for the real one."""
    model = Linear(np.array([1.0, -2.0], dtype=np.float32), 0.5)
    path = tmp_path / "a" / "judge.safetensors"
    assert fitted(path, lambda: model).bias == 0.5
    again = fitted(path, lambda: pytest.fail("it is fitted already"))
    assert again(np.array([[1.0, 1.0], [3.0, 0.0]])) == [-0.5, 3.5]
    assert [each.name for each in path.parent.iterdir()] == ["judge-without-encoder.safetensors"]


def test_a_text_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def encoded(texts: list[str]) -> np.ndarray:
        asked.extend(texts)
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)

    monkeypatch.setattr(classifiers, "_encoded", encoded)
    monkeypatch.setattr(classifiers, "_MOST_KNOWN", 3)
    assert embeddings(["ab", "c", "ab"])[:, 0].tolist() == [2, 1, 2] and asked == ["ab", "c"]
    assert embeddings(["c", "def"])[:, 0].tolist() == [1, 3] and asked == ["ab", "c", "def"]
    assert embeddings(["c", "ghij"])[:, 0].tolist() == [1, 4] and embeddings([]).shape[0] == 0
    assert asked == ["ab", "c", "def", "ghij"] and list(classifiers._KNOWN) == ["ghij"]
