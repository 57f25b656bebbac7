"""Find what would go wrong in training on a data set, before training.

`run.check_dataset` reads the annotations (`solo_d2.data.entries`), opens the images and assigns
each object to its cells (`objects`). `fit` judges the config, `proposal` derives
grids and scale ranges, `page` draws samples, and `report` formats the findings.
"""
