"""The packages of the distribution; everything else is in pyproject.toml.

They are found, and beside them stand those that lie elsewhere than their names say: pyproject.toml maps them.
"""

from setuptools import find_packages, setup

MAPPED = ["rondo", "rondo.recipes", "rondo.experiments"]

setup(packages=[*find_packages(include=["flows*", "pipeline*", "storage*"], exclude=["flows.api.rondo*"]), *MAPPED])
