"""The commands of tools/benchmark.py, one module each: `add_arguments(parser)` and `run(args)`."""
