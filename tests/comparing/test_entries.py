"""Entries and tuned settings are checked before anything is run."""

import pytest
import runs

from gr_jax import config as configuration
from gr_jax.comparing import comparison, entries
from gr_jax.errors import UserError

BASE = configuration.check(runs.get_config("digits_lt"))


def test_an_entry_is_a_method_with_settings_of_its_own():
  gr, wa, icarl = entries.parse("gr, wa:temperature=1:learning_rate=0.05,icarl:milestones=(5,7):epochs=9", BASE)
  assert (gr.name, gr.method, gr.addons, gr.plain) == ("gr", "gr", (), True) and gr.config == BASE
  assert not wa.plain and wa.config.method_options == {"temperature": 1.0} and wa.config.learning_rate == 0.05
  assert icarl.config.milestones == (5, 7) and icarl.config.epochs == 9
  assert {wa.folder, icarl.folder} == {"wa_temperature=1_learning_rate=0.05", "icarl_milestones=(5,7)_epochs=9"}
  # An option of the method comes before a key of the config; a key with a group is written out.
  entry, = entries.parse("gr:method_options.prior=False:scenario.imbalance=5:memory.per_class=None:memory.total=30",
                         BASE)
  assert entry.config.method_options["prior"] is False and entry.config.scenario.imbalance == 5.0
  assert (entry.config.memory.per_class, entry.config.memory.total) == (None, 30)


@pytest.mark.parametrize("texts, words", [
    ("", "--methods is ''; it takes entries"), ("gr,,wa", "it takes entries"),
    ("gr,lucir,gr", "--methods has 'gr' twice"),
    ("wa,wa:temperature=2", "'wa' and 'wa:temperature=2', which is the same run"),
    ("icarll", "entry 'icarll': method is 'icarll'.*did you mean 'icarl'"),
    ("gr:learning_rate", "'learning_rate' is not KEY=VALUE"), ("gr:=3", "'=3' is not KEY=VALUE"),
    ("wa:temperatur=1", "method_options.temperatur is not an option of method 'wa'.*did you mean method_options.temp"),
    ("wa:margin=1", "margin is not an option of method 'wa' .it belongs to 'lucir'"),
    ("wa:learningrate=1", "unknown config key 'learningrate'; did you mean 'learning_rate'"),
    ("wa:temperature=0", "entry 'wa:temperature=0': method_options.temperature is 0"),
    ("gr:epochs=many", "'epochs' is 'many' .str.; it takes an integer"),
    ("gr:epochs=3:epochs=4", "sets epochs twice"),
    ("gr:seed=1", "seed cannot be set for one method; a comparison sets it by --seeds"),
    ("gr:evaluate_on=holdout", "evaluate_on cannot be set"), ("lucir+", "an entry is NAME"),
    ("lucir:memory.per_class=0", "memory.per_class is 0, but lucir needs"),
    ("lucir+nothing", "entry 'lucir.nothing': addons is 'nothing', but 'nothing' is no add-on; it can be 'lws'"),
    ("lucir+lws+lws", "names 'lws' twice"),
    ("lucir+lsw:lws_scale_rate=1", "'lsw' is no add-on.*did you mean 'lws'"),
    ("lucir:lws_scale_rate=1", "lws_scale_rate is an option of the add-on 'lws', which is not chosen"),
    ("lucir+lws:addons=gpa", "addons cannot be set for one method; a comparison sets it by --methods")])
def test_bad_entries(texts, words):
  with pytest.raises(UserError, match=words):
    entries.parse(texts, BASE)


def test_a_flag_that_would_have_no_effect_is_refused():
  with pytest.raises(UserError, match="use --methods"):
    entries.refuse_flags(["--methods=gr", "--config.method=wa"])
  entries.refuse_flags(["--methods=gr", "--config.epochs=3", "--config=method.py"])


