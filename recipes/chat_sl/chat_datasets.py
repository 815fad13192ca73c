"""The chat data sets under the Tinker cookbook's names."""

from tinker_cookbook.supervised.data import NoRobots as NoRobotsBuilder
from tinker_cookbook.supervised.data import Tulu3 as Tulu3Builder

__all__ = ["NoRobotsBuilder", "Tulu3Builder"]
