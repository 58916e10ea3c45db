import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from tunesmith.data import label_errors
from tunesmith.data.label_errors import (
    LABEL_ERRORS_SCHEMA,
    MISMATCHES_SCHEMA,
    estimate_joint,
    find_label_errors,
    score_mismatches,
    true_labels,
)
from tunesmith.errors import DataError

NAMES = ("card", "loan", "mortgage")


def planted(seed=0, n=360, rate=0.1, dimension=12):
    """Texts and vectors of three classes that can be told apart, and labels of which some are wrong: card and loan twice as often as mortgage."""
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, 3, n)
    centres = draw.normal(size=(3, dimension))
    vectors = 2 * centres[truth] + draw.normal(size=(n, dimension))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    words = [[f"{NAMES[label]}{draw.integers(8)}" if draw.random() < 0.4 else f"w{draw.integers(40)}" for _ in range(8)] for label in truth]
    texts = [f"{' '.join(found)} {number}" for number, found in enumerate(words)]
    wrong = draw.random(n) < np.array([1.2, 1.2, 0.6])[truth] * rate
    given_ = np.where(wrong, (truth + draw.integers(1, 3, n)) % 3, truth)
    return texts, [NAMES[label] for label in given_], vectors, wrong, [NAMES[label] for label in truth]


@pytest.fixture(scope="module")
def found():
    texts, labels, vectors, wrong, truth = planted()
    return find_label_errors(texts, labels, vectors), wrong, truth


def test_planted_errors_are_proposed_with_the_right_label(found):
    errors, wrong, truth = found
    rows = errors.rows.with_columns(wrong=wrong, truth=pl.Series(truth))
    assert errors.rows.schema == pl.Schema(LABEL_ERRORS_SCHEMA)
    proposed = rows.filter("is_proposed")
    assert proposed["wrong"].mean() > 0.8
    assert proposed["wrong"].sum() > 0.8 * wrong.sum()
    assert (proposed.filter("wrong")["suggested"] == proposed.filter("wrong")["truth"]).mean() > 0.9
    best = rows.sort("score", descending=True).head(int(wrong.sum()))
    assert best["wrong"].mean() > 0.8
    assert rows["score"].is_between(0, 1).all()
    assert (rows["label"] != rows["suggested"]).all()
    assert (rows["is_proposed"] == (rows["score"] >= 0.5)).all()
    assert errors.error_rate == pytest.approx(rows["score"].mean()) == pytest.approx(1 - np.trace(errors.joint))


def test_the_error_rate_is_estimated(found):
    errors, wrong, _ = found
    assert errors.error_rate == pytest.approx(wrong.mean(), abs=0.01)
    assert errors.labels == NAMES
    assert errors.joint.sum() == pytest.approx(1)
    clean = planted(1, rate=0.0)
    assert find_label_errors(*clean[:3]).error_rate < 0.05


def test_evidence_names_the_nearest_rows_and_never_the_row_itself(found):
    errors, _, _ = found
    vectors = planted()[2]
    for position, near, cosines in errors.rows.select("position", "neighbours", "similarities").head(20).iter_rows():
        assert position not in near
        assert cosines == sorted(cosines, reverse=True)
        assert cosines[0] == pytest.approx(np.sort(vectors @ vectors[position])[-2], abs=1e-5)


def test_the_order_of_the_rows_changes_nothing_but_rounding(found):
    errors, _, _ = found
    texts, labels, vectors, _, _ = planted()
    order = np.random.default_rng(5).permutation(len(texts))
    shuffled = find_label_errors([texts[at] for at in order], [labels[at] for at in order], vectors[order]).rows
    np.testing.assert_allclose(shuffled["score"].to_numpy(), errors.rows["score"].to_numpy()[order], atol=0.02)
    assert (shuffled["is_proposed"].to_numpy() != errors.rows["is_proposed"].to_numpy()[order]).sum() <= 2


def test_no_view_saw_the_label_that_it_judges():
    """A row's probabilities stay the same when its own label changes, but for what its fold's fellows learn from nothing else."""
    texts, labels, vectors, _, _ = planted(2, n=90)
    _, given_ = np.unique(labels, return_inverse=True)
    fold = np.arange(90) % 5
    changed = given_.copy()
    changed[fold == 0] = (changed[fold == 0] + 1) % 3
    everything = np.ones(90, dtype=bool)

    def regression(labels_):
        views = label_errors._Views(texts, labels_, vectors, 3, fold)
        return views._regression(vectors, everything, 0)

    np.testing.assert_array_equal(regression(given_), regression(changed))
    one = given_.copy()
    one[7] = (one[7] + 1) % 3
    votes = [label_errors._Views(texts, labels_, vectors, 3, fold)._neighbours(everything)[7] for labels_ in (given_, one)]
    np.testing.assert_allclose(*votes, atol=0.01)  # the prior alone knows


