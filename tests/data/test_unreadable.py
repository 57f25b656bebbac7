"""Image files that cannot be read in training: others take their place, up to a limit."""

import itertools
import logging

import numpy as np
import pytest
import torch

from solo_d2.data.copy_paste import CopyPaste
from solo_d2.data.loader import make_train_loader
from solo_d2.data.unreadable import UNREADABLE, UnreadableImages
from solo_d2.utils.errors import DatasetError, UnreadableImageError
from tests.modeling.tiny import image

pytestmark = pytest.mark.detectron2

NUM = 12
BAD = (1, 4, 5)


def records(bad=BAD, num=NUM):
    """Two alternating shapes; reading those in `bad` fails."""
    return [
        {"file_name": f"{i}.jpg", "width": 60 + 20 * (i % 2), "height": 70, "bad": i in bad}
        for i in range(num)
    ]


def read(record):
    if record["bad"]:
        name = record["file_name"]
        raise UnreadableImageError(f"{name} cannot be read: torn", name, "torn")
    return {**record, "drawn": np.random.random() + torch.rand(()).item()}


def batches(count=20, *, bad=BAD, num=NUM, workers=0, start=0, limit=NUM, mapper=read):
    loader = make_train_loader(
        records(bad, num),
        mapper,
        total_batch_size=2,
        seed=3,
        num_workers=workers,
        max_unreadable=limit,
    )
    loader.batch_sampler.start_batch = start
    return list(itertools.islice(iter(loader), count))


def test_others_take_their_place_and_nothing_else_changes():
    replaced = set()
    for with_bad, without in zip(batches(), batches(bad=()), strict=True):
        for sample, expected in zip(with_bad, without, strict=True):
            notes = sample.pop(UNREADABLE, {})
            if int(expected["file_name"][:-4]) in BAD:
                assert expected["file_name"] in notes
                replaced.add(sample["file_name"])
                # No batch mixes shapes.
                assert sample["width"] == expected["width"]
                assert not sample["bad"]
            else:
                assert notes == {}
                assert sample == {**expected, "bad": False}
    assert len(replaced) > 2  # random ones, not always the same


def test_what_takes_their_place_does_not_depend_on_workers_or_resume():
    whole = batches(12)
    assert any(UNREADABLE in sample for batch in whole for sample in batch)
    assert batches(8, workers=2, start=4) == whole[4:]
    assert batches(8, start=4) == whole[4:]


def test_other_shapes_are_taken_when_there_is_no_other_image():
    even = range(0, NUM, 2)
    taken = {x["file_name"] for batch in batches(bad=even) for x in batch}
    assert taken <= {f"{i}.jpg" for i in range(1, NUM, 2)}


@pytest.mark.parametrize(("workers", "limit"), [(0, 0), (0, 4), (0, 100), (1, 4)])
def test_it_ends_when_all_images_are_bad(workers, limit):
    tried = []

    def mapper(record):
        tried.append(record["file_name"])
        return read(record)

    with pytest.raises(DatasetError, match="cannot be read") as error:
        batches(1, bad=range(NUM), workers=workers, limit=limit, mapper=mapper)
    listed = [line for line in str(error.value).splitlines() if line.endswith(".jpg: torn")]
    assert len(listed) == min(limit + 1, NUM)
    if workers == 0:
        assert len(tried) == 2 * len(listed)  # for both samples of the batch
    assert "tools/check_dataset.py" in str(error.value)
    assert "Traceback" not in str(error.value)
    reason = "no other image is left" if limit >= NUM else f"MAX_UNREADABLE_IMAGES is {limit}"
    assert reason in str(error.value)


def test_each_file_is_counted_and_logged_once(caplog):
    counter = UnreadableImages(limit=2)
    sample = {"image": 1, UNREADABLE: {"a.jpg": "torn", "b.jpg": "empty"}}
    with caplog.at_level(logging.WARNING, logger="solo_d2"):
        for batch in ([sample, {"image": 2}], [{UNREADABLE: {"a.jpg": "torn"}}]):
            found = counter.take_new(batch)
            counter.add(found)
            assert not any(UNREADABLE in sample for sample in batch)
    assert found == {}
    assert [record.message.split(".")[0] for record in caplog.records] == ["a", "b"]
    assert "b.jpg cannot be read: empty" in caplog.text
    with pytest.raises(DatasetError) as error:
        counter.add({"c.jpg": "no image"})
    for line in ("  a.jpg: torn", "  b.jpg: empty", "  c.jpg: no image", "UNREADABLE_IMAGES is 2"):
        assert line in str(error.value)


def test_copy_paste_takes_nothing_from_a_file_that_cannot_be_read():
    def mapper(record):
        return {**read(record), **image(seed=1)}

    good, bad = records(bad=(1,), num=2)
    paste = CopyPaste(mapper, [bad], prob=1.0, instance_prob=1.0)
    sample = paste(good)
    assert sample[UNREADABLE] == {"1.jpg": "torn"}
    assert torch.equal(sample["image"], image(seed=1)["image"])
    with pytest.raises(UnreadableImageError):
        paste(bad)  # the loader takes another one
