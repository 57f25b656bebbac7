"""Reading weights of other projects: one key table per source format, on plain state dicts.

`reading` opens files without running what they hold, `formats` recognises and renames, `matching`
compares with a model, `derive` reads a config off the shapes. `checkpointer` loads models by them,
`convert` is what tools/convert_weights.py does.
"""
