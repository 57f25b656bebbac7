"""Detectron2's metrics of semantic segmentation, with atomic writes."""

from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from detectron2.utils import comm

from solo_d2.data.coco_json import some
from solo_d2.data.mapper import opened_stuff
from solo_d2.data.unique_names import unique_class_names
from solo_d2.data.whole_folder import only_writer, sibling
from solo_d2.data.workers import in_threads
from solo_d2.utils.errors import DatasetError
from solo_d2.utils.files import naming, put_in_place


class WholeSemSegEvaluator(SemSegEvaluator):
    """`SemSegEvaluator` that writes predictions and metrics atomically."""

    _output_dir: str | None

    def __init__(self, dataset_name: str, output_dir: str | None = None):
        """Read the names of the files.

        Args:
            dataset_name: with stuff_classes in its metadata.
            output_dir: for predictions and metrics; None: they are not kept.
        """
        super().__init__(dataset_name, output_dir=output_dir)
        self._class_names = unique_class_names(MetadataCatalog.get(dataset_name), "stuff")

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Add the label maps of some images; an empty output is left out."""
        # Detectron2 has no label for "nothing".
        pairs = [pair for pair in zip(inputs, outputs, strict=True) if "sem_seg" in pair[1]]
        super().process([image for image, _ in pairs], [output for _, output in pairs])

    def check_truth(self) -> None:
        """Check the headers of all stuff maps, and the labels of those not made by our conversion.

        Raises:
            DatasetError: one is missing, has another size than its image, or an unknown label.
        """
        made = MetadataCatalog.get(self._dataset_name).get("made_on_first_use")
        known = {*range(self._num_classes), self._ignore_label}

        def check(record: dict[str, Any]) -> None:
            with opened_stuff(record) as image:
                labels = set() if made else set(np.unique(np.asarray(image)).tolist())
            unknown = sorted(labels - known)
            if unknown:
                raise DatasetError(
                    f"{record['sem_seg_file_name']} has the labels {some(unknown)}, but there are "
                    f"{self._num_classes} classes (from 0), and {self._ignore_label} for none"
                )

        in_threads(check, DatasetCatalog.get(self._dataset_name))

    def evaluate(self) -> Any:
        """Evaluate as Detectron2 does; all processes must call it together."""
        if not self._output_dir or not comm.is_main_process():
            return super().evaluate()
        folder = Path(self._output_dir)
        with only_writer(folder / "sem_seg"), sibling(folder / "sem_seg") as work:
            self._output_dir = str(work)
            try:
                with naming(folder, work):
                    results = super().evaluate()
            finally:
                self._output_dir = str(folder)
            for file in sorted(work.iterdir()):
                put_in_place(file, folder / file.name)
        return results
