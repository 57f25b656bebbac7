"""What pyproject.toml cannot say: a wheel has the configs in it, as the folder solo_d2/configs."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies configs/ into the package; an installation by link finds them in the repository."""

    def run(self):
        """Build the package."""
        super().run()
        if not self.editable_mode:
            configs = Path(self.build_lib, "solo_d2", "configs")
            shutil.rmtree(configs, ignore_errors=True)
            unwanted = shutil.ignore_patterns("__pycache__", "*.md")
            shutil.copytree(Path(__file__).parent / "configs", configs, ignore=unwanted)


setup(cmdclass={"build_py": BuildWithConfigs})