@given(st.integers(2, 5), st.integers(0, 30), st.integers(0, 99))
@settings(deadline=None)
def test_the_joint_is_a_distribution_with_the_given_labels_as_margin(n_labels, n, seed):
    draw = np.random.default_rng(seed)
    given_ = np.concatenate([np.arange(n_labels), draw.integers(0, n_labels, n)])
    joint = estimate_joint(draw.dirichlet(np.ones(n_labels), len(given_)), given_)
    assert joint.min() >= 0
    np.testing.assert_allclose(joint.sum(1), np.bincount(given_) / len(given_), atol=1e-12)


def test_the_joint_beside_an_example_counted_by_hand():
    probability = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.1, 0.9], [0.3, 0.7]])
    # Means of the own class: (0.9 + 0.8 + 0.1) / 3 = 0.6 and 0.8. Row 4 reaches neither and is not counted.
    expected = np.array([[2, 1], [0, 1]])
    scaled = expected / expected.sum(1, keepdims=True) * np.array([[3], [2]])
    np.testing.assert_allclose(estimate_joint(probability, np.array([0, 0, 0, 1, 1])), scaled / 5)


@given(st.integers(2, 5), st.integers(0, 30), st.integers(0, 99))
@settings(deadline=None)
def test_what_a_row_belongs_to_is_a_distribution_and_the_text_alone_tells_where_labels_are_never_wrong(n_labels, n, seed):
    draw = np.random.default_rng(seed)
    given_ = np.concatenate([np.arange(n_labels), draw.integers(0, n_labels, n)])
    probability = draw.dirichlet(np.ones(n_labels), len(given_))
    belongs = true_labels(probability, given_, estimate_joint(probability, given_))
    assert belongs.min() >= 0
    np.testing.assert_allclose(belongs.sum(1), 1)
    alike = np.ones((n_labels, n_labels)) / n_labels**2  # a label says nothing
    np.testing.assert_allclose(true_labels(probability, given_, alike), probability)
    never = np.diag(np.ones(n_labels)) / n_labels
    assert true_labels(probability, given_, never)[np.arange(len(given_)), given_].min() >= probability[np.arange(len(given_)), given_].min()


def test_bayes_rule_beside_an_example_counted_by_hand():
    joint = np.array([[0.36, 0.20], [0.04, 0.40]])  # of the first class a tenth is labelled as the second, of the second a third as the first
    belongs = true_labels(np.array([[0.5, 0.5], [0.5, 0.5]]), np.array([0, 1]), joint)
    np.testing.assert_allclose(belongs[0], np.array([0.9, 1 / 3]) / (0.9 + 1 / 3))
    np.testing.assert_allclose(belongs[1], np.array([0.1, 2 / 3]) / (0.1 + 2 / 3))


@given(st.integers(2, 5), st.integers(1, 30), st.integers(0, 99))
@settings(deadline=None)
def test_the_gradient_of_the_likelihood_beside_differences(n_labels, n, seed):
    draw = np.random.default_rng(seed)
    said, channel = np.log(draw.dirichlet(np.ones(n_labels), n)), draw.uniform(0.01, 1, (n, n_labels))
    at = np.append(draw.uniform(0.5, 2), draw.normal(size=n_labels))
    gradient = label_errors._unlikelihood(at, said, channel)[1]
    for number, step in enumerate(1e-5 * np.eye(len(at))):
        above, below = (label_errors._unlikelihood(at + sign * step, said, channel)[0] for sign in (1, -1))
        assert gradient[number] == pytest.approx((above - below) / 2e-5, rel=1e-3, abs=1e-3)


def unsure(seed, n=4000):
    """Right probabilities of three classes, what views that are too unsure and lean to the first make of them, and labels given through a known joint."""
    draw = np.random.default_rng(seed)
    right = draw.dirichlet(np.full(3, 0.25), n)
    truth = (right.cumsum(1) > draw.random((n, 1))).argmax(1)
    labelled_so = np.array([[0.94, 0.12, 0.0], [0.06, 0.88, 0.0], [0.0, 0.0, 1.0]])  # column: true class
    given_ = (labelled_so[:, truth].cumsum(0) > draw.random(n)).argmax(0)
    said = np.maximum(right, 1e-4) ** 0.6 * np.array([2.0, 1.0, 1.0])
    joint = np.zeros((3, 3))
    np.add.at(joint, (given_, truth), 1 / n)
    return said / said.sum(1, keepdims=True), given_, truth, joint


