"""Data for tasks: sources of examples, read with numpy on the host and never traced.

Every loader looks for files that exist already before it downloads anything.
"""

from jtasks.data.images import FIELDS as IMAGES
from jtasks.data.images import class_names, for_display, images

__all__ = ["IMAGES", "class_names", "for_display", "images"]
