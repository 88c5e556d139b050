"""The help of a program: every field of its config, with value and meaning."""

import re

from programs import run_program
import pytest

from configs import imagenet, labels, pmnist, scr, warm_start
from experiments.learning.hyperparameters import HYPERPARAMETERS
from experiments.run.config import complete
from experiments.run.help import FIELDS, help_text, meaning

CONFIGS = [
    complete(module.get_config(preset))
    for module in (imagenet, labels, pmnist, scr, warm_start)
    for preset in ("default", "methods")
]


def test_every_field_has_a_meaning_and_every_meaning_a_field():
    fields = {field for config in CONFIGS for field in config}
    assert not [field for field in fields if not meaning(field)]
    assert FIELDS.keys() | HYPERPARAMETERS.keys() == fields
    assert not FIELDS.keys() & HYPERPARAMETERS.keys()


@pytest.mark.parametrize("config", CONFIGS)
def test_help_names_each_field_once_with_its_value(config):
    text = help_text("About it.", "experiments.run.command_line", config)
    rows = re.findall(r"^  (\w+) +(\S+)", text, re.MULTILINE)
    assert [name for name, _ in rows] == list(config)
    values = dict(rows)
    assert values["num_tasks"] == str(config.num_tasks)
    assert "fraction of eligible units replaced per update, in [0, 1]; 0 is off" in (
        " ".join(text.split())
    )
    assert max(map(len, text.splitlines())) <= 88


def test_a_field_that_nobody_has_described_is_listed():
    config = complete(pmnist.get_config("smoke"))
    with config.unlocked():
        config.angle = 0.5
    text = help_text("", "experiments.run.command_line", config)
    assert re.search(r"^  angle +0\.5 +-$", text, re.MULTILINE)


def test_the_command_shows_its_flags_and_the_chosen_config():
    done = run_program(
        *("permuted_mnist", "--help", "--config=configs/pmnist.py:smoke"),
        "--config.hidden_units=7",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Online Permuted MNIST")
    assert re.search(r"^  hidden_units +7 +units per", done.stdout, re.MULTILINE)
    for flag in ("--workdir", "--cases", "--hook", "--profile"):
        assert re.search(rf"^  {flag} ", done.stdout, re.MULTILINE)
