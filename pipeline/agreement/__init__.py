"""What the parts of a recipe must agree on.

Each function takes the parts that it compares. It raises ValueError, a sentence with their values and the remedy. A
recipe calls all of them when it is made.
"""

from pipeline.agreement import devices, judges, preferences, sampling

__all__ = ["devices", "judges", "preferences", "sampling"]