def test_add_ons_wrap_a_method_and_have_options():
  lws, both = entries.parse("lucir+lws:lws_scale_rate=0.2,lucir+gvalign", BASE)
  assert (lws.method, lws.addons, lws.config.addons) == ("lucir", ("lws",), "lws")
  assert lws.config.method_options["lws_scale_rate"] == 0.2 and both.config.addons == "gvalign"
  assert lws.folder == "lucir+lws_lws_scale_rate=0.2"
  plain, tuned = entries.parse("lucir,lucir+lws", BASE)
  assert [len(entries.settings(entry, ["lws_scale_rate=0.1,0.2"])) for entry in (plain, tuned)] == [0, 2]
  with pytest.raises(UserError, match="the config has the add-ons 'lws'.*name add-ons in --methods"):
    entries.parse("gr", configuration.check(runs.get_config("digits_lt", addons="lws", method="lucir")))


def test_options_of_the_config_belong_to_no_entry():
  base = configuration.check(runs.get_config("digits_lt", **{"method_options.prior": False}))
  with pytest.raises(UserError, match="the config sets options of the method 'gr'.*in --methods"):
    entries.parse("gr,wa", base)


def test_settings_are_all_combinations_and_know_what_they_change():
  wa, gr = entries.parse("wa,gr", BASE)
  settings = entries.settings(wa, ["learning_rate=0.05,0.1", "temperature=2,3"])
  assert [setting.name for setting in settings] == [
      "learning_rate=0.05, temperature=2", "learning_rate=0.05, temperature=3", "learning_rate=0.1, temperature=2",
      "learning_rate=0.1, temperature=3"]
  # The config has 0.1 and 2.
  assert [setting.changes for setting in settings] == [1, 2, 0, 1]
  assert settings[2].config == wa.config and settings[1].config.learning_rate == 0.05
  assert settings[1].config.method_options == {"temperature": 3.0}
  assert [len(entries.settings(entry, ["margin=0.4,0.5"])) for entry in entries.parse("gr,lucir", BASE)] == [0, 2]
  assert entries.settings(gr, []) == []
  # A part that combines is off unless it is named.
  assert [setting.changes for setting in entries.settings(wa, ["prior=False,True"])] == [0, 1]


@pytest.mark.parametrize("tune, words", [
    ("learning_rate=0.1", "with two or more different values"), ("learning_rate", "with two or more different values"),
    ("learning_rate=0.1,0.1", "with two or more different values"), ("learning_rate=0.1,-1", "entry 'gr': learning_r"),
    ("seed=1,2", "seed cannot be set"), ("margin=1,2", "margin is not an option of method 'gr'"),
    ("learning_rat=1,2", "learning_rat"), ("epochs=3,4", "epochs is set twice for the entry 'gr:epochs=5'")])
def test_bad_tuning(tmp_path, tune, words):
  request = comparison.Comparison("c.py", entries.parse("gr,gr:epochs=5", BASE), 1, [tune], [1, 2], tmp_path)
  with pytest.raises(UserError, match=words):
    comparison.check(request)


@pytest.mark.parametrize("changes, seeds, words", [
    ({}, [1], "--tune_scenario_seeds is 1; choosing settings takes two or more"),
    ({}, [1, 1], "takes two or more"), ({}, [0, 1], "has 0, the scenario.seed of the comparison itself"),
    ({"validation_fraction": 0.0}, [1, 2], "validation_fraction is 0"),
    ({"replicas": 2}, [1, 2], "replicas is 2, but a comparison needs 1"),
    ({"evaluate_on": "holdout"}, [1, 2], "evaluate_on is 'holdout', but a comparison needs 'test'")])
def test_requests_that_cannot_be_compared(tmp_path, changes, seeds, words):
  base = configuration.check(runs.get_config("digits_lt", **changes))
  request = comparison.Comparison("c.py", entries.parse("gr", base), 1, ["epochs=3,4"], seeds, tmp_path)
  with pytest.raises(UserError, match=words):
    comparison.check(request)
