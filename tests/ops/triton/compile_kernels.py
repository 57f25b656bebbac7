"""Compiles every kernel for CUDA devices that need not be there, down to machine code.

A script, since a process that interprets kernels can't compile them: `python compile_kernels.py`.
Argument types are written as Triton writes them; an integer that is 1 becomes a constant, which is
another program, so both are compiled.
"""

import sys
from itertools import product

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from solo_d2.ops.triton import dynamic_masks, mask_overlap, nms_decay, nms_greedy, paste_masks

CAPABILITIES = (90,)
INT, LONG, FLOAT, BYTE = "*i32", "*i64", "*fp32", "*i8"
TILE = {"BLOCK_ROWS": nms_decay.BLOCK_ROWS, "BLOCK_COLUMNS": nms_decay.BLOCK_COLUMNS}


def variants(**choices):
    return [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]


# Kernel, types of its arguments, constants.
KERNELS = [
    (
        mask_overlap._extent_kernel,
        {"masks": BYTE, "areas": INT, "firsts": INT, "lasts": INT, "num_pixels": "i32"},
        [{"BLOCK": mask_overlap.BLOCK_SCAN}],
    ),
    (
        mask_overlap._overlap_kernel,
        {"masks": BYTE, "order": LONG, "groups": LONG, "firsts": INT, "lasts": INT}
        | {"overlaps": INT, "num_masks": "i32", "num_pixels": "i32"},
        [
            {
                "SPLITS": mask_overlap.SPLITS,
                "BLOCK_MASKS": mask_overlap.BLOCK_MASKS,
                "BLOCK_PIXELS": mask_overlap.BLOCK_PIXELS,
            }
        ],
    ),
    (
        nms_decay._worst_kernel,
        {"overlaps": INT, "worst": FLOAT, "num_masks": "i32"},
        [TILE | choice for choice in variants(EXACT=[True, False])],
    ),
    (
        nms_decay._decay_kernel,
        {"overlaps": INT, "worst": FLOAT, "scores": FLOAT, "result": FLOAT}
        | {"sigma": "fp32", "num_masks": "i32"},
        [TILE | {"EXACT": choice, "GAUSSIAN": choice} for choice in (True, False)],
    ),
    (
        nms_greedy._hard_kernel,
        {"overlaps": INT, "scores": FLOAT, "result": FLOAT, "thresh": "fp32", "num_masks": "i32"},
        variants(EXACT=[True, False], BLOCK=[512]),
    ),
    (
        nms_greedy._soft_kernel,
        {"overlaps": INT, "scores": FLOAT, "result": FLOAT, "sigma": "fp32", "thresh": "fp32"}
        | {"num_masks": "i32"},
        [{"EXACT": choice, "GAUSSIAN": choice, "BLOCK": 512} for choice in (True, False)],
    ),
    (
        dynamic_masks._dynamic_masks_kernel,
        {"kernels": FLOAT, "feature": FLOAT, "masks": "*u8", "areas": INT, "soft_sums": FLOAT}
        | {"num_masks": "i32", "num_channels": "i32", "num_pixels": "i32", "thresh": "fp32"},
        [
            {
                "PRECISION": precision,
                "BLOCK_MASKS": dynamic_masks.BLOCK_MASKS,
                "BLOCK_PIXELS": dynamic_masks.BLOCK_PIXELS,
                "BLOCK_CHANNELS": dynamic_masks.BLOCK_CHANNELS,
            }
            for precision in ("ieee", "tf32")
        ],
    ),
    (
        paste_masks._paste_kernel,
        {"probs": FLOAT, "spans": INT, "out": "*u8", "boxes": INT}
        | dict.fromkeys(("height", "width", "image_height", "image_width"), "i32")
        | dict.fromkeys(("out_height", "out_width"), "i32")
        | dict.fromkeys(("old_scale", "row_scale", "column_scale", "thresh"), "fp32"),
        variants(
            RESIZES=[True, False],
            BLOCK_ROWS=[paste_masks.BLOCK_ROWS],
            BLOCK_COLUMNS=[paste_masks.BLOCK_COLUMNS],
        ),
    ),
]


def compile_kernel(kernel, types, constants, capability):
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))


def main():
    for capability in CAPABILITIES:
        for kernel, types, choices in KERNELS:
            ones = {name: 1 for name in types if types[name] == "i32"}
            for constants in choices + [choices[0] | ones]:
                left = {name: kind for name, kind in types.items() if name not in constants}
                compile_kernel(kernel, left, constants, capability)
            sys.stdout.write(f"{kernel.__name__} sm_{capability}\n")


if __name__ == "__main__":
    main()
