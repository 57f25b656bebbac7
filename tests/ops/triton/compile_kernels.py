"""Compiles the kernels as the launchers launch them, for GPUs that need not be there.

A script, since a process that interprets kernels can't compile them:

    python tests/ops/triton/compile_kernels.py 80 90  # compute capabilities, by default all

The launchers run on CPU tensors, and each launch ends when its program is compiled to machine code.
A Markdown table shows what the programs take. The script fails if one spills registers, takes more
of them than `most_registers` or more shared memory than the GPU has, and if images of different
sizes need more programs of a kernel than `MOST_VARIANTS`.
"""

import random
import re
import sys
from collections import defaultdict
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from solo_d2.ops.triton.binary_masks import binarize_chunks_triton
from solo_d2.ops.triton.class_scores import class_scores_triton
from solo_d2.ops.triton.dynamic_masks import dynamic_masks_triton
from solo_d2.ops.triton.mask_overlap import mask_overlaps_triton
from solo_d2.ops.triton.mask_scores import mask_scores_triton
from solo_d2.ops.triton.nms_decay import matrix_nms_decay_triton
from solo_d2.ops.triton.nms_greedy import hard_nms_triton, soft_nms_triton
from solo_d2.ops.triton.paste_masks import paste_masks_triton

# KiB of shared memory that a block may have, by compute capability.
MOST_VARIANTS = 2
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}


def most_registers(kernel, capability):
    """Registers of a thread: two blocks of 256 threads fit on a multiprocessor.

    Of overlaps two blocks of 128 threads fit, or three; of dynamic masks one of 256.
    """
    overlap = 168 if capability == 90 else 232
    return {"_overlap_kernel": overlap, "_dynamic_masks_kernel": 208}.get(kernel, 128)


class Program(NamedTuple):
    case: str
    kernel: str
    threads: int
    registers: int
    spilled: int  # bytes
    shared: int  # bytes

    def __str__(self):
        spilled = f" / {self.spilled} spilled" if self.spilled else ""
        return f"{self.registers} / {round(self.shared / 1024, 2):g}{spilled}"

    def faults(self, capability):
        if self.spilled:
            yield f"spills {self.spilled} bytes"
        if self.registers > most_registers(self.kernel, capability):
            yield f"takes {self.registers} registers"
        if self.shared > SHARED[capability] * 1024:
            yield f"takes {self.shared} bytes of shared memory"


def overlaps(num=500, height=200, width=304, rows=False):
    masks = torch.empty(2 * num, height, width, dtype=torch.bool)
    index, spans = torch.arange(num), torch.zeros(2 * num, 2, dtype=torch.int32)
    known = (index, spans) if rows else ()
    mask_overlaps_triton(masks if rows else masks[:num], torch.zeros_like(index), *known)


def nms(launcher, num=500, num_pixels=200 * 304, **params):
    counts = torch.empty(num, num, dtype=torch.int32)
    launcher(counts, torch.empty(num), num_pixels, **params)


def product(dtype, num=500, channels=256, height=200, width=304):
    kernels = torch.empty(num, channels, dtype=dtype)
    dynamic_masks_triton(kernels, torch.empty(channels, height, width, dtype=dtype), 0.5)


def scores(num=1000, parts=475):
    sums = torch.empty(num, parts)
    mask_scores_triton(sums.int(), sums, torch.empty(num), torch.empty(num))


def given(num=100, height=200, width=304):
    probs = torch.empty(num, height, width)
    binarize_chunks_triton(probs.split(70), probs.shape, 0.5, probs.device)


def classes(dtype, num_classes=80, sides=(40, 36, 24, 16, 12)):
    num_cells = sum(side * side for side in sides)
    class_scores_triton(torch.empty(num_classes, num_cells, dtype=dtype), sides, 0.1)


def paste(output_size, num=100, height=200, width=304, image_size=(800, 1201)):
    out = torch.empty(num, *output_size, dtype=torch.bool)
    paste_masks_triton(torch.empty(num, height, width), 4, image_size, 0.5, out)


GAUSSIAN = {"kernel": "gaussian", "sigma": 2.0}
LINEAR = {"kernel": "linear", "sigma": 2.0}
CASES = {
    "class scores": lambda: classes(torch.float32),
    "overlaps": lambda: overlaps(),
    "overlaps in inference": lambda: overlaps(rows=True),
    "Matrix NMS, gaussian": lambda: nms(matrix_nms_decay_triton, **GAUSSIAN),
    "Matrix NMS, linear": lambda: nms(matrix_nms_decay_triton, **LINEAR),
    "Matrix NMS, 2^24 pixels": lambda: nms(matrix_nms_decay_triton, 500, 1 << 24, **GAUSSIAN),
    "hard NMS": lambda: nms(hard_nms_triton, thresh=0.5),
    "Soft-NMS, gaussian": lambda: nms(soft_nms_triton, thresh=0.5, **GAUSSIAN),
    "Soft-NMS, linear": lambda: nms(soft_nms_triton, thresh=0.5, **LINEAR),
    "masks, float32": lambda: product(torch.float32),
    "masks, bfloat16": lambda: product(torch.bfloat16),
    "masks, given probabilities": lambda: given(),
    "scores of masks": lambda: scores(),
    "paste": lambda: paste((800, 1201)),
    "paste, resized": lambda: paste((480, 640)),
}


