"""Flags that set fields which the config's file leaves out."""

import pathlib

from absl import flags
import pytest

from experiments.run.config import complete, define_config_flag, make_cases

# It loads a config's file by a function that Python will drop.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

PMNIST = pathlib.Path(__file__).parents[2] / "configs" / "pmnist.py"


def parse(*arguments, preset=""):
    """The config of the default job, overridden."""
    arguments = ["program", f"--config={PMNIST}{preset}", *arguments]
    values = flags.FlagValues()
    holder = define_config_flag(arguments, values)
    values(arguments)
    return holder.value


def test_a_case_gets_a_field_that_its_file_leaves_out():
    config = parse(
        "--config.cases.backprop.step_size=1",
        "--config.cases.backprop.activation",
        "tanh",
        "--config.cases.backprop.timed_task.rank_every=7",
        "--config.step_size=0.5",
    )
    assert config.cases.backprop.step_size == 1.0
    assert isinstance(config.cases.backprop.step_size, float)
    cases = make_cases(config)
    assert {name: case.step_size for name, case in cases.items()} == {
        "backprop": 1.0,
        "continual_backprop": 0.5,
    }
    assert [case.activation for case in cases.values()] == ["tanh", "relu"]
    assert cases["backprop"].timed_task.rank_every == 7
    assert config.timed_task.rank_every == 0
    with pytest.raises(AttributeError):  # Locked as before.
        config.new = 1


def test_a_case_gets_a_sweep_of_its_own():
    config = parse("--config.cases.backprop.sweep.step_size=(0.1,0.2)")
    cases = make_cases(config)
    assert cases["backprop"].sweep.step_size == (0.1, 0.2)
    assert cases["continual_backprop"].sweep.step_size == ()


def test_a_case_gets_another_method_and_what_this_takes():
    config = parse(
        "--config.cases.continual_backprop.method=redo",
        "--config.cases.continual_backprop.redo_every=50",
        "--config.sweep.redo_threshold=(0.1,0.2)",
    )
    case = make_cases(complete(config))["continual_backprop"]
    assert (case.method, case.redo_every) == ("redo", 50)
    assert case.sweep.redo_threshold == (0.1, 0.2)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("cases.backprp.step_size=1", "no case 'backprp': did you mean 'backprop'"),
        ("cases.backprop.stepsize=1", "'stepsize': did you mean 'step_size'"),
        ("cases.backprop.num_seeds=3", r"cannot set 'num_seeds'.*--config\.num_seeds"),
        ("cases.backprop.step_size=a", r"cases\.backprop\.step_size=a: could not"),
        ("cases.backprop.hidden_units=2.5", r"hidden_units=2.5: invalid"),
        ("cases.backprop.sweep.stepsize=(1,)", "'stepsize': did you mean 'step_size'"),
        ("cases.backprop.sweep.activation=(1,)", "'activation'.*each value a case"),
        ("sweep.replacment_rate=(1,)", "did you mean 'replacement_rate'"),
        (
            "sweep.hidden_units=(1,)",
            r"'hidden_units'.*each value a case in config\.cases",
        ),
    ],
)
def test_what_cannot_be_set_is_named_in_one_line(flag, message):
    with pytest.raises(flags.Error, match=message) as error:
        parse(f"--config.{flag}")
    assert len(str(error.value).strip().splitlines()) == 1
