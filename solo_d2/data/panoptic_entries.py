"""Everything that is wrong in a panoptic json and its PNGs."""

from pathlib import Path
from typing import Any

from solo_d2.data.panoptic_conversion import describe_image
from solo_d2.data.panoptic_json import collect_panoptic_json
from solo_d2.data.problems import Problem, Report
from solo_d2.utils.errors import DatasetError, shown


def list_panoptic_problems(metadata: Any, report: Report) -> None:
    """Look for all that keeps a panoptic data set from its conversion.

    Args:
        metadata: of the data set.
        report: told of each problem.

    Raises:
        DatasetError: the json or its categories cannot be used at all.
    """
    content = collect_panoptic_json(
        metadata.panoptic_json, report, metadata.name, metadata.panoptic_root
    )
    for key, annotation in content.annotations.items():
        image = content.images[key]
        try:
            describe_image(Path(metadata.panoptic_root), annotation, image, content.categories)
        except DatasetError as error:
            report(Problem("panoptic PNG cannot be used", f"image {shown(key)}", str(error)))
