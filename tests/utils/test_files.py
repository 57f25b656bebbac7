"""Files are written atomically."""

import pytest

from solo_d2.utils.files import whole_file


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new" / "a.txt"
    with whole_file(target) as temporary:
        temporary.write_text("old")
        assert not target.exists()
    with pytest.raises(ZeroDivisionError), whole_file(target) as temporary:
        temporary.write_text(f"half of the new {1 / 0}")
    assert target.read_text() == "old"
    assert [p.name for p in target.parent.iterdir()] == ["a.txt"]
