"""The page of `benchmark.py report`, in Markdown."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

from tools.benchmarks.common import (
    markdown_table,
    memory_text,
    size_text,
    timing_text,
)


def format_report(found: Mapping[str, Any]) -> str:
    """Write down what `tools.benchmarks.report.measure_report` has found."""
    models = found["models"]
    batch = found["stages_of_batch"]
    parts = [
        f"# Inference with {found['config']}",
        "\n".join(_subject(found)),
        "## In short",
        markdown_table([_summary(found, name) for name in models]),
        "Multiply-adds are those of convolutions and matrix products; of objects, the most that "
        "they can take: the masks of all candidates that enter mask NMS, or the box heads of all "
        "proposals and the mask heads of all instances.",
        f"## Stages, in batches of {batch}",
        "Milliseconds per image, median (interquartile range). The whole was timed "
        "without the stages. In Mask R-CNN the head is that of proposals and of boxes, and NMS is "
        "that of both.",
        markdown_table(_stages(models, batch)),
        "## Throughput",
        "From the file to the drawing (whole), and from the resized image to masks at the size "
        "of the image (model); milliseconds per image. MiB: peak of a whole batch beyond the "
        "models.",
        markdown_table(
            [
                _throughput(name, number, models[name]["batches"][number])
                for number in next(iter(models.values()))["batches"]
                for name in models
            ]
        ),
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
    weights = found["weights"], found["reference_weights"]
    random = [name for name, file in zip(found["models"], weights, strict=True) if not file]
    if random:
        lines.append(
            f"- **Random: {', '.join(random)}.** Such a model finds nothing that means anything: "
            "often next to nothing, sometimes all that it may. So its stages after the head, and "
            "the whole, say little; compare backbone and head."
        )
    return lines


def _summary(found: Mapping[str, Any], name: str) -> dict[str, str]:
    model, batch = found["models"][name], found["stages_of_batch"]
    row = {
        "": name,
        "parameters, M": f"{model['parameters'] / 1e6:.2f}",
        "input": size_text(model["input_size"]),
        "multiply-adds of the image, G": f"{model['multiply_adds'] / 1e9:.2f}",
        "of objects, G": f"{model['multiply_adds_of_objects'] / 1e9:.2f}",
        "instances in an image": f"{model['instances']:.1f}",
        f"ms of an image, in batches of {batch}": timing_text(model["batches"][batch]["whole"]),
    }
    if found["metric"]:
        value = model["metric"]
        row[f"{found['metric']} on {found['dataset']}"] = "-" if value is None else f"{value:.2f}"
    return row


def _stages(models: Mapping[str, Any], batch: int) -> list[dict[str, str]]:
    """A row for each stage of either model, in the order of the one that has more of them."""
    columns = {
        name: model["batches"][batch]["stages"] | {"whole": model["batches"][batch]["whole"]}
        for name, model in models.items()
    }
    longest = max(columns.values(), key=len)
    names = dict.fromkeys(chain(longest, *columns.values()))
    return [
        {"stage": stage}
        | {name: timing_text(x[stage]) if stage in x else "-" for name, x in columns.items()}
        for stage in names
    ]


def _throughput(name: str, batch: int, result: Mapping[str, Any]) -> dict[str, str]:
    row = {"batch": str(batch), "": name}
    for part in ("whole", "model"):
        rate = f"{1000 / result[part]['median']:.3g}"
        row |= {f"{part} ms": timing_text(result[part]), f"{part} images/s": rate}
    return {**row, "MiB": memory_text(result["peak_bytes"])}
