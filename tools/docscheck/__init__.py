"""Checking the documentation: the work behind tools/check_docs.py."""
