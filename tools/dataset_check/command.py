"""The work of tools/check_dataset.py: from its arguments to prints, files and an exit code."""

import argparse
from pathlib import Path

from detectron2.config import CfgNode
from PIL import Image

from solo_d2.config import load_config, override
from solo_d2.data.arguments import apply_dataset_arguments
from solo_d2.data.catalog import (
    check_datasets,
    register_datasets_of_config,
    resolve_num_classes,
)
from solo_d2.data.problems import Problem
from solo_d2.evaluation.check import check_test_data
from solo_d2.modeling.unused_keys import warn_of_unused_keys
from solo_d2.utils.errors import ConfigError, DatasetError
from solo_d2.utils.files import save_json, whole_file
from solo_d2.utils.images import write_image
from tools.dataset_check.page import draw_page
from tools.dataset_check.report import format_conclusion, format_findings, to_json
from tools.dataset_check.run import Findings, check_dataset, refuse_nothing


def check(args: argparse.Namespace) -> bool:
    """Check the data sets that the arguments name, print what is found and write it.

    Args:
        args: of the command.

    Returns:
        Whether training on them would fail.

    Raises:
        ConfigError: the config cannot be used, or names no data set.
        DatasetError: a data set is unknown, or its files are not there.
    """
    cfg = load_config(args.config_file)
    given = apply_dataset_arguments(cfg, args)
    override(cfg, args.opts)
    warn_of_unused_keys(cfg, args.config_file, args.opts)
    register_datasets_of_config(cfg)
    names = [*args.dataset, *given] or [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if not names:
        raise ConfigError("DATASETS.TRAIN and DATASETS.TEST are empty: name a data set")
    check_datasets(names)
    class_problem = _resolve_classes(cfg, names)
    all_findings = [_check_one(cfg, name, args) for name in dict.fromkeys(names)]
    if class_problem is not None:
        all_findings[0].problems.append(class_problem)
    refuse_nothing(cfg, [found for found in all_findings if _is_trained(cfg, found.name, args)])
    for found in all_findings:
        print("\n" + format_findings(found, cfg))
    if args.output:
        _write(all_findings, args.output)
    print("\n" + format_conclusion(all_findings))
    return any(found.training_fails for found in all_findings)


def _check_one(cfg: CfgNode, name: str, args: argparse.Namespace) -> Findings:
    found = check_dataset(
        cfg,
        name,
        open_images=not args.json_only,
        # Objects that are only evaluated are assigned to no cell.
        max_followed=args.objects if _is_trained(cfg, name, args) else 0,
        workers=args.workers,
    )
    if name in cfg.DATASETS.TEST and not found.training_fails:
        try:
            check_test_data(cfg, [name])
        except (ConfigError, DatasetError) as error:
            where = f"data set '{name}'"
            found.problems.append(Problem("evaluation would fail", where, str(error)))
    return found


def _is_trained(cfg: CfgNode, name: str, args: argparse.Namespace) -> bool:
    return name in args.dataset or name in cfg.DATASETS.TRAIN


def _resolve_classes(cfg: CfgNode, names: list[str]) -> Problem | None:
    """Fill in the numbers of classes; the problem, if those of data sets and config differ."""
    try:
        resolve_num_classes(cfg, names)
    except (ConfigError, DatasetError) as error:
        return Problem("classes do not fit", ", ".join(names), str(error))
    return None


def _write(all_findings: list[Findings], folder: Path) -> None:
    for found in all_findings:
        page = draw_page(found)
        if page is not None:
            with whole_file(folder / f"{found.name}.jpg") as file:
                write_image(file, Image.fromarray(page), quality=90)
    content = {"datasets": [to_json(found) for found in all_findings]}
    save_json(folder / "report.json", content)
    print(f"\nAll findings are in {folder / 'report.json'}")
