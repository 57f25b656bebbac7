"""The generated data set `shapes`: textured images with exact masks.

`outlines` and `textures` define what is drawn, `drawing` draws an image, `folder` writes the data
set in COCO format, `registration` registers it in Detectron2's catalogs, and
`python -m solo_d2.data.shapes --output DIR` is the command. Only `registration` needs Detectron2.
"""
