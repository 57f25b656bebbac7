"""Decoding as CUDA graphs, with recordings that are made up: what is kept, for which sizes."""

import copy
import pickle
from dataclasses import dataclass, replace

import pytest
import torch

from solo_d2.modeling import decode_graphs
from solo_d2.modeling.decode_graphs import DecodeGraphs
from tests.fakes import kernel_outputs
from tests.test_inference import golden_outputs, make_decoder, sizes


@pytest.fixture
def recorded(monkeypatch):
    """Records as Python calls; the list has the sizes of those that were replayed."""
    replayed = []

    @dataclass
    class Graph:
        run: object = None

        def replay(self):
            self.run()

    def record(self, decoder, outputs, sizes):
        inputs = decode_graphs.map_tensors(torch.clone, outputs)
        results, counts = decoder.decode_lanes(inputs, sizes)

        def run():
            replayed.append(sizes)
            new, new_counts = decoder.decode_lanes(inputs, sizes)
            for one, other in zip(results, new, strict=True):
                for name, value in vars(other).items():
                    getattr(one, name).copy_(value)
            counts.copy_(new_counts)

        return decode_graphs._Graph(Graph(run), decode_graphs._tensors(inputs), results, counts)

    monkeypatch.setattr(DecodeGraphs, "_record", record)
    return replayed


def changed(seed):
    """The golden outputs with other classes."""
    outputs, generator = golden_outputs(), torch.Generator().manual_seed(seed)
    logits = [x + torch.randn(x.shape, generator=generator) for x in outputs.class_logits]
    return replace(outputs, class_logits=logits)


def test_replays_find_what_calls_find_and_results_are_kept(recorded):
    decoder = make_decoder(fixed=True)
    graphed = replace(decoder, run_lanes=DecodeGraphs())
    both = sizes("", "image_size"), sizes("", "output_size")
    inputs = [changed(seed) for seed in range(4)]
    found = [graphed.decode(x, *both) for x in inputs]
    assert len(recorded) == 3  # the first call of a size is plain
    for one, x in zip(found, inputs, strict=True):
        for a, b in zip(one, decoder.decode(x, *both), strict=True):
            assert all(torch.equal(v, getattr(b, k)) for k, v in vars(a).items())


def test_first_sizes_that_come_again_get_a_graph(recorded, monkeypatch):
    monkeypatch.setattr(decode_graphs, "MOST_GRAPHS", 2)
    graphed = replace(make_decoder(fixed=True), run_lanes=DecodeGraphs())
    for side in (40, 50, 60, 70, 40, 50, 60, 70, 60):
        graphed.decode(golden_outputs(), [(119, 151)] * 2, [(side, side)] * 2)
    assert [found[0][1] for found in recorded] == [(40, 40), (50, 50)]
    # A threshold of the caller is no recorded one.
    replace(graphed, keep_thresh=0.5).decode(golden_outputs(), [(119, 151)] * 2, [(40, 40)] * 2)
    assert len(recorded) == 2


def test_what_can_not_be_recorded_runs_without(monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", fail)
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.no_grad())
    decoder = make_decoder(fixed=True)
    graphed = replace(decoder, run_lanes=DecodeGraphs())
    both = [(119, 151)] * 2, [(50, 60)] * 2
    expected = decoder.decode(golden_outputs(), *both)
    for _ in range(3):
        found = graphed.decode(golden_outputs(), *both)
        assert torch.equal(found[0].masks, expected[0].masks)
    assert caplog.text.count("Decoding runs without CUDA graphs: operation not permitted") == 1


def test_outputs_with_tensors_in_other_containers_run_without(recorded):
    outputs = golden_outputs()

    @dataclass(frozen=True)
    class Outputs(type(outputs)):
        extra: dict

    graphed = replace(make_decoder(fixed=True), run_lanes=DecodeGraphs())
    for _ in range(2):
        graphed.decode(Outputs(**vars(outputs), extra={}), [(119, 151)] * 2, [(50, 60)] * 2)
    assert recorded == []


def test_copies_record_their_own():
    graphs = DecodeGraphs()
    graphs._graphs["size"] = lambda: None  # cannot be pickled
    for twin in (copy.deepcopy(graphs), pickle.loads(pickle.dumps(graphs))):
        assert twin._graphs == {}


def test_the_best_of_an_empty_image(recorded):
    outputs = kernel_outputs(
        [torch.full((1, 1, 4, 4), -9.0)], [torch.ones(1, 1, 4, 4)], torch.ones(1, 1, 8, 8)
    )
    graphed = replace(make_decoder((4,), (8,), fixed=True), run_lanes=DecodeGraphs())
    for _ in range(2):
        assert graphed.decode(outputs, [(30, 32)], [(15, 16)])[0].masks.shape == (0, 15, 16)
    assert len(recorded) == 1
