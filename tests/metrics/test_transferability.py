"""Against the definitions in NumPy and SciPy, written here without looking at the library's way."""

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from limbeck.errors import LimbeckError
from limbeck.metrics import transferability as t

N, D, C = 40, 7, 3
BOTH = (t.rsa, t.cka, t.dds)
LABELLED = (t.parc, t.h_score, t.leave_one_out_knn, t.logme)


def random(seed=0, n=N, d=D, c=C):
    """Features that tell the classes apart a little, and those of another model."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(c), generator.integers(c, size=n - c)])
    features = generator.normal(size=(n, d)) + 1.5 * generator.normal(size=(c, d))[labels]
    return features, labels, generator.normal(size=(n, d)) + features


def call(measure, features, labels):
    return measure(torch.tensor(features), torch.tensor(labels))


def standard(x):
    spread = x.std(0)
    return (x - x.mean(0)) / np.where(spread == 0, 1, spread)


def upper(matrix):
    return matrix[np.triu_indices(len(matrix), k=1)]


# Representational similarity


@pytest.mark.parametrize("seed", range(3))
def test_parc_and_rsa(seed):
    features, labels, reference = random(seed)
    rdm = upper(1 - np.corrcoef(standard(features)))
    # Rounded: of labels there are two distances only, and ties must be ties.
    of_labels = upper(1 - np.corrcoef(np.eye(C)[labels])).round(9)
    assert call(t.parc, features, labels) == pytest.approx(100 * scipy.stats.spearmanr(rdm, of_labels)[0], abs=1e-9)
    other = upper(1 - np.corrcoef(standard(reference)))
    assert call(t.rsa, features, reference) == pytest.approx(100 * scipy.stats.spearmanr(rdm, other)[0], abs=1e-9)


def test_parc_of_the_labels_themselves():
    """Near 100 where classes are balanced, and less where standardising stretches the rare ones."""
    balanced = np.arange(60) % 3
    assert 95 < call(t.parc, np.eye(3)[balanced], balanced) <= 100
    rare = np.repeat([0, 1, 2], [45, 10, 5])
    assert 50 < call(t.parc, np.eye(3)[rare], rare) < 99
    noise = [call(t.parc, np.random.default_rng(seed).normal(size=(60, 8)), balanced) for seed in range(10)]
    # 1770 pairs of 60 images: the correlation of one draw spreads by about 3.
    assert abs(np.mean(noise)) < 3
    assert max(map(abs, noise)) < 12


@pytest.mark.parametrize("measure", LABELLED)
def test_order_of_images_and_numbers_of_classes_do_not_matter(measure):
    features, labels, _ = random()
    order = np.random.default_rng(1).permutation(N)
    found = call(measure, features, labels)
    # Sums in another order.
    assert call(measure, features[order], labels[order]) == pytest.approx(found, rel=1e-9)
    assert call(measure, features, np.array([2, 0, 1])[labels]) == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize("measure", [t.parc, t.h_score])
def test_scale_and_shift_of_a_dimension_do_not_matter(measure):
    features, labels, _ = random()
    other = features * np.array([1e-3, 1, 10, 1, 1e4, 1, 1]) + np.array([0, 5, 0, -7, 0, 0, 1e3])
    assert call(measure, other, labels) == pytest.approx(call(measure, features, labels), rel=1e-6)


@pytest.mark.parametrize("measure", BOTH)
def test_a_model_is_most_similar_to_itself(measure):
    features, _, reference = random()
    assert call(measure, features, features) == pytest.approx(100, abs=1e-9)
    assert call(measure, features, reference) == pytest.approx(call(measure, reference, features), abs=1e-9)
    order = np.random.default_rng(1).permutation(N)
    assert call(measure, features[order], reference[order]) == pytest.approx(call(measure, features, reference))
    assert call(measure, features, reference[order]) < call(measure, features, reference) - 20


def centred(kernel):
    """By the definition of the unbiased centring, entry by entry."""
    n, k = len(kernel), kernel.copy()
    np.fill_diagonal(k, 0)
    found = np.zeros_like(k)
    for i, j in np.ndindex(n, n):
        if i != j:
            found[i, j] = k[i, j] - k[i].sum() / (n - 2) - k[:, j].sum() / (n - 2) + k.sum() / ((n - 1) * (n - 2))
    return found


@pytest.mark.parametrize("seed", range(3))
def test_alignment_of_kernels(seed):
    features, _, reference = random(seed)
    x, y = standard(features), standard(reference)
    for measure, kernel in (
        (t.cka, np.dot),
        (t.dds, lambda a, b: 1 - a @ b / np.outer(*[np.linalg.norm(a, axis=1)] * 2)),
    ):
        a, b = centred(kernel(x, x.T)), centred(kernel(y, y.T))
        wanted = 100 * (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
        assert call(measure, features, reference) == pytest.approx(wanted, abs=1e-9)


def test_unrelated_features_have_no_alignment():
    """Without the correction of the bias wide features would give tens."""
    generator = np.random.default_rng(0)
    values = [call(t.cka, generator.normal(size=(30, 60)), generator.normal(size=(30, 50))) for _ in range(30)]
    assert abs(np.mean(values)) < 2


# Probabilities


def loops(theta, labels):
    """LEEP by its definition."""
    n, z_count = theta.shape
    joint = {(y, z): sum(theta[i, z] for i in range(n) if labels[i] == y) / n for y in range(C) for z in range(z_count)}
    marginal = [sum(joint[y, z] for y in range(C)) for z in range(z_count)]
    return np.mean(
        [np.log(sum(joint[labels[i], z] / marginal[z] * theta[i, z] for z in range(z_count))) for i in range(n)]
    )


def test_leep():
    theta = np.random.default_rng(0).dirichlet(np.ones(4), size=N)
    _, labels, _ = random()
    assert call(t.leep, theta, labels) == pytest.approx(loops(theta, labels), rel=1e-12)
    assert call(t.leep, np.eye(C)[labels], labels) == pytest.approx(0, abs=1e-15)
    shares = np.bincount(labels) / N
    uniform = (shares * np.log(shares)).sum()
    assert call(t.leep, np.full((N, 4), 0.25), labels) == pytest.approx(uniform, rel=1e-12)
    # A source class that nothing is given, and one that takes all.
    assert call(t.leep, np.eye(4)[np.zeros(N, int)], labels) == pytest.approx(uniform, rel=1e-12)


def test_nce():
    z = np.random.default_rng(0).integers(4, size=N)
    _, labels, _ = random()
    wanted = 0.0
    for y in range(C):
        for source in range(4):
            both, alone = np.mean((labels == y) & (z == source)), np.mean(z == source)
            wanted += both * np.log(both / alone) if both else 0
    assert call(t.nce, z, labels) == pytest.approx(wanted, rel=1e-12)
    assert call(t.nce, labels * 2 + 5, labels) == pytest.approx(0, abs=1e-15)
    shares = np.bincount(labels) / N
    assert call(t.nce, np.zeros(N, int), labels) == pytest.approx((shares * np.log(shares)).sum(), rel=1e-12)


# Class structure of the features


def test_h_score():
    features, labels, _ = random()
    x = standard(features)
    means = np.stack([x[labels == y].mean(0) for y in range(C)])[labels]
    wanted = np.trace(np.linalg.pinv(np.cov(x.T)) @ np.cov(means.T))
    assert call(t.h_score, features, labels) == pytest.approx(wanted, rel=1e-9)
    # Features that are functions of the class: the rank of C means, and of their constants nothing.
    assert call(t.h_score, np.eye(C)[labels], labels) == pytest.approx(C - 1, rel=1e-9)
    one = features[:, :1]
    within = 1 - np.var(one[:, 0] - np.array([one[labels == y].mean() for y in range(C)])[labels]) / one.var()
    assert call(t.h_score, one, labels) == pytest.approx(within, rel=1e-9)


@pytest.mark.parametrize("k", [1, 4])
def test_leave_one_out(k):
    features, labels, _ = random()
    right = 0
    for i in range(N):
        others = np.arange(N) != i
        right += KNeighborsClassifier(k).fit(features[others], labels[others]).predict(features[[i]])[0] == labels[i]
    assert call(lambda f, y: t.leave_one_out_knn(f, y, k), features, labels) == pytest.approx(100 * right / N)
    twice = np.concatenate([features, features])
    assert call(t.leave_one_out_knn, twice, np.concatenate([labels, labels])) == 100
    # Far from the origin distances must not drown in rounding.
    assert call(t.leave_one_out_knn, twice + 1e8, np.concatenate([labels, labels])) == 100


# LogME


def largest_evidence(features, target):
    """Of Bayesian linear regression: y is normal with covariance I / beta + F F^T / alpha."""

    def negative(logarithms):
        alpha, beta = np.exp(logarithms)
        covariance = np.eye(len(target)) / beta + features @ features.T / alpha
        return -scipy.stats.multivariate_normal(cov=covariance).logpdf(target)

    starts = ([0.0, 0.0], [3.0, 1.0])
    return max(-scipy.optimize.minimize(negative, start, method="Nelder-Mead").fun for start in starts)


@pytest.mark.parametrize(("n", "d"), [(40, 7), (60, 2), (20, 30)])
def test_logme_is_the_largest_evidence(n, d):
    features, labels, _ = random(n=n, d=d)
    wanted = np.mean([largest_evidence(features, target) / n for target in np.eye(C)[labels].T])
    # The fixed point stops at a relative change of 1e-3, which is second order in the evidence.
    assert call(t.logme, features, labels) == pytest.approx(wanted, abs=1e-3)


def test_logme_rises_when_features_predict_labels():
    generator = np.random.default_rng(0)
    labels = np.arange(90) % 3
    noise = generator.normal(size=(90, 6))
    values = [call(t.logme, noise + s * np.eye(3, 6)[labels], labels) for s in (0, 1, 3, 10)]
    assert values == sorted(values)
    assert values[-1] - values[0] > 1


# Preparations


@pytest.mark.parametrize("shape", [(40, 7), (10, 30)])
def test_principal_components(shape):
    x = np.random.default_rng(0).normal(size=shape)
    found, wanted = t.principal_components(torch.tensor(x), 4).numpy(), PCA(4).fit_transform(x)
    np.testing.assert_allclose(np.abs(found), np.abs(wanted), atol=1e-9)


def test_directions_without_variance_are_no_components():
    x = torch.randn(10, 2, dtype=torch.float64) @ torch.randn(2, 30, dtype=torch.float64)
    assert t.principal_components(x, 5).shape == (10, 2)
    assert t.principal_components(torch.randn(10, 30), 32).shape == (10, 9)  # centring takes one
    assert t.principal_components(torch.ones(4, 3), 2).tolist() == [[0.0]] * 4


def test_capacity():
    found = t.with_capacity([1.0, 2.0, 3.0], [50, 10, 0])
    assert found == pytest.approx([-np.sqrt(1.5) + 1, 0.2, np.sqrt(1.5)])
    assert t.with_capacity([5.0, 5.0], [50, 100]) == pytest.approx([1, 2])
    with pytest.raises(LimbeckError, match="2 scores and 1 numbers"):
        t.with_capacity([1.0, 2.0], [3])


# Extremes


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_features_of_a_broken_model_are_worth_nothing(value):
    constant, labels = np.full((N, D), value), random()[1]
    assert call(t.parc, constant, labels) == 0
    assert call(t.h_score, constant, labels) == pytest.approx(0, abs=1e-12)
    assert np.isfinite(call(t.logme, constant, labels))
    for measure in (t.cka, t.dds):
        assert call(measure, constant, random()[0]) == 0
    assert t.rsa(torch.tensor(constant), torch.tensor(random()[0])) == 0


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_extreme_features_give_numbers(scale):
    features, labels, reference = random()
    for measure in LABELLED:
        assert np.isfinite(call(measure, scale * features, labels))
    for measure in BOTH:
        assert call(measure, scale * features, reference) == pytest.approx(call(measure, features, reference), abs=1e-6)


def test_one_image_with_constant_features_is_counted():
    features, labels, _ = random()
    features = standard(features)
    features[3] = 0
    assert np.isfinite(call(t.parc, features, labels))


@pytest.mark.parametrize("measure", [*LABELLED, t.leep])
def test_wrong_input(measure):
    features, labels, _ = random()
    broken = np.abs(features)
    broken[4, 2] = np.nan
    with pytest.raises(LimbeckError, match="NaN or infinite, first of image 4"):
        call(measure, broken, labels)
    with pytest.raises(LimbeckError, match="1 of 40 images have no label"):
        call(measure, np.abs(features), np.where(np.arange(N) == 3, -1, labels))
    with pytest.raises(LimbeckError, match="at least two labelled images, got 1"):
        call(measure, np.abs(features[:1]), labels[:1])


def test_too_few():
    features, labels, _ = random()
    with pytest.raises(LimbeckError, match="all 780 gold scores are"):
        call(t.parc, features, np.zeros(N, int))
    with pytest.raises(LimbeckError, match="at least four images, got 3"):
        call(t.cka, features[:3], features[:3])
    with pytest.raises(LimbeckError, match="at least three images, got 2"):
        call(t.parc, features[:2], labels[:2])
    with pytest.raises(LimbeckError, match="k is 40"):
        t.leave_one_out_knn(torch.tensor(features), torch.tensor(labels), 40)
    with pytest.raises(LimbeckError, match="of no images"):
        t.nce(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(LimbeckError, match="dimensions is 0"):
        t.principal_components(torch.tensor(features), 0)
