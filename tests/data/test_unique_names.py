"""Classes of one name have different keys."""

import pytest

from solo_d2.data.unique_names import unique_class_names, unique_names


@pytest.mark.parametrize(
    ("names", "ids", "expected"),
    [
        ([], [], []),
        (["cat", "dog"], [3, 5], ["cat", "dog"]),
        (["cat", "dog", "cat"], [3, 5, 12], ["cat", "dog", "cat (id 12)"]),
        (["cat", "cat", "cat"], [1, 2, "x"], ["cat", "cat (id 2)", "cat (id x)"]),
        # A class that already has the name with an id keeps it.
        (["a", "a", "a (id 2)"], [1, 2, 3], ["a", "a (id 2) (id 2)", "a (id 2)"]),
        (["a (id 2)", "a", "a"], [3, 1, 2], ["a (id 2)", "a", "a (id 2) (id 2)"]),
    ],
)
def test_later_classes_of_a_name_get_their_id(names, ids, expected):
    assert unique_names(names, ids) == expected
    assert len(set(expected)) == len(names)


def test_stuff_that_is_named_like_the_label_of_all_things():
    metadata = {
        "stuff_classes": ["things", "things", "sky"],
        "stuff_dataset_id_to_contiguous_id": {0: 0, 9: 1, 21: 2},
    }
    assert unique_class_names(metadata, "stuff") == ["things", "things (id 9)", "sky"]
