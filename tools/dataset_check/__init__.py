"""What would go wrong in training on a data set, found before hours are spent.

`entries` reads the json, `objects` opens the images and follows each object to its cells,
`proposal` derives grids and scale ranges, `page` draws samples, `report` words it all, and
`run.check_dataset` does one after the other. `tools/check_dataset.py` is the command.
"""
