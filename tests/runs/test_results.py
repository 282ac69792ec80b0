"""The results of replicas together."""

import pytest

from gr_jax.runs import results


def one(seed, **changes):
  return {**dict.fromkeys(results._AVERAGED, 1.0 + seed), "seed": seed, "forgetting": [None, 0.5 * seed],
          "many_medium_few": {"many": {"accuracy": 0.5 * seed, "classes": 3}, "few": None}, **changes}


def test_means_and_deviations_at_every_place():
  averaged = results.over_replicas([one(0), one(1)])
  assert averaged["last_accuracy"] == 1.5 and averaged["forgetting"] == [None, 0.25] and averaged["seeds"] == [0, 1]
  assert averaged["many_medium_few"] == {"many": {"accuracy": 0.25, "classes": 3}, "few": None}
  assert averaged["standard_deviation"]["last_accuracy"] == pytest.approx(0.5**0.5)


def test_a_replica_of_an_earlier_version_has_no_calibration():
  """Its results lack the key, or its first tasks the figures."""
  other = one(1, calibration=[None, {"temperatures": None, "uncalibrated": {"all": {"ece": 0.2}}}])
  whole = one(2, calibration=[{"temperatures": {"one": 2.0}}, {"temperatures": {"one": 2.0},
                                                                "uncalibrated": {"all": {"ece": 0.4}}}])
  older = {key: value for key, value in one(0).items() if key != "calibration"}
  assert results.over_replicas([older, whole])["calibration"] is None
  calibration = results.over_replicas([other, whole])["calibration"]
  assert calibration == [None, {"temperatures": None, "uncalibrated": {"all": {"ece": pytest.approx(0.3)}}}]
