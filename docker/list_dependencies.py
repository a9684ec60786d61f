"""Print what pyproject.toml asks for, with the extras named, so that an image installs it before the source comes."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = [project["optional-dependencies"][extra] for extra in sys.argv[1:]]
sys.stdout.writelines(f"{requirement}\n" for requirement in sum(extras, project["dependencies"]))
