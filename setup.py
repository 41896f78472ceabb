"""What pyproject.toml cannot say: configs/ lies at the root of a checkout, and inside the package in a wheel."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree("configs", Path(self.build_lib, "feedface", "configs"), ignore=ignored, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConfigs})
