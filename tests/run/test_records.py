"""Append-only records: what is behind, cut off or damaged."""

import numpy as np
import pytest

from experiments.run.storage import RecordError, RecordFile


def block(number):
    rng = np.random.default_rng(number)
    return {
        "loss": rng.normal(size=(3, 1 + number)).astype(np.float32),
        "dead": rng.random((3, 1 + number, 2)) < 0.5,
        "none": np.zeros((0, 4), np.int64),
    }


def assert_are(records, numbers):
    assert len(records) == len(numbers)
    for record, number in zip(records, numbers, strict=True):
        assert list(record) == list(block(number))
        for name, wanted in block(number).items():
            assert record[name].dtype == wanted.dtype
            np.testing.assert_array_equal(record[name], wanted)


@pytest.fixture
def written(tmp_path):
    """A file of three records, its two copies, and where each record ends."""
    file, ends = RecordFile(tmp_path / "new" / "records"), [0]
    for number in range(3):
        ends.append(file.append(ends[-1], block(number)))
    return file, [tmp_path / "new" / name for name in ("records", "records.copy")], ends


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_records_come_back_up_to_where_they_are_asked_for(written):
    file, _, ends = written
    for number, end in enumerate(ends):
        assert_are(file.read(end), range(number))


def test_what_a_killed_process_left_behind_is_overwritten(written):
    """It died while it wrote the second record, the first copy or the second."""
    file, paths, ends = written
    paths[0].write_bytes(paths[0].read_bytes()[: ends[1] + 70])
    paths[1].write_bytes(paths[1].read_bytes()[: ends[1]])
    assert_are(file.read(ends[1]), [0])
    assert not file.repair(ends[1])
    assert_are(file.read(file.append(ends[1], block(7))), [0, 7])
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_every_flipped_bit_is_noticed_and_taken_from_the_other_copy(written):
    """Damage in one record of one copy, and in another record of the other."""
    file, paths, ends = written
    whole = paths[0].read_bytes()
    for place in range(ends[1], ends[2]):
        flip(paths[0], place)
        flip(paths[1], ends[2] + 3)
        assert_are(file.read(ends[3]), range(3))
        assert file.repair(ends[3]) == paths
        assert [path.read_bytes() for path in paths] == [whole, whole]


def test_damage_of_both_copies_is_an_error_only_for_what_is_damaged(written):
    file, paths, ends = written
    for path in paths:
        flip(path, ends[2] - 1)
    assert_are(file.read(ends[1]), [0])
    for end in ends[2:]:
        with pytest.raises(RecordError, match="records"):
            file.read(end)
    paths[0].unlink()
    with pytest.raises(RecordError, match="records"):
        file.repair(ends[3])


def test_a_file_that_was_deleted_is_not_filled_up_with_zeros(written):
    file, paths, ends = written
    paths[1].unlink()
    with pytest.raises(OSError, match=r"records\.copy has lost earlier records"):
        file.append(ends[3], block(3))
