"""Problems found in a data set. Does not import Detectron2."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from solo_d2.utils.errors import DatasetError

# Training refuses the data set.
ERROR = "error"
# Training leaves the entry, or a part of it, out.
SKIPPED = "skipped"
# Training uses the entry as it is, though it is probably a mistake.
NOTICE = "notice"


@dataclass(frozen=True)
class Problem:
    """Something wrong in a data set.

    Attributes:
        kind: a few words, the same for all problems of the kind; they are counted by it.
        where: the entry or file, such as "annotation 7" or "image 3".
        reason: what is wrong there.
        severity: ERROR, SKIPPED or NOTICE.
    """

    kind: str
    where: str
    reason: str
    severity: str = ERROR

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


# Receives each problem. Loading passes `refuse_errors`, the check of a data set a list's `append`.
Report = Callable[[Problem], None]


class Refusal(ValueError):
    """A value cannot be used; the message says why. See `Problem` for kind and severity."""

    def __init__(self, kind: str, reason: str, severity: str = ERROR):
        super().__init__(reason)
        self.kind, self.severity = kind, severity


@contextlib.contextmanager
def reporting(report: Report, where: str) -> Iterator[None]:
    """Report a Refusal raised in the block as a problem, and suppress it."""
    try:
        yield
    except Refusal as error:
        report(Problem(error.kind, where, str(error), error.severity))


def refuse_errors(json_file: str | Path, others: list[Problem] | None = None) -> Report:
    """Return a report that raises DatasetError for the first error and collects the others."""

    def report(problem: Problem) -> None:
        if problem.severity == ERROR:
            raise DatasetError(f"{json_file}: {problem}")
        if others is not None:
            others.append(problem)

    return report


def count_reasons(problems: Iterable[Problem]) -> str:
    """Format the reasons of problems with their counts, the most frequent first."""
    counts = Counter(problem.reason for problem in problems).most_common()
    return ", ".join(f"{count} x {reason}" for reason, count in counts)
