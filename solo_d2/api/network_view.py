"""What a model's network predicts for an image, cell by cell, as pictures.

S grid side. Images are (H, W, 3) uint8 RGB.
"""

import copy

import cv2
import numpy as np
from numpy.typing import NDArray

from solo_d2.api.activations import (
    cell_panels,
    class_colors,
    draw_cells,
    draw_sheet,
    level_activations,
    record,
)
from solo_d2.api.predictor import Predictor
from solo_d2.visualization.canvas import Plate, arrange, heat_map

Picture = NDArray[np.uint8]


class NetworkView:
    """The predictions of all cells for one image.

    Attributes:
        image: the network's input, padded in black.
    """

    def __init__(self, predictor: Predictor, image: Picture):
        """Run the network on an image; `predictor` must not be of an exported model."""
        predictor = copy.copy(predictor)
        predictor.tiles = None
        self.head, self.colors = predictor.model.head, class_colors(len(predictor.classes.names))
        with record(predictor.model) as self.recording:
            predictor.find(image)
        height, width = self.recording.image_sizes[0]
        stride = min(self.head.mask_strides)
        rows, columns = (stride * side for side in self.recording.outputs.mask_size)
        self.image = np.zeros((max(height, rows), max(width, columns), 3), np.uint8)
        cv2.resize(image, (width, height), self.image[:height, :width], 0, 0, cv2.INTER_AREA)

    def draw_level(
        self, level: int, *, score_thresh: float, size: int
    ) -> tuple[Picture, Picture, Picture]:
        """Draw a level: its grid, the best class score of each cell, and the masks of all cells.

        Cells above the threshold have the colour of their class. `size` is the longer side of grid
        and scores, which show `image`.
        """
        found = level_activations(self.head, self.recording, level)
        height, width = self.recording.image_sizes[0]
        plate = Plate(self.image[:height, :width], size / max(self.image.shape[:2]))
        grid = draw_cells(plate.picture, found, self.colors, score_thresh=score_thresh)
        scores = heat_map(self.image, found.scores, size)
        return grid, scores, draw_sheet(found, self.colors, score_thresh=score_thresh)

    def cell_at(self, level: int, x: float, y: float) -> tuple[int, int]:
        """Return row and column of the cell at a point, in pixels of `image`."""
        side, (height, width) = self.head.num_grids[level], self.image.shape[:2]
        return min(side - 1, int(y * side / height)), min(side - 1, int(x * side / width))

    def class_scores(self, level: int, cell: tuple[int, int]) -> list[float]:
        """Return the probability of each class at a cell (row, column)."""
        logits = self.recording.outputs.class_logits[level][0, :, cell[0], cell[1]]
        scores: list[float] = logits.float().sigmoid().tolist()
        return scores

    def draw_cell(self, level: int, cell: tuple[int, int], *, size: int) -> Picture:
        """Draw a cell (row, column), its kernel and mask; see `cell_panels`."""
        outputs = self.recording.outputs
        return arrange([cell_panels(self.head, outputs, self.image, level, cell, size)])
