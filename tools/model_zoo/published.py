"""Published results, from configs/published.json.

    {"sources": {KEY: text},
     "models": {CONFIG: [{"source": KEY, "split": text, "recipe": text, "metrics": {NAME: number}},
                         ...]},
     "others": {METHOD: the same}}

CONFIG is a path below configs/ without suffix. The first metric of a result is its main one.
Metrics are percent, except "ms" and "fps" (per image on a V100) and "GB" (GPU memory in training).
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from solo_d2.utils.errors import ConfigError

# Default split of a model.
VAL = "COCO val2017"


@dataclass(frozen=True)
class Result:
    """Results of one model from one source.

    Attributes:
        split: of the data set, such as "COCO val2017".
        recipe: training recipe, "authors" or "AdelaiDet"; "" for other methods.
        source: key of `Published.sources`.
        metrics: by name, the main one first.
    """

    split: str
    recipe: str
    source: str
    metrics: dict[str, float]

    @property
    def main(self) -> tuple[str, float]:
        """Name and value of the main metric."""
        return next(iter(self.metrics.items()))


@dataclass(frozen=True)
class Published:
    """The content of published.json.

    Attributes:
        sources: title and address by key.
        models: results by config.
        others: results by name of a method, for comparison.
    """

    sources: dict[str, str]
    models: dict[str, list[Result]]
    others: dict[str, list[Result]]

    def named(self) -> Iterator[tuple[str, Result]]:
        """Yield each result with its model's or method's name."""
        for name, results in (self.models | self.others).items():
            for result in results:
                yield name, result

    def find(self, config: str, *, split: str = VAL, metric: str = "AP") -> float | None:
        """Return a metric of a model from the first source that has it, or None."""
        for result in self.models.get(config, []):
            if result.split == split and metric in result.metrics:
                return result.metrics[metric]
        return None


def read_published(root: Path) -> Published:
    """Read published.json from the folder of configs.

    Raises:
        ConfigError: the file cannot be read, or an entry is invalid; the message names it.
    """
    file = root / "published.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        sources = {str(key): str(text) for key, text in content["sources"].items()}
        parts = {
            part: {name: [_result(name, x, sources) for x in entries] for name, entries in of_part}
            for part, of_part in ((p, content[p].items()) for p in ("models", "others"))
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file}: {type(error).__name__}: {error}") from error
    unknown = sorted(x for x in parts["models"] if not (root / f"{x}.yaml").is_file())
    if unknown:
        raise ConfigError(f"{file}: these configs do not exist: {', '.join(unknown)}")
    return Published(sources, parts["models"], parts["others"])


def _result(name: str, entry: dict[str, Any], sources: dict[str, str]) -> Result:
    metrics = entry["metrics"]
    numbers = [x for x in metrics.values() if isinstance(x, (int, float)) and math.isfinite(x)]
    if not metrics or len(numbers) < len(metrics):
        raise ValueError(f"{name}: the metrics must be numbers: {metrics}")
    if entry["source"] not in sources:
        raise ValueError(f"{name}: the source {entry['source']!r} is not listed")
    return Result(entry["split"], entry.get("recipe", ""), entry["source"], metrics)
