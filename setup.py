"""What pyproject.toml cannot say: the C parts."""

from setuptools import setup

setup()
