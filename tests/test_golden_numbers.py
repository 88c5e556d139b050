"""The helpers that pin numbers: what fails, what is written, what is evaluated."""

from golden_numbers import Golden
import jax
import jax.numpy as jnp
import numpy as np
from op_by_op import op_by_op
import pytest

LARGE = np.sin(np.arange(30, dtype=np.float32)).reshape(5, 6)
FOUND = {"loss": np.float32(2), "age": np.arange(3), "w": LARGE, "who": "[1] [0, 2]"}


@pytest.fixture(autouse=True)
def _neither_renewed_nor_in_parallel(monkeypatch):
    monkeypatch.delenv("UPDATE_GOLDEN", raising=False)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)


@pytest.fixture
def golden(tmp_path, monkeypatch):
    """A file with one entry."""
    golden = Golden("numbers", __file__, folder=tmp_path)
    with monkeypatch.context() as patch:
        patch.setenv("UPDATE_GOLDEN", "1")
        golden.check("entry", FOUND)
    return golden


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"loss": np.float32(2.001)}, r"loss is 2.00\d*, expected 2.0"),
        ({"loss": np.float32(np.nan)}, "loss is None, expected 2.0"),
        ({"age": np.array([0, 1, 3])}, r"age\[2\] is 3, expected 2"),
        ({"age": np.arange(4)}, "age has another shape"),
        ({"w": LARGE * 1.001}, r"w some\[1\] is .*\n(.*\n)+.*w root mean square is"),
        ({"w": LARGE[:, ::-1]}, "w mean of number x place / size is"),
        ({"w": LARGE.reshape(6, 5)}, r"w shape\[0\] is 6, expected 5"),
        ({"who": "[1] [0]"}, r"who is \[1\] \[0\], expected \[1\] \[0, 2\]"),
        ({"more": np.zeros(1)}, "more is new"),
    ],
)
def test_a_change_is_named_with_how_to_renew(golden, changed, message):
    golden.check("entry", FOUND)
    with pytest.raises(pytest.fail.Exception, match=message) as error:
        golden.check("entry", FOUND | changed)
    command = "UPDATE_GOLDEN=1 python -m pytest -m '' tests/test_golden_numbers.py"
    assert str(error.value).endswith(command)


def test_rounding_is_no_change_and_is_not_written(golden, tmp_path, monkeypatch):
    rounded = {"w": LARGE * np.float32(1 + 3e-6), "loss": np.float32(2.00001)}
    golden.check("entry", FOUND | rounded)
    before = (tmp_path / "numbers.json").read_text()
    monkeypatch.setenv("UPDATE_GOLDEN", "1")
    golden.check("entry", FOUND | rounded)
    assert (tmp_path / "numbers.json").read_text() == before
    golden.check("entry", FOUND | {"loss": np.float32(3)})
    monkeypatch.delenv("UPDATE_GOLDEN")
    golden.check("entry", FOUND | {"loss": np.float32(3)})


def test_an_entry_that_is_missing_or_not_checked_fails(golden, monkeypatch):
    with pytest.raises(pytest.fail.Exception, match="there is no such entry"):
        golden.check("other", FOUND)
    golden.check_names(["entry", "other"])
    with pytest.raises(pytest.fail.Exception, match=r"no test checks \['entry'\]"):
        golden.check_names(["other"])
    monkeypatch.setenv("UPDATE_GOLDEN", "1")
    golden.check_names(["other"])
    monkeypatch.delenv("UPDATE_GOLDEN")
    golden.check_names([])


def test_processes_that_run_side_by_side_cannot_renew(golden, monkeypatch):
    monkeypatch.setenv("UPDATE_GOLDEN", "1")
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    with pytest.raises(pytest.fail.Exception, match="without -n"):
        golden.check("other", FOUND)


def test_op_by_op_is_the_compiled_function():
    def draw(key):
        keys = jax.random.split(key, 3)
        keys = jax.vmap(jax.random.fold_in)(keys, jnp.arange(3))
        return jax.vmap(lambda key: jax.random.normal(key, (4, 5)))(keys)

    def function(key, x):
        def body(total, row):
            total = jax.lax.cond(row[0] > 0, jnp.add, jnp.subtract, total, row)
            return total, jax.nn.relu(total).sum()

        weights = draw(key)
        products = jnp.einsum("bij,bjk->bik", weights, weights.swapaxes(1, 2))
        found = jax.lax.scan(body, x, weights.reshape(-1, 5), reverse=True)
        words = jax.lax.bitcast_convert_type(x, jnp.int32)
        return {
            "scan": found,
            "products": products,
            "gradient": jax.grad(lambda x: (jnp.tanh(x)[1:] ** 3).mean())(x),
            "places": jnp.argmax(weights, axis=1),
            "halves": jnp.pad(words // 3, (1, 2)) % 7,
            "shifted": jax.lax.shift_right_logical(words, 5),
            "key": jax.random.key_data(jax.random.split(key)[1]),
        }

    arguments = jax.random.key(3), jnp.linspace(-2, 3, 5)
    evaluated = op_by_op(function)
    for _ in range(2):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6),
            evaluated(*arguments),
            jax.jit(function)(*arguments),
        )
        arguments = jax.random.key(4), arguments[1] ** 2
