import pytest
from tiny_runs import tiny_bits, tiny_digits

from configs import pmnist
from experiments import permuted_mnist
from experiments.learning.checks import ConfigError
from experiments.run import provenance
from experiments.run.cases import prepare_cases
from experiments.run.config import (
    check_has_effect,
    complete,
    keep_cases,
    make_cases,
    make_grid,
)


def test_cases_apply_their_overrides_and_leave_the_rest():
    config = tiny_digits(cases={"wide": {"hidden_units": 7}, "plain": {}})
    cases = make_cases(config)
    assert list(cases) == ["plain", "wide"]
    assert cases["wide"].hidden_units == 7
    assert cases["plain"].hidden_units == config.hidden_units == 5


def test_cases_that_are_not_named_are_left_out():
    config = tiny_digits()
    keep_cases(config, ["backprop"])
    assert list(config.cases) == ["backprop"]
    with pytest.raises(ConfigError, match="no case 'bckprop': did you mean 'backprop'"):
        keep_cases(config, ["bckprop"])


def test_a_linear_model_takes_no_dropout():
    """Its lanes would be trained several times alike."""
    linear = {"method": "backprop", "hidden_layers": 0}
    config = tiny_digits(cases={"plain": {"method": "backprop"}, "linear": linear})
    config.sweep.dropout_rate = (0.1, 0.2)
    cases = make_cases(config)
    assert cases["plain"].sweep.dropout_rate == (0.1, 0.2)
    assert "dropout_rate" not in cases["linear"].sweep
    with pytest.raises(ConfigError, match=r"'linear' does not take it"):
        check_has_effect(config, "dropout_rate", "linear")
    config.cases.linear.sweep = {"dropout_rate": (0.1, 0.2)}
    with pytest.raises(
        ConfigError, match=r"linear\.sweep contains 'dropout_rate', which"
    ):
        make_cases(config)


def test_a_misspelt_field_of_a_preset_cannot_be_set():
    config = pmnist.get_config("smoke")
    with pytest.raises(AttributeError, match='Did you mean "num_tasks"'):
        config.num_task = 3
    config.cases.redo = {"method": "redo", "redo_every": 50}
    config.sweep.redo_threshold = (0.1, 0.2)
    assert make_grid(make_cases(config)["redo"]).shape == (2, config.num_seeds)


@pytest.mark.parametrize("values", ["12", 0.1])
def test_a_sweep_must_be_a_tuple(values):
    config = tiny_digits(sweep={"step_size": values})
    with pytest.raises(
        ConfigError, match=r"sweep\.step_size is .*write \(0\.1, 0\.2\)"
    ):
        make_grid(make_cases(config)["backprop"])


def test_the_config_of_another_program_is_refused():
    with pytest.raises(ConfigError, match="no field 'sampling'.*another program"):
        prepare_cases(tiny_bits(), permuted_mnist.make_problem)


def test_a_misspelt_override_names_the_field_it_may_mean():
    config = tiny_digits(cases={"wide": {"hiden_units": 7}})
    with pytest.raises(ConfigError, match=r"wide.*hiden_units.*hidden_u"):
        make_cases(config)


def test_an_override_of_a_wrong_type_names_case_and_field():
    config = tiny_digits(cases={"wide": {"hidden_units": "seven"}})
    with pytest.raises(ConfigError, match=r"cases\.wide\.hidden_units"):
        make_cases(config)


def test_no_cases_is_an_error():
    with pytest.raises(ConfigError, match="cases"):
        make_cases(tiny_digits(cases={}))


def test_a_case_cannot_have_its_own_seeds():
    config = tiny_digits(cases={"more": {"num_seeds": 9}})
    with pytest.raises(ConfigError, match="num_seeds"):
        make_cases(config)


def test_an_override_that_cases_or_sweep_override_again_has_no_effect():
    config = tiny_digits()
    config.cases.backprop.hidden_units = 7
    check_has_effect(config, "hidden_units")  # Of the other case it has.
    check_has_effect(config, "step_size")
    with pytest.raises(ConfigError, match="cases.backprop.method"):
        check_has_effect(config, "method")
    config.sweep.step_size = (0.1,)
    with pytest.raises(ConfigError, match=r"config\.sweep\.step_size"):
        check_has_effect(config, "step_size")


def test_differences_name_fields_and_pass_over_those_without_effect():
    old = tiny_digits()
    new = tiny_digits(
        step_size=0.5, checkpoint_every=3, checkpoint_seconds=9, lanes_per_block=1
    )
    new.cases.backprop.method = "continual_backprop"
    found = provenance.config_differences(*map(provenance.to_json, (old, new)))
    assert found == [
        "cases.backprop.method: backprop -> continual_backprop",
        "step_size: 0.03 -> 0.5",
    ]
    assert not provenance.config_differences(*[provenance.to_json(old)] * 2)


