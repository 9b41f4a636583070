"""Package metadata: what yolods is called, and the range of each dependency that it is written
for."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
CONFIGURATIONS = [
    f"ds_configs/{file.name}" for file in sorted((HERE / "ds_configs").glob("*.json"))
]


class BuildPackage(build_py):
    """Copies ds_configs/ into the package: a checkout has it beside the package, an installation
    inside."""

    def run(self) -> None:
        """Build below `build_lib`; nothing is copied for an editable install, which uses the
        checkout itself."""
        package = Path(self.build_lib, "yolods")
        if not self.editable_mode:
            # An earlier build of the same checkout may have left modules there that have gone
            # since.
            shutil.rmtree(package, ignore_errors=True)
        super().run()
        if not self.editable_mode:
            (package / "ds_configs").mkdir()
            for file in CONFIGURATIONS:
                self.copy_file(file, str(package / "ds_configs"))

    def get_source_files(self) -> list[str]:
        """What a source distribution needs, relative to this folder."""
        return [*super().get_source_files(), *CONFIGURATIONS]


# Read as text: importing yolods would need its dependencies, which an isolated build does not have.
VERSION = re.search(
    r'^__version__ = "([^"]+)"', (HERE / "yolods" / "__init__.py").read_text(encoding="utf-8"), re.M
)[1]

setup(
    name="yolods",
    version=VERSION,
    description="Train YOLOv5 detectors on DeepSpeed and get back an ordinary best.pt",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="AGPL-3.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["yolods", "yolods.*"]),
    # Named although "." is the default: only then does an editable install put this folder itself
    # on the import path. The import hook that setuptools installs otherwise loses to a plain folder
    # called "yolods" in the working directory, which is what a clone looks like from its parent.
    package_dir={"": "."},
    cmdclass={"build_py": BuildPackage},
    install_requires=[
        "torch>=2.6,<2.14",
        "deepspeed>=0.19.8,<0.20",
        "ultralytics>=8.4.190,<8.5",
        "numpy>=1.26,<3",
        "pyyaml>=6,<7",
        "tensorboard>=2.16,<3",
        "matplotlib>=3.7,<4",
        "pillow>=10,<14",
        "tqdm>=4.64,<5",
    ],
    extras_require={
        "fast": ["simplejpeg>=1.8,<2"],
        "test": [
            "pytest>=8.4,<10",
            "pytest-timeout>=2.3,<3",
            "faster-coco-eval>=1.6.7,<2",
            "packaging>=24",
            "psutil>=5.9",
            "ruff>=0.17,<0.18",
            "setuptools>=77",
        ],
        "video": ["av>=15,<19"],
    },
    entry_points={"console_scripts": ["yolods=yolods.__main__:run"]},
)
