"""What the reliability tests share."""

import functools
import shutil

import pytest


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """Makes a folder in which a work can be done, with what it reads, which is made once."""
    from tests.reliability import works

    @functools.cache
    def prepared(work):
        folder = tmp_path_factory.mktemp(f"{work}_in")
        works.prepare(folder, work)
        return folder

    def make(work, variant=0):
        folder = tmp_path_factory.mktemp(work)
        shutil.copytree(prepared(work), folder, dirs_exist_ok=True)
        (folder / "variant").write_text(str(variant))
        return folder

    return make
