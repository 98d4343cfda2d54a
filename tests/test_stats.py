"""Intervals, calibration and the scale of a margin, against numbers worked out by hand and against scipy's."""

import numpy as np
import pytest
from scipy.stats import binomtest, norm, t

from cai_nb.dialogue import CaiError
from cai_nb.stats import _tail, accuracy, bootstrap, calibration_bins, calibration_error, fit_temperature, wilson


def test_wilson_and_accuracy_by_hand():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-3)
    assert wilson(7.5, 10)[0] == pytest.approx((wilson(7, 10)[0] + wilson(8, 10)[0]) / 2, abs=0.01)
    a = accuracy([0.9, 0.9, 0.9, 0.2, 0.5])
    assert a["accuracy"] == pytest.approx(3.5 / 5) and a["n"] == 5
    assert a["cross_entropy"] == pytest.approx(-(3 * np.log(0.9) + np.log(0.2) + np.log(0.5)) / 5)
    assert accuracy([0.9, 0.1], [True, False]) == accuracy([0.9, 0.9])
    rng = np.random.default_rng(0)
    p = rng.uniform(size=20000)
    assert accuracy(p, rng.uniform(size=20000) < p)["calibration_error"] < 0.02
    assert accuracy(np.where(p > 0.5, 0.99, 0.01), rng.uniform(size=20000) < p)["calibration_error"] > 0.2


def test_temperature_is_found_again():
    rng = np.random.default_rng(0)
    odds = rng.normal(size=20000) * 2
    right = rng.uniform(size=20000) < 1 / (1 + np.exp(-odds))
    assert fit_temperature(np.where(right, odds, -odds) / 7) == pytest.approx(7, rel=0.05)
    assert fit_temperature([-1.0, -2.0]) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("k, n", [(0, 1), (3, 3), (8, 10), (55, 100)])
def test_wilson_is_scipys_where_that_has_it(k, n):
    exact = binomtest(k, n).proportion_ci(method="wilson")
    assert wilson(k, n, z=norm.ppf(0.975)) == pytest.approx((exact.low, exact.high), abs=1e-12)


def test_calibration_of_soft_labels_is_seen_from_the_preferred_side():
    p, labels = [0.9, 0.1, 0.8, 0.5], [0.7, 0.2, 0.6, 0.0]
    points = calibration_bins(p, labels, bins=2)
    assert points == [(0.5, 0.5, 1), pytest.approx(((0.9 + 0.9 + 0.8) / 3, (0.7 + 0.8 + 0.6) / 3, 3))]
    assert calibration_error(points) == pytest.approx(0.75 * (2.6 - 2.1) / 3)


def test_one_binning_serves_labels_preference_models_and_reports():
    "The three that there were agree, except at exactly one half, where a preference is half right and not right"
    rng = np.random.default_rng(0)
    p, labels = rng.uniform(size=500), rng.uniform(size=500)
    right = accuracy(p, labels > 0.5)
    assert right["calibration_error"] == pytest.approx(calibration_error(calibration_bins(p, labels > 0.5)))


def test_the_tail_is_hesterbergs():
    for k in (2, 6, 48, 1000):
        assert _tail(k) == pytest.approx(norm.cdf(t.ppf(0.025, k - 1) * np.sqrt(k / (k - 1))), rel=1e-9)
    assert 0 < _tail(1) < _tail(6) < _tail(48) < 0.025


def test_too_little_to_measure_is_refused():
    for wrong, words in ((lambda: accuracy([]), "at least one"), (lambda: accuracy([1.5]), "between 0 and 1"),
                         (lambda: bootstrap([1, 2], ["a"]), "name the prompt")):
        with pytest.raises(CaiError, match=words):
            wrong()
