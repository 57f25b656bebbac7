"""Loading weights of this and other projects, with one key table per source format.

`reading` opens files without running code from them, `formats` recognizes and renames, `matching`
compares with a model, `derive` infers a config from shapes. `checkpointer` uses them to load
models, and `convert` implements tools/convert_weights.py.
"""