@pytest.mark.parametrize("seed", range(3))
def test_the_joint_is_found_though_the_views_are_unsure_and_lean_to_a_class(seed):
    said, given_, truth, joint = unsure(seed)
    belongs, found = label_errors._weighed(said, given_)
    np.testing.assert_allclose(found, joint, atol=0.012)
    assert np.abs(estimate_joint(said, given_) - joint).max() > 0.02  # counting confident rows alone does not
    wrong = given_ != truth
    score = 1 - belongs[np.arange(len(given_)), given_]
    assert score.mean() == pytest.approx(wrong.mean(), abs=0.012)
    proposed = score >= 0.5
    assert wrong[proposed].mean() == pytest.approx(score[proposed].mean(), abs=0.08)  # a score is a probability


def test_the_given_labels_grow_likelier_round_by_round(monkeypatch):
    said, given_, _, _ = unsure(5, n=500)
    likelihoods = []
    for rounds in (1, 2, 4, 8):
        monkeypatch.setattr(label_errors, "_ROUNDS", rounds)
        _, joint = label_errors._weighed(said, given_)
        channel = label_errors._labelled_so(joint)[given_]
        at = np.array([1.0, 0.0, 0.0, 0.0])
        likelihoods.append(-minimize(label_errors._unlikelihood, at, (np.log(np.maximum(said, 1e-3)), channel), "L-BFGS-B", jac=True).fun)
    assert likelihoods == sorted(likelihoods)


def test_a_label_that_people_mix_up_is_more_suspicious_than_one_that_nobody_does():
    joint = np.array([[0.3, 0.001, 0.04], [0.001, 0.3, 0.001], [0.001, 0.001, 0.355]])
    probability = np.array([[0.3, 0.0, 0.7], [0.3, 0.7, 0.0]])
    wrong = 1 - true_labels(probability, np.array([0, 0]), joint)[:, 0]
    assert wrong[0] > 10 * wrong[1]


def test_too_little_to_learn_from_is_refused():
    vectors = np.eye(4, dtype=np.float32)
    with pytest.raises(DataError, match="Received: 1 labels, 4 rows"):
        find_label_errors(["a"] * 4, ["x"] * 4, vectors)
    with pytest.raises(DataError, match="3 texts, 4 labels, 4 embeddings"):
        find_label_errors(["a"] * 3, ["x"] * 4, vectors)
    with pytest.raises(DataError, match="1 prompts, 1 responses"):
        score_mismatches(vectors[:1], vectors[:1])


def test_rare_labels_and_empty_texts_are_judged_too():
    texts, labels, vectors, _, _ = planted(3, n=60)
    errors = find_label_errors(["", *texts[1:]], ["rare", *labels[1:]], vectors, n_folds=3)
    assert len(errors.rows) == 60
    assert errors.rows["score"][0] > 0.9
    assert errors.rows["score"].is_between(0, 1).all()


def test_swapped_answers_stand_out_and_name_each_other():
    draw = np.random.default_rng(0)
    meaning = draw.normal(size=(200, 24))

    def said():
        vectors = meaning + 0.7 * draw.normal(size=meaning.shape)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    prompts, responses = said(), said()
    swapped = np.array([3, 50, 120, 7])
    responses[swapped] = responses[np.roll(swapped, 1)]
    found = score_mismatches(prompts, responses)
    assert found.schema == pl.Schema(MISMATCHES_SCHEMA)
    assert set(found.sort("score", descending=True)["position"].head(4)) == set(swapped.tolist())
    assert found["better_prompt"].gather(swapped).to_list() == np.roll(swapped, 1).tolist()
    assert found["better_response"].gather(np.roll(swapped, 1)).to_list() == swapped.tolist()
    order = draw.permutation(200)
    np.testing.assert_allclose(score_mismatches(prompts[order], responses[order])["score"].to_numpy(), found["score"].to_numpy()[order], atol=1e-5)


def test_coordinates_of_the_terms_teach_the_same_regression():
    from scipy.sparse import random as draw_sparse
    from scipy.sparse import vstack
    from sklearn.linear_model import LogisticRegression

    drawn = draw_sparse(89, 600, density=0.05, random_state=0, format="csr")
    terms = vstack([drawn[:1], drawn], format="csr")  # two rows are equal
    few = label_errors._coordinates(terms, 3)
    assert few.shape == (90, 90)
    np.testing.assert_allclose(few @ few.T, (terms @ terms.T).toarray(), atol=1e-7)
    labels = np.arange(90) % 3
    of_terms, of_coordinates = (LogisticRegression(C=10, max_iter=50).fit(x[:60], labels[:60]).predict_proba(x[60:]) for x in (terms, few))
    np.testing.assert_allclose(of_coordinates, of_terms, atol=1e-4)
    assert label_errors._coordinates(terms[:, :20], 3).shape == (90, 20)


def test_folds_are_told_as_they_are_judged():
    texts, labels, vectors, _, _ = planted(4, n=60)
    told = []
    find_label_errors(texts, labels, vectors, n_folds=3, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 6) for done in range(1, 7)]