def test_differences_show_fields_of_another_version():
    found = provenance.config_differences(
        '{"old": 1, "same": 2}', '{"same": 2, "new": [3]}'
    )
    assert found == ["old: 1 -> (not there)", "new: (not there) -> [3]"]


def test_a_case_may_sweep_what_its_method_takes():
    config = tiny_digits(
        cases={
            "plain": {"method": "backprop"},
            "swept": {"method": "l2_init", "sweep": {"l2_init_strength": (0.1, 0.2)}},
            "fixed": {"sweep": {"step_size": ()}},
        }
    )
    config.sweep.step_size = (0.01, 0.02, 0.03)
    cases = make_cases(complete(config))
    assert cases["swept"].sweep.l2_init_strength == (0.1, 0.2)
    assert cases["swept"].sweep.step_size == (0.01, 0.02, 0.03)
    assert "l2_init_strength" not in cases["plain"].sweep
    assert cases["fixed"].sweep.step_size == ()


def test_a_value_of_a_case_that_a_sweep_takes_the_place_of_has_no_effect():
    config = tiny_digits(cases={"own": {"method": "backprop", "step_size": 0.5}})
    config.sweep.step_size = (0.01, 0.02)
    with pytest.raises(ConfigError, match=r"own\.step_size.*own\.sweep\.step_size"):
        make_cases(config)
    config.cases.own.sweep = {"step_size": ()}
    case = make_cases(config)["own"]
    assert (case.step_size, case.sweep.step_size) == (0.5, ())


def test_a_case_cannot_sweep_what_its_method_does_not_take():
    config = tiny_digits(cases={"wrong": {"sweep": {"redo_threshold": (0.1, 0.2)}}})
    with pytest.raises(ConfigError, match=r"wrong\.sweep.*redo_threshold.*step_size"):
        make_cases(config)


def test_the_config_of_a_run_names_all_that_its_methods_take():
    config = tiny_digits(cases={"one": {"method": "redo", "normalization": "online"}})
    assert "redo_threshold" not in config
    completed = complete(config)
    assert completed.redo_threshold == 0.1
    assert completed.online_norm_forward_decay == 0.999
    assert "shrink" not in completed
    assert "redo_threshold" not in config


def test_a_sweep_of_the_config_is_of_the_cases_that_take_it():
    config = tiny_digits(
        cases={
            "plain": {"method": "backprop"},
            "adam": {"method": "backprop", "optimizer": "adam"},
            "own": {"method": "upgd"},
            "replacing": {"method": "continual_backprop"},
        }
    )
    config.sweep.update(
        replacement_rate=(0.1, 0.2), b1=(0.5, 0.9), momentum=(0.0, 0.9), step_size=(1,)
    )
    cases = make_cases(complete(config))
    swept = {
        name: [field for field, values in sorted(case.sweep.items()) if values]
        for name, case in cases.items()
    }
    assert swept == {
        "plain": ["momentum", "step_size"],
        "adam": ["b1", "step_size"],
        "own": ["step_size"],
        "replacing": ["momentum", "replacement_rate", "step_size"],
    }


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("redo_threshold", r"sweep\.redo_threshold has no effect.*go.*method redo"),
        ("b1", r"sweep\.b1 has no effect, because the cases do not take it"),
        ("rms_decay", r"rms_decay has no effect.* goes with config.optimizer rmsprop"),
        ("upgd_decay_rate", "did you mean 'decay_rate'"),
    ],
)
def test_a_sweep_that_no_case_takes_is_an_error(field, message):
    config = tiny_digits()
    config.sweep[field] = (0.1, 0.2)
    with pytest.raises(ConfigError, match=message):
        make_cases(config)


def test_an_override_that_no_case_takes_has_no_effect():
    config = tiny_digits()
    with pytest.raises(ConfigError, match=r"config\.b1 has no effect"):
        check_has_effect(config, "b1")
    check_has_effect(config, "replacement_rate")
    with pytest.raises(ConfigError, match=r"cases\.backprop\.replacement_rate has no"):
        check_has_effect(config, "replacement_rate", "backprop")
    check_has_effect(config, "replacement_rate", "continual_backprop")
    config.cases.continual_backprop.replacement_rate = 0.5
    with pytest.raises(ConfigError, match=r"it: set --config\.cases\.continual_backp"):
        check_has_effect(config, "replacement_rate")
