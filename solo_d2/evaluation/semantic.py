"""Figures of semantic segmentation, by Detectron2, with files that are whole or not there."""

from pathlib import Path
from typing import Any

from detectron2.evaluation import SemSegEvaluator
from detectron2.utils import comm

from solo_d2.data.whole_folder import only_writer, sibling
from solo_d2.files import naming, put_in_place


class WholeSemSegEvaluator(SemSegEvaluator):
    """`SemSegEvaluator`, which writes predictions and figures into their places at once."""

    _output_dir: str | None

    def evaluate(self) -> Any:
        """As Detectron2's; all processes must call it together."""
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