@contextmanager
def absent_gpu(capability, run):
    """Make Triton believe in a GPU, and call `run(kernel, *args, **options)` for each launch."""
    # Triton keeps programs by device; the number of the device is the capability here.
    driver = SimpleNamespace(
        get_current_device=lambda: capability,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", capability, 32),
    )
    triton.runtime.driver.set_active(driver)
    with mock.patch.object(JITFunction, "run", run):
        yield


def compile_all(capability):
    """The different programs of all cases."""
    found, compile_kernel = {}, JITFunction.run

    def run(kernel, *args, grid, warmup, **options):
        with redirect_stdout(StringIO()) as log:
            compiled = compile_kernel(kernel, *args, grid=grid, warmup=True, **options)
        if compiled.hash not in found:
            ptxas = log.getvalue()
            registers = int(re.search(r"Used (\d+) registers", ptxas)[1])
            spilled = int(re.search(r"(\d+) bytes spill stores", ptxas)[1])
            threads, shared = compiled.metadata.num_warps * 32, compiled.metadata.shared
            found[compiled.hash] = Program(
                case, kernel.__name__, threads, registers, spilled, shared
            )

    triton.knobs.nvidia.dump_ptxas_log = True
    with absent_gpu(capability, run):
        for case in CASES:
            CASES[case]()
    return list(found.values())


def count_variants():
    """Programs of each kernel for 200 images of a data set, by Triton's own keys."""
    variants, run_kernel = defaultdict(set), JITFunction.run

    def note(*, key, fn, **_):
        variants[fn.name.rpartition(".")[2]].add(key)
        return True  # as if it were compiled

    def run(kernel, *args, grid, warmup, **options):
        run_kernel(kernel, *args, grid=grid, warmup=True, **options)

    triton.knobs.runtime.jit_cache_hook = note
    draw = random.Random(0)
    with absent_gpu(75, run):  # one that nothing was compiled for
        for _ in range(200):
            size = draw.randint(200, 640), draw.randint(200, 640)
            scale = min(800 / min(size), 1333 / max(size))
            image_size = tuple(round(side * scale) for side in size)
            # Padded as networks need it, or, which is harder, hardly at all.
            stride = draw.choice([32, 4])
            padded = tuple(-(-side // stride) * stride // 4 for side in image_size)
            many, few = draw.randint(1, 500), draw.randint(1, 20)
            overlaps(few, *padded, rows=draw.random() < 0.5)
            nms(matrix_nms_decay_triton, many, padded[0] * padded[1], **GAUSSIAN)
            nms(hard_nms_triton, many, thresh=0.5)
            nms(soft_nms_triton, many, thresh=0.5, **GAUSSIAN)
            product(torch.float32, few, 8, *padded)
            scores(few, many)
            given(few, *padded)
            paste(draw.choice([size, image_size]), few, *padded, image_size)
    triton.knobs.runtime.jit_cache_hook = None
    return {kernel: len(keys) for kernel, keys in variants.items()}


def report(capabilities):
    """Print the table; return what is wrong."""
    table, faults = defaultdict(dict), []
    for capability in capabilities:
        for program in compile_all(capability):
            row = f"`{program.kernel}`", program.case, str(program.threads)
            table[row][capability] = str(program)
            for fault in program.faults(capability):
                faults.append(f"sm_{capability}: {program.kernel} ({program.case}) {fault}")
    rows = [("kernel", "launched for", "threads", *(f"sm_{c}" for c in capabilities))]
    rows += [("---",) * len(rows[0])]
    for row, programs in table.items():
        rows.append((*row, *(programs.get(c, "as above") for c in capabilities)))
    sys.stdout.writelines(f"| {' | '.join(row)} |\n" for row in rows)
    return faults


def main():
    faults = report([int(name) for name in sys.argv[1:]] or list(SHARED))
    variants = count_variants()
    sys.stdout.write(f"\nprograms of each kernel for images of 200 sizes: {variants}\n")
    faults += [f"{name}: {n} programs" for name, n in variants.items() if n > MOST_VARIANTS]
    sys.exit("\n".join(faults) or 0)


if __name__ == "__main__":
    main()
