"""The page of `benchmark.py report`, in Markdown."""

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

from tools.benchmarks.common import markdown_table, memory_text, size_text, timing_text


def format_report(found: Mapping[str, Any]) -> str:
    """Write down what was measured.

    Args:
        found: as `measure_report` of `tools.benchmarks.report` gives it.
    """
    models = found["models"]
    batch = found["stages_of_batch"]
    parts = [
        f"# Inference with {found['config']}",
        "\n".join(_subject(found)),
        "## In short",
        markdown_table(_summary(found)),
        "Multiply-adds are those of convolutions and matrix products; of objects, the most that "
        "they can take: the masks of all candidates that enter mask NMS, or the box heads of all "
        "proposals and the mask heads of all instances.",
        f"## Stages, in batches of {batch}",
        "Milliseconds of an image, median (interquartile range). The whole was timed "
        "without the stages, in turns with them. In Mask R-CNN the head is that of proposals and "
        "of boxes, and NMS is that of both.",
        markdown_table(_stages(models, batch)),
        "## Throughput",
        "From the file to the drawing (whole), and from the resized image to masks at the size "
        "of the image (model); milliseconds of an image. MiB: peak of a whole batch beyond the "
        "models.",
        markdown_table(_throughput(models)),
        "## Machine",
        markdown_table([{"": key, "value": x} for key, x in found["machine"].items()]),
        f"```text\n{found['environment']}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _subject(found: Mapping[str, Any]) -> list[str]:
    """What was measured, and what that means for the numbers."""
    reference = found["reference_config"] or "Detectron2's Mask R-CNN R50-FPN"
    lines = [
        f"- weights: {found['weights'] or 'random'}; options: {' '.join(found['opts']) or 'none'}",
        f"- compared with: {reference}, weights: {found['reference_weights'] or 'random'}",
        f"- images: {found['images']['files']} ({found['images']['source']})",
    ]
    random = [
        name
        for name, weights in zip(
            found["models"], (found["weights"], found["reference_weights"]), strict=True
        )
        if not weights
    ]
    if random:
        lines.append(
            f"- **Random: {', '.join(random)}.** Such a model finds nothing that means anything: "
            "often next to nothing, sometimes all that it may. So its stages after the head, and "
            "the whole, say little; compare backbone and head."
        )
    return lines


def _summary(found: Mapping[str, Any]) -> list[dict[str, str]]:
    batch = found["stages_of_batch"]
    rows: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "parameters, M": lambda model: f"{model['parameters'] / 1e6:.2f}",
        "input": lambda model: size_text(model["input_size"]),
        "multiply-adds of the image, G": lambda model: f"{model['multiply_adds'] / 1e9:.2f}",
        "multiply-adds of objects, G": lambda model: (
            f"{model['multiply_adds_of_objects'] / 1e9:.2f}"
        ),
        "instances in an image": lambda model: f"{model['instances']:.1f}",
        f"ms of an image, in batches of {batch}": lambda model: (
            f"{model['batches'][batch]['whole']['median']:.3g}"
        ),
    }
    if found["metric"]:
        rows[f"{found['metric']} on {found['dataset']}"] = lambda model: (
            "-" if model["metric"] is None else f"{model['metric']:.2f}"
        )
    return [
        {"": label} | {name: text(model) for name, model in found["models"].items()}
        for label, text in rows.items()
    ]


def _stages(models: Mapping[str, Any], batch: int) -> list[dict[str, str]]:
    columns = {
        name: model["batches"][batch]["stages"] | {"whole": model["batches"][batch]["whole"]}
        for name, model in models.items()
    }
    # Both models' own, in the order of the one that has more of them.
    longest = max(columns.values(), key=len)
    names = dict.fromkeys(chain(longest, *columns.values()))
    return [
        {"stage": stage}
        | {
            name: timing_text(column[stage]) if stage in column else "-"
            for name, column in columns.items()
        }
        for stage in names
    ]


def _throughput(models: Mapping[str, Any]) -> list[dict[str, str]]:
    rows = []
    for batch in next(iter(models.values()))["batches"]:
        for name, model in models.items():
            result = model["batches"][batch]
            rows.append({"batch": str(batch), "": name})
            for part, label in (("whole", ""), ("model", "model ")):
                rows[-1][f"{part} ms"] = timing_text(result[part])
                rows[-1][f"{label}images/s"] = f"{1000 / result[part]['median']:.3g}"
            rows[-1]["MiB"] = memory_text(result["peak_bytes"])
    return rows
