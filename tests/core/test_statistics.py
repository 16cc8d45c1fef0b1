"""The figures of `core.statistics` against their definitions: by hand, by brute force, by numerical derivative."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm

from content_arena.core import statistics as st

COUNTS = np.array([640, 22, 30, 12, 40, 45, 38, 173])


def f1(tp: float, fp: float, fn: float) -> float:
    return 2 * tp / (2 * tp + fp + fn)


def gain(c) -> float:
    "F1 of the challenger minus the champion's, written out."
    return f1(c[5] + c[7], c[1] + c[3], c[4] + c[6]) - f1(c[6] + c[7], c[2] + c[3], c[4] + c[5])


def test_metrics_by_hand():
    tp, fp, fn, tn = (np.array(x) for x in ((211, 218), (42, 34), (85, 78), (662, 670)))
    wanted = np.stack(
        [2 * tp / (2 * tp + fp + fn), tp / (tp + fp), tp / (tp + fn), (tp + tn) / 1000], axis=-1
    )
    assert st.metrics_of(COUNTS) == pytest.approx(wanted, abs=1e-12)
    assert st.differences(COUNTS) == pytest.approx(wanted[1] - wanted[0], abs=1e-12)
    assert st.differences([5, 0, 0, 0, 0, 0, 0, 0]).tolist() == [0, 0, 0, 0]
    assert st.METRICS == ("f1", "precision", "recall", "accuracy")


def test_each_pattern_is_counted_in_its_own_cell():
    rows = [r for i, r in enumerate(itertools.product((0, 1), repeat=3)) for _ in range(i + 1)]
    assert st.count_patterns(*zip(*rows)).tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert st.count_patterns([True], [False], [True]).tolist() == [0, 0, 0, 0, 0, 1, 0, 0]
    with pytest.raises(ValueError, match="one length"):
        st.count_patterns([[0, 1]], [[0, 1]], [[0, 1]])


def test_wilson_is_the_formula_of_1927():
    for k, n, confidence in ((3, 50, 0.95), (0, 7, 0.9), (40, 40, 0.99)):
        z, p = norm.isf((1 - confidence) / 2), k / n
        middle, half = (p + z * z / (2 * n)), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        wanted = (middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)
        assert st.wilson_interval(k, n, confidence) == pytest.approx(wanted, abs=1e-12)
    assert st.wilson_interval(3, 50) == st.wilson_interval(3, 50, 0.95)


def test_the_interval_of_draws_is_their_quantiles():
    draws = np.zeros((101, 4))
    draws[:, 1] = np.arange(101)
    boot = st.Bootstrap(np.zeros(4), draws)
    assert boot.interval("precision", 0.9) == pytest.approx((10, 90))
    assert boot.interval("precision") == pytest.approx((5, 95))
    assert boot.interval("f1") == (0, 0)


def test_a_bootstrap_is_repeatable_and_as_wide_as_the_standard_error():
    first, again, other = (st.paired_bootstrap(COUNTS, seed=s) for s in (0, 0, 1))
    assert (first.draws == again.draws).all() and (first.draws != other.draws).any()
    assert first.draws.shape == (2000, 4) and first.observed[0] == pytest.approx(gain(COUNTS))
    assert (st.paired_bootstrap(COUNTS).draws == first.draws).all()
    assert first.draws[:, 0].std() == pytest.approx(st.standard_error(COUNTS), rel=0.06)
    kept = st.paired_bootstrap(
        [0, 0, 0, 0, 0, 30, 20, 50], stratified=True
    )  # no clean row to draw from
    assert kept.draws[:, 0].std() > 0


def gain_or_zero(c) -> float:
    pairs = ((c[5] + c[7], c[1] + c[3], c[4] + c[6]), (c[6] + c[7], c[2] + c[3], c[4] + c[5]))
    new, old = (2 * tp / max(2 * tp + fp + fn, 1) for tp, fp, fn in pairs)
    return new - old


def test_the_swap_test_is_the_sum_over_all_swaps():
    for seed in range(25):
        c = np.random.default_rng(seed).integers(0, 4, 8)
        m1, m0, enough = c[5] + c[6], c[1] + c[2], 0.0
        for a, b in itertools.product(range(m1 + 1), range(m0 + 1)):
            swapped = c.copy()
            swapped[[5, 6, 2, 1]] = a, m1 - a, b, m0 - b
            as_large = gain_or_zero(swapped) >= gain_or_zero(c) - 1e-12
            enough += as_large * math.comb(m1, a) * math.comb(m0, b) / 2 ** int(m1 + m0)
        assert st.swap_test(c) == pytest.approx(enough, abs=1e-9), c


def test_mcnemar_by_hand():
    old, new, p = st.mcnemar(COUNTS)
    assert (old, new) == (22 + 38, 30 + 45)
    assert p == pytest.approx(2 * sum(math.comb(135, k) for k in range(61)) / 2**135, rel=1e-9)


@pytest.mark.parametrize(
    "share, f1_wanted, better, phi",
    [(0.1, 0.8, 0.05, 0.5), (0.5, 0.9, 0.0, 0.3), (0.3, 0.6, 0.2, 0.1), (0.2, 0.7, 0.1, 0.0)],
)
def test_a_pair_of_models_errs_as_asked(share, f1_wanted, better, phi):
    "F1, precision = recall, the share of toxic rows, and the correlation of errors within each class."
    p = st.model_pair(share, f1_wanted, better, phi)
    assert p.min() >= 0 and p.sum() == pytest.approx(1) and p[4:].sum() == pytest.approx(share)
    old, new = st.metrics_of(p)
    assert old[:3] == pytest.approx(f1_wanted) and new[0] == pytest.approx(f1_wanted + better)
    for y in (0, 1):
        q = p[4 * y : 4 * y + 4].reshape(2, 2) / p[4 * y : 4 * y + 4].sum()
        q = q[::-1, ::-1] if y else q  # [wrong?, wrong?]
        one, two = q[1].sum(), q[:, 1].sum()
        assert (q[1, 1] - one * two) / math.sqrt(
            one * (1 - one) * two * (1 - two)
        ) == pytest.approx(phi)
        assert two / one == pytest.approx(
            new[1] and (1 - new[2]) / (1 - old[2])
        )  # both kinds of error shrink alike


def test_a_pair_by_default_is_equally_good_and_half_correlated():
    assert st.model_pair(0.2, 0.8) == pytest.approx(st.model_pair(0.2, 0.8, 0.0, 0.5))
    for wrong in ((0.1, 1.0, 0.0), (0.1, 0.0, 0.1), (0.1, 0.8, -0.1), (0.9, 0.5, 0.1)):
        with pytest.raises(ValueError, match="no such pair"):
            st.model_pair(*wrong)
    assert st.model_pair(0.5, 0.5, 0.5)[[5, 0]] == pytest.approx(
        [0.25, 0.25]
    )  # alarm 0.5; never wrong any more


def test_influence_is_the_derivative_of_the_gain():
    p, step = COUNTS / COUNTS.sum(), 1e-6
    mixed = [((1 - step) * p + step * np.eye(8)[i]) for i in range(8)]
    assert st.influence(COUNTS) == pytest.approx(
        [(gain(m) - gain(p)) / step for m in mixed], abs=1e-4
    )
    variance = p @ st.influence(COUNTS) ** 2
    assert st.standard_error(COUNTS) == pytest.approx(math.sqrt(variance / 1000))
    assert st.standard_error(COUNTS, 4000) == pytest.approx(st.standard_error(COUNTS) / 2)


def test_significance_by_its_definition():
    c = [640, 22, 30, 12, 40, 65, 28, 163]
    s, boot = st.significance(c), st.paired_bootstrap(c, 2000, 0)
    assert (s.alpha, s.level, s.resamples) == (0.05, 1 - 0.75 * 0.05, 2000)
    assert (s.lower, s.upper) == boot.interval("f1", s.level) and s.lower < s.gain < s.upper
    assert s.gain == pytest.approx(gain(c)) and s.p_value == st.swap_test(c)
    assert st.significance(c, 0.05, 2000, 0, False) == s != st.significance(c, seed=1)
    assert (
        st.significance(c, stratified=True).lower
        == st.paired_bootstrap(c, stratified=True).interval("f1", s.level)[0]
    )
    assert st.significance(c, 0.01).resamples == math.ceil(50 / 0.0075)
    assert st.significance(c, 0.05, resamples=10).resamples == math.ceil(50 / 0.0375)


@pytest.mark.parametrize(
    "lower, p_value, proven",
    [(0.001, 0.25, True), (0.0, 0.25, False), (0.001, 0.251, False), (-0.001, 0.001, False)],
)
def test_proven_needs_the_bound_and_the_p_value(lower, p_value, proven):
    assert st.Significance(0.02, 0.3, 0.75, lower, 0.04, p_value, 2000).proven is proven


def test_power_effect_and_rows_are_one_formula():
    p, z = st.model_pair(0.5, 0.88), norm.isf(0.75 * 0.05)
    for n in (300, 3000, 300_000):  # the two hurdles: significance, and the wanted gain
        se = st.standard_error(p, n)
        hurdle = max(0.01, z * se)
        assert st.detection_power(p, 0.025, n) == pytest.approx(norm.cdf((0.025 - hurdle) / se))
        assert st.detectable_effect(p, n) == pytest.approx(hurdle + norm.ppf(0.8) * se)
    assert st.detectable_effect(p, 300_000) > 0.01
    assert st.detection_power(p, 0.025, 2000) == st.detection_power(p, 0.025, 2000, 0.05, 0.01)
    assert st.detectable_effect(p, 2000) == st.detectable_effect(p, 2000, 0.05, 0.8, 0.01)
    for effect in (0.0101, 0.011, 0.025, 0.1):  # enough, and one row fewer is not
        n = st.required_samples(p, effect)
        assert n == st.required_samples(p, effect, 0.05, 0.8, 0.01)
        assert st.detection_power(p, effect, n) >= 0.8 > st.detection_power(p, effect, n - 1)


def test_a_budget_spends_its_error_as_one_over_k():
    assert st.decision_alpha(0.05, 2, 3) == pytest.approx(0.05 / (2 * (1 + 1 / 2 + 1 / 3)))
    assert st.decision_alpha(0.05, 1, 1) == 0.05 and st.decision_alpha(0.05, 3, 3) > 0
    assert st.decision_alpha(0.05, 4, 3) == 0.0 and st.decision_alpha(0.05, 4, 0) == 0.05
    for k, budget in ((0, 3), (1, -1)):
        with pytest.raises(ValueError, match="k >= 1"):
            st.decision_alpha(0.05, k, budget)
