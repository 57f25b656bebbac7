"""Read labelled folders for tools/labels_to_coco.py."""
