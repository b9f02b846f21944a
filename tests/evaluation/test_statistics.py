"""Statistics beside SciPy and closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from looptool_jax.evaluation.statistics import (
    holm,
    label_permutations,
    mean_over_seeds,
    paired_answers,
    paired_bootstrap,
    sign_flips,
    t_quantile,
    t_two_sided,
    welch,
)


@pytest.mark.parametrize("freedom", [1, 2, 3.7, 9, 30, 500, 5000])
def test_students_t_is_scipys(freedom):
    for t in (0.0, 0.3, 1.0, 2.0, 10.0, 50.0):
        assert t_two_sided(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), rel=1e-8, abs=1e-14)
        assert t_two_sided(-t, freedom) == t_two_sided(t, freedom)
    for share in (0.75, 0.95, 0.975, 0.999):
        assert t_quantile(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), rel=1e-7)


@pytest.mark.parametrize("n", [2, 3, 5, 20])
def test_mean_and_interval_are_those_of_a_one_sample_t_test(n):
    values = np.random.default_rng(n).normal(0.3, 1.0, n)
    found, theirs = mean_over_seeds(list(values)), stats.ttest_1samp(values, 0.0)
    ends = theirs.confidence_interval(0.95)
    assert (found.n, found.sd) == (n, pytest.approx(values.std(ddof=1)))
    assert (found.mean, found.p) == (pytest.approx(values.mean()), pytest.approx(theirs.pvalue))
    assert (found.low, found.high) == (pytest.approx(ends.low), pytest.approx(ends.high))


def test_what_has_no_spread_has_no_interval():
    assert mean_over_seeds([0.5]).sd is None and mean_over_seeds([0.5]).p is None
    alike = mean_over_seeds([0.1, 0.1, 0.1])
    assert (alike.sd, alike.low, alike.p) == (0.0, None, None)
    assert mean_over_seeds([0.0, 0.0]).p == 1.0
    with pytest.raises(ValueError, match="no values"):
        mean_over_seeds([])


def test_welch_is_scipys():
    generator = np.random.default_rng(1)
    a, b = generator.normal(0, 1, 4), generator.normal(1, 3, 7)
    found, theirs = welch(list(a), list(b)), stats.ttest_ind(b, a, equal_var=False)
    ends = theirs.confidence_interval(0.95)
    assert (found.mean, found.p) == (pytest.approx(b.mean() - a.mean()), pytest.approx(theirs.pvalue))
    assert (found.low, found.high) == (pytest.approx(ends.low), pytest.approx(ends.high))
    assert welch([0.1], [0.2, 0.3]).p is None and welch([0.1, 0.1], [0.2, 0.2]).low is None


@pytest.mark.parametrize("n", [2, 3, 6, 10])
def test_sign_flips_are_scipys_exact_test(n):
    values = np.random.default_rng(n).normal(0.5, 1.0, n)
    theirs = stats.permutation_test(
        (values,), lambda x, axis: x.mean(axis), permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    assert sign_flips(values) == pytest.approx(theirs.pvalue)


def test_sign_flips_have_a_least_p():
    assert sign_flips([0.1, 0.2, 0.3]) == 2 / 2**3
    assert sign_flips([0.0, 0.0]) == 1.0
    many = np.random.default_rng(0).normal(0.15, 1.0, 40)
    assert sign_flips(many) == pytest.approx(stats.ttest_1samp(many, 0.0).pvalue, abs=0.02)
    assert sign_flips(many) == sign_flips(many)


def test_label_permutations_are_counted_one_by_one():
    a, b = [0.1, 0.4, 0.2], [0.5, 0.6, 0.35, 0.8]
    values, seen = [*a, *b], np.mean(b) - np.mean(a)
    divisions = list(itertools.combinations(range(7), 3))
    far = 0
    for chosen in divisions:
        inside = np.mean([values[i] for i in chosen])
        far += abs(np.mean([values[i] for i in range(7) if i not in chosen]) - inside) >= abs(seen) - 1e-9
    assert label_permutations(a, b) == pytest.approx(far / len(divisions))


def test_many_labels_are_drawn():
    generator = np.random.default_rng(2)
    a, b = generator.normal(0, 1, 25), generator.normal(0.4, 1, 25)
    assert label_permutations(list(a), list(b)) == pytest.approx(stats.ttest_ind(a, b).pvalue, abs=0.02)


def test_the_bootstrap_agrees_with_the_normal_interval_of_many_items():
    changes = np.random.default_rng(3).choice([-1.0, 0.0, 0.0, 1.0, 1.0], 1000)
    found = paired_bootstrap(changes)
    error = changes.std(ddof=1) / np.sqrt(1000)
    assert (found.n, found.mean) == (1000, pytest.approx(changes.mean()))
    assert found.low == pytest.approx(changes.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(changes.mean() + 1.96 * error, abs=0.15 * error)
    assert found.p == pytest.approx(1 / 10_001)
    assert paired_bootstrap(changes) == found


def test_the_bootstrap_covers_the_truth_and_is_right_about_nothing():
    generator = np.random.default_rng(4)
    inside = 0
    for key in range(100):
        found = paired_bootstrap(generator.choice([-1.0, 0.0, 1.0], 200, p=[0.1, 0.6, 0.3]), key)
        assert found.low is not None and found.high is not None
        inside += found.low <= 0.2 <= found.high
    assert 88 <= inside <= 100
    assert paired_bootstrap(np.zeros(10)).p == 1.0


@pytest.mark.parametrize(("better", "worse"), [(4, 0), (5, 1), (9, 2), (3, 3), (40, 12)])
def test_few_items_that_differ_are_judged_by_mcnemars_exact_test(better, worse):
    changes = np.concatenate([np.ones(better), -np.ones(worse), np.zeros(200)])
    theirs = stats.binomtest(better, better + worse).pvalue
    assert paired_bootstrap(changes).p == pytest.approx(theirs, abs=1e-12 if better < 40 else 1e-3)


def test_answers_are_paired_by_item():
    before = {str(i): i < 2 for i in range(4)}
    after = {str(i): i < 3 for i in reversed(range(4))}
    found = paired_answers(before, after)
    # Cells with half an item more: 2.5 right twice, 0.5 lost, 1.5 won, 1.5 wrong twice, of 6.
    error = math.sqrt(((1.5 + 0.5) - (1.5 - 0.5) ** 2 / 6) / 6**2)
    assert (found.n, found.mean, found.p) == (4, 0.25, 1.0)
    assert found.low == pytest.approx(1 / 6 - 1.96 * error) and found.high == pytest.approx(1 / 6 + 1.96 * error)
    with pytest.raises(ValueError, match="different items"):
        paired_answers(before, {"0": True})


@pytest.mark.parametrize(("items", "share"), [(200, 0.005), (200, 0.02), (50, 0.05), (10, 0.3)])
def test_the_interval_of_paired_answers_covers_the_truth_where_few_items_differ(items, share):
    generator = np.random.default_rng(items)
    inside = 0
    for _ in range(400):
        changes = generator.choice([1, 0, -1], items, p=[2 * share, 1 - 2.5 * share, 0.5 * share])
        found = paired_answers(
            {str(i): c < 0 for i, c in enumerate(changes)}, {str(i): c > 0 for i, c in enumerate(changes)}
        )
        inside += found.low <= 1.5 * share <= found.high
    assert inside >= 0.93 * 400


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == [pytest.approx(0.03), pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([0.5, None, 0.9]) == [1.0, None, 1.0]
    assert holm([]) == []
