"""The command line of `tools/ablate.py`."""

import argparse
import itertools
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from solo_d2.utils.commands import Terminated, positive, run_command
from solo_d2.utils.errors import ConfigError
from solo_d2.utils.files import save_json, save_text
from tools.ablations.report import format_report, format_table, make_lines, report_content
from tools.ablations.runs import Launch, Outcome, Run, launch_program, plan_runs, run_all
from tools.ablations.tables import Setting, Table, read_tables, settings
from tools.benchmarks.common import markdown_table

DESCRIPTION = """\
Rerun an ablation table of the papers and print it with the paper's metrics.

    python tools/ablate.py --list
    python tools/ablate.py coord --num-gpus 8                 as in the paper, on COCO
    python tools/ablate.py coord --quick --seeds 1 2 3        small models on generated images
    python tools/ablate.py coord --base-config my.yaml SOLVER.IMS_PER_BATCH 4
    python tools/ablate.py nms --weights model_final.pth      evaluation only

Finished runs are reused, and interrupted trainings resume. The exit code is 1 if a run failed, 2 if
the command cannot be executed.
"""


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s TABLE [options] [KEY VALUE ...]",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "words", nargs="*", metavar="TABLE", help="see --list; config overrides for all rows follow"
    )
    add("--list", action="store_true", help="list the tables and exit")
    add("--quick", action="store_true", help="small models on generated images")
    add("--base-config", type=Path, metavar="FILE", help="apply the rows to this config")
    add("--seeds", nargs="+", default=["1"], metavar="N", help="(default: 1)")
    add("--max-iter", type=positive, default=0, metavar="N", help="shorten the training")
    add(
        "--weights", type=Path, metavar="FILE", help="trained model for a table that only evaluates"
    )
    add("--output", type=Path, default=Path("output/ablations"), metavar="DIR")
    add("--num-gpus", type=positive, default=1, metavar="N", help="GPUs per run")
    add("--retrain", action="store_true", help="repeat finished runs")
    add("--dry-run", action="store_true", help="print the commands of train_net.py and exit")
    args = parser.parse_intermixed_args(argv)
    # --seeds takes all words up to the next option, including overrides.
    numbers = list(itertools.takewhile(str.isdecimal, args.seeds))
    words = [*args.words, *args.seeds[len(numbers) :]]
    if not numbers:
        parser.error(f"--seeds needs numbers, not {args.seeds[0]}")
    args.seeds = [int(number) for number in numbers]
    args.table, args.opts = words[0] if words else None, words[1:]
    return args


def main(argv: Sequence[str], launch: Launch = launch_program) -> int:
    """Run the command; return the exit code. For `launch` see `run_all`."""
    args = parse_args(argv)

    def run() -> int:
        tables = read_tables()
        if args.list:
            print(list_tables(tables.values()))
            return 0
        if args.table not in tables:
            found = f"Unknown table {args.table!r}" if args.table else "No table is given"
            raise ConfigError(f"{found}: choose from {', '.join(tables)}")
        try:
            return rerun(tables[args.table], args, launch)
        except (KeyboardInterrupt, Terminated):
            print("ablate: run the same command to continue", file=sys.stderr)
            raise

    return run_command("ablate", run)


def list_tables(tables: Iterable[Table]) -> str:
    """Format the list of tables."""
    return markdown_table(
        [
            {
                "name": table.name,
                "table": f"{table.title} ({table.source})",
                "rows": "; ".join(row.name for row in table.rows),
            }
            for table in tables
        ]
    )


def rerun(table: Table, args: argparse.Namespace, launch: Launch = launch_program) -> int:
    """Run a table, print it and write it next to the runs; return the exit code."""
    check_arguments(table, args)
    rows = settings(table, base=args.base_config, quick=args.quick)
    name = "quick" if args.quick else "paper"
    if args.base_config:
        name = args.base_config.stem + ("_quick" if args.quick else "")
    folder = args.output / name
    runs = plan_runs(
        rows,
        args.seeds[:1] if args.weights else args.seeds,
        folder / "runs",
        opts=args.opts,
        max_iter=args.max_iter,
        shared=table.reference if table.evaluation_only else "",
        weights=args.weights,
    )
    if args.dry_run:
        for run in runs:
            print(f"# {run.label}\n{shlex.join(run.command(args.num_gpus))}")
        return 0
    outcomes = run_all(runs, num_gpus=args.num_gpus, again=args.retrain, launch=launch)
    page = write_report(table, rows, runs, outcomes, args, folder)
    print(f"\n{page}\n{folder / table.name}.md, .json")
    return int(any(outcome.result is None for outcome in outcomes))


def check_arguments(table: Table, args: argparse.Namespace) -> None:
    """Refuse arguments that do not fit the table."""
    if len(args.opts) % 2:
        raise ConfigError(f"The overrides {' '.join(args.opts)!r} are not KEY VALUE pairs")
    ours = {"OUTPUT_DIR": "--output", "SEED": "--seeds"}
    for key in args.opts[::2]:
        if key in ours:
            raise ConfigError(f"{key} cannot be overridden: use {ours[key]}")
    given = {*args.opts[::2], *(("SOLVER.MAX_ITER", "SOLVER.STEPS") if args.max_iter else ())}
    varied = sorted(given & set(table.varies))
    if varied:
        raise ConfigError(f"Table {table.name!r} varies {', '.join(varied)}: do not override it")
    if len(set(args.seeds)) < len(args.seeds):
        raise ConfigError(f"--seeds {' '.join(map(str, args.seeds))} has duplicates")
    if args.weights and not table.evaluation_only:
        raise ConfigError(
            f"--weights is for tables that only evaluate, but {table.name!r} trains its rows "
            "(for initial weights use MODEL.WEIGHTS FILE)"
        )
    if args.weights and not args.weights.is_file():
        raise ConfigError(f"The weights {args.weights} do not exist")


def write_report(
    table: Table,
    rows: Sequence[Setting],
    runs: Sequence[Run],
    outcomes: Sequence[Outcome],
    args: argparse.Namespace,
    folder: Path,
) -> str:
    """Write NAME.md and NAME.json into `folder`; return the Markdown."""
    base = args.base_config or (table.quick_base if args.quick else None)
    seeds = sorted({run.seed for run in runs})
    conditions = {
        "base": str(base or "each row's config"),
        "seeds": seeds,
        "max_iter": args.max_iter or None,
        "opts": list(args.opts),
    }
    words = [f"Base: {conditions['base']}", f"seeds {', '.join(map(str, seeds))}"]
    words += [f"{args.max_iter} iterations"] if args.max_iter else []
    words += [" ".join(args.opts)] if args.opts else []
    lines = make_lines(rows, outcomes)
    reference = [row.row.name for row in rows].index(table.reference)
    text = format_table(lines, reference)
    page = format_report(table, text, outcomes, words)
    save_json(
        folder / f"{table.name}.json", report_content(table, rows, lines, outcomes, conditions)
    )
    save_text(folder / f"{table.name}.md", page)
    return page
