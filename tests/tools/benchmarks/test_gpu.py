"""`benchmark.py gpu`, as a trial run on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tools import benchmark
from tools.benchmarks import gpu, gpu_checks

ROOT = Path(__file__).resolve().parents[3]


def run(output, *words):
    """Exit code and what was saved."""
    code = benchmark.main(["gpu", "--device", "cpu", "--output", str(output), *words])
    return code, json.loads(output.read_text())


@pytest.mark.detectron2
def test_all_parts(tmp_path, capsys):
    pytest.importorskip("detectron2")
    code, saved = run(tmp_path / "gpu.json")
    assert code == 0
    assert saved["trial"]
    assert list(saved) == ["trial", *gpu.PARTS]
    assert saved["machine"]["measured"]["copy GB/s"] > 0
    assert saved["correctness"]["wrong"] == {}
    assert saved["correctness"]["checks"] > 40
    (nms,) = (x for x in saved["nms"].values() if isinstance(x, dict))
    assert {"latency", "back_to_back_ms", "graph", "kernels", "plain"} <= nms.keys()
    assert nms["kernels"]["longest"][0]["microseconds"] > 0
    assert saved["postprocess"]["instances"] > 0
    for part in ("inference", "training"):
        (case,) = (x for x in saved[part].values() if isinstance(x, dict))
        assert case["images_per_second"] > 0
    assert "wrong: nothing" in capsys.readouterr().out


def test_without_a_gpu_it_ends_with_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark.main(["gpu", "--output", str(tmp_path / "gpu.json")]) == 2
    said = capsys.readouterr().err
    assert "no CUDA device" in said
    assert "--device cpu" in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_each_part_is_saved_and_one_that_fails_costs_no_other(tmp_path, monkeypatch):
    seen = []

    def fail(_meter):
        seen.append(json.loads((tmp_path / "gpu.json").read_text()))
        raise RuntimeError("an illegal memory access was encountered")

    def missing(_meter):
        raise ModuleNotFoundError("No module named 'detectron2'")

    parts = {"first": lambda _: {"value": 1}, "bad": fail, "missing": missing}
    monkeypatch.setattr(gpu, "PARTS", parts)
    code, saved = run(tmp_path / "gpu.json")
    assert code == 1
    assert seen[0]["first"]["value"] == 1
    assert "illegal memory" in saved["bad"]["error"]
    assert "detectron2" in saved["missing"]["unavailable"]
    monkeypatch.setattr(gpu, "PARTS", {"first": parts["first"], "missing": missing})
    code, saved = run(tmp_path / "gpu.json")
    assert code == 0
    code, saved = run(tmp_path / "gpu.json", "--minutes", "0")
    assert code == 0
    assert "0 are over" in saved["first"]["skipped"]


def test_a_wrong_kernel_is_found(tmp_path, monkeypatch):
    right = gpu_checks.mask_overlaps

    def wrong(masks, groups, *, backend):
        found = right(masks, groups, backend=backend)
        return found + found.diagonal().diag() if len(masks) == 17 else found

    monkeypatch.setattr(gpu_checks, "mask_overlaps", wrong)
    monkeypatch.setattr(gpu_checks, "paste_masks", None)
    code, saved = run(tmp_path / "gpu.json", "--parts", "correctness")
    assert code == 1
    found = saved["correctness"]["wrong"]
    assert found["overlaps, 17 of 7x13 on cpu"] == "17 of 17x17 counts differ"
    assert "TypeError" in found["paste, 1 of 7x13 on cpu"]
    assert all(name.startswith(("overlaps, 17", "paste")) for name in found)


def test_checks_see_what_is_never_written():
    with gpu_checks.written_nowhere():
        assert torch.empty(3).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_it_needs_torch_and_numpy_alone(tmp_path):
    program = """
import sys
for name in ("detectron2", "pycocotools", "cv2", "fvcore", "tabulate", "yacs", "PIL", "scipy"):
    sys.modules[name] = None  # an import of them fails
sys.path.insert(0, "tools")
import benchmark
sys.exit(benchmark.main(sys.argv[1:]))
"""
    words = ["gpu", "--device", "cpu", "--parts", "machine", "postprocess", "inference"]
    output = tmp_path / "gpu.json"
    command = [sys.executable, "-c", program, *words, "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    saved = json.loads(output.read_text())
    assert "error" not in saved["postprocess"]
    assert "detectron2" in saved["inference"]["unavailable"]
