"""The generated data set `shapes`: real-looking pixels, exact masks, nothing to download.

`outlines` and `textures` say what is drawn, `drawing` makes one image, `folder` writes the data
set in COCO format, `registration` puts it into Detectron2's catalogs, and
`python -m solo_d2.data.shapes --output DIR` writes it by hand. Only `registration` needs
Detectron2.
"""
