"""Run tools/check_dataset.py: from arguments to output, files and the exit code."""

import argparse
import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from PIL import Image

from solo_d2.api.images import require_writable
from solo_d2.config import load_config, override
from solo_d2.data.arguments import apply_dataset_arguments
from solo_d2.data.catalog import (
    check_datasets,
    register_datasets_of_config,
    resolve_num_classes,
)
from solo_d2.data.coco_json import some
from solo_d2.data.problems import NOTICE, Problem
from solo_d2.evaluation.check import check_test_data
from solo_d2.modeling.unused_keys import warn_of_unused_keys
from solo_d2.utils.errors import ConfigError, DatasetError
from solo_d2.utils.files import save_json, whole_file
from solo_d2.utils.images import write_image
from tools.dataset_check.page import draw_page
from tools.dataset_check.report import format_conclusion, format_findings, to_json
from tools.dataset_check.run import Findings, check_dataset, refuse_nothing


def check(args: argparse.Namespace) -> bool:
    """Check the data sets that the arguments name; print and write the findings.

    Returns whether training on them would fail. Raises ConfigError or DatasetError if the check
    itself is impossible.
    """
    cfg = load_config(args.config_file)
    given = apply_dataset_arguments(cfg, args)
    override(cfg, args.opts)
    warn_of_unused_keys(cfg, args.config_file, args.opts)
    register_datasets_of_config(cfg)
    names = [*args.dataset, *given] or [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST]
    if not names:
        raise ConfigError(
            "DATASETS.TRAIN and DATASETS.TEST are empty: add --dataset or --train-json"
        )
    if args.output:
        require_writable(args.output / "report.json")
    check_datasets(names)
    problems = []
    try:
        resolve_num_classes(cfg, names)
    except (ConfigError, DatasetError) as error:
        problems.append(Problem("classes do not fit", ", ".join(names), str(error)))
    trained = {*args.dataset, *cfg.DATASETS.TRAIN}
    all_findings = [_check_one(cfg, name, args, name in trained) for name in dict.fromkeys(names)]
    all_findings[0].problems += problems
    _notice_shared_images(cfg, all_findings)
    refuse_nothing(cfg, [found for found in all_findings if found.name in trained])
    for found in all_findings:
        print("\n" + format_findings(found, cfg))
    if args.output:
        for found in all_findings:
            page = draw_page(found)
            if page is not None:
                with whole_file(args.output / f"{found.name}.jpg") as file:
                    write_image(file, Image.fromarray(page), quality=90)
        report = args.output / "report.json"
        save_json(report, {"datasets": [to_json(found) for found in all_findings]})
        print(f"\nAll findings are in {report}")
    print("\n" + format_conclusion(all_findings))
    return any(found.training_fails for found in all_findings)


def _notice_shared_images(cfg: CfgNode, all_findings: Sequence[Findings]) -> None:
    """Report test images that are also training images."""
    train, test = (
        {os.path.realpath(record["file_name"]): found for found in part for record in found.records}
        for part in (
            [found for found in all_findings if found.name in names]
            for names in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
        )
    )
    shared = sorted(train.keys() & test.keys())
    if shared:
        reason = f"{len(shared)} of {len(test)}: {some(shared)}"
        kind = "test images that are training images too"
        where = f"data set '{test[shared[0]].name}'"
        test[shared[0]].problems.append(Problem(kind, where, reason, NOTICE))


def _check_one(cfg: CfgNode, name: str, args: argparse.Namespace, is_trained: bool) -> Findings:
    found = check_dataset(
        cfg,
        name,
        open_images=not args.json_only,
        # Objects for evaluation need no cell.
        max_followed=args.objects if is_trained else 0,
        workers=args.workers,
    )
    if name in cfg.DATASETS.TEST and not found.training_fails:
        try:
            check_test_data(cfg, [name])
        except (ConfigError, DatasetError) as error:
            where = f"data set '{name}'"
            found.problems.append(Problem("evaluation would fail", where, str(error)))
    return found
