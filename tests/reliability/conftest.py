"""What the reliability tests share."""

import shutil

import pytest


@pytest.fixture
def folder_of(tmp_path_factory, prepared):
    """Makes a folder in which a work can be done."""

    def make(work, variant=0):
        folder = tmp_path_factory.mktemp(work)
        shutil.copytree(prepared(work), folder, dirs_exist_ok=True)
        (folder / "variant").write_text(str(variant))
        return folder

    return make


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """Gives the folder with what a work reads, made once."""
    from tests.reliability import works

    made = {}

    def get(work):
        if work not in made:
            made[work] = tmp_path_factory.mktemp(f"{work}_in")
            works.prepare(made[work], work)
        return made[work]

    return get
