"""Jobs of two processes on the CPU: what they compute is what one process computes."""

import json

import pytest
import torch

from solo_d2.engine import Trainer, evaluate, setup
from solo_d2.engine.launch import JobError, launch
from tests import jobs


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in each of the processes: sums in another order have other last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def forked():
    """Start processes by forking, which saves their imports."""
    with pytest.MonkeyPatch.context() as patch:
        start = torch.multiprocessing.start_processes
        patch.setattr(torch.multiprocessing, "start_processes", jobs.fork(start))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jobs")
    jobs.make_data(folder)
    jobs.write_config(folder)
    (folder / "several").mkdir()
    return folder


@pytest.fixture(scope="module")
def killed(folder, forked):
    """What two processes left before one of them was killed, and the error of the job."""
    args = jobs.parse_args(
        *("--config-file", folder / "config.yaml", "--num-processes", 2),
        *("OUTPUT_DIR", folder / "several"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JOB_FOLDER", str(folder))
        with pytest.raises(JobError) as error:
            launch(jobs.main, args)
    return torch.load(folder / "several/processes.pth"), error.value


@pytest.mark.parametrize("name", jobs.BATCHES)
def test_gradients_are_those_of_one_process(killed, name):
    expected, found = jobs.gradients(name), killed[0]["gradients"][name]
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-6, msg=f"{key} {name}")
    largest = max(value.abs().max() for value in expected.values())
    assert largest > 1e-3


@pytest.mark.parametrize("name", jobs.PREDICTED)
def test_metrics_are_those_of_one_process(killed, name, tmp_path, monkeypatch):
    monkeypatch.setenv("JOB_FOLDER", str(tmp_path))
    expected, found = jobs.metrics(name), killed[0]["metrics"][name]
    assert expected["segm"]["AP"] > 1
    for task, values in expected.items():
        assert found[task] == pytest.approx(values, rel=0, abs=1e-9, nan_ok=True)


def test_all_stop_together_above_the_limit_of_unreadable_images(killed):
    both = killed[0]["stopped"]["unreadable"]
    assert both[0] == both[1]
    assert both[0]["weight"] == 0.5  # the first step was taken, the second not
    listed = [line for line in both[0]["said"].splitlines() if line.startswith("  ")]
    assert listed == ["  a.jpg: torn", "  b.jpg: empty"]


def test_all_stop_together_for_the_bad_numbers_of_one(killed, folder):
    both = killed[0]["stopped"]["numbers"]
    assert both[0] == both[1]
    assert both[0]["weight"] == 0.5
    assert "loss is nan in process 1. Training stops" in both[0]["said"]
    assert "Images: bad.jpg." in both[0]["said"]
    dump = torch.load(folder / "several/numbers/bad_step_0000001.pth", weights_only=True)
    assert list(dump["batches"]) == [1]
    assert dump["batches"][1][0]["file_name"] == "bad.jpg"
    assert dump["model"]["weight"].item() == 0.5
    assert str(folder / "several/numbers/bad_step_0000001.pth") in both[0]["said"]


def test_a_killed_process_ends_the_job(killed, folder):
    assert "process 1 terminated with signal SIGKILL" in str(killed[1])
    assert "--resume" in str(killed[1])
    last = (folder / "several/last_checkpoint").read_text()
    assert last == f"model_{jobs.CHECKPOINT - 1:07}.pth"


@pytest.fixture(scope="module")
def resumed(killed, folder):
    """The folder of the training that was killed, resumed by torchrun."""
    words = "--config-file", folder / "config.yaml", "--resume", "OUTPUT_DIR", folder / "several"
    jobs.torchrun(2, *map(str, words))
    return folder / "several"


def weights(folder, name="model_final.pth"):
    return torch.load(folder / name, weights_only=True)["model"]


def test_resumed_by_torchrun_it_ends_where_one_process_does(resumed, folder, tmp_path):
    args = ["--config-file", folder / "config.yaml", "OUTPUT_DIR", tmp_path, "TEST.EVAL_PERIOD", 0]
    trainer = Trainer(setup(jobs.parse_args(*args)))
    trainer.resume_or_load(resume=False)
    trainer.train()
    before = weights(resumed, f"model_{jobs.CHECKPOINT - 1:07}.pth")
    found, expected = weights(resumed), weights(tmp_path)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6, msg=key)
    moved = max((found[key] - before[key]).abs().max() for key in found)
    assert moved > 1e-4


def predicted(folder):
    """All predictions, in an order that does not depend on who made them."""
    file = folder / "inference/job_val/coco_instances_results.json"
    results = json.loads(file.read_text())
    assert {result["image_id"] for result in results} == {1, 2, 3, 4, 5}
    return sorted(json.dumps(result, sort_keys=True) for result in results)


def test_each_image_is_evaluated_once(resumed, folder, tmp_path):
    """At the end of the training by torchrun."""
    options = ["--config-file", folder / "config.yaml", "--eval-only", "MODEL.WEIGHTS"]
    options += [resumed / "model_final.pth", "OUTPUT_DIR", tmp_path]
    # Evaluations during training run the model as it is trained.
    options += ["TEST.SPEED.FUSE_BN", "False", "TEST.SPEED.CHANNELS_LAST", "False"]
    evaluate(setup(jobs.parse_args(*options)))
    assert predicted(resumed) == predicted(tmp_path)
    assert json.loads((resumed / "evaluation.json").read_text()) == json.loads(
        (tmp_path / "evaluation.json").read_text()
    )
