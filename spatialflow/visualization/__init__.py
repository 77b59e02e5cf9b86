"""How segments look: one colour for a class everywhere, shades for its instances, one drawing.

Needs numpy, OpenCV and Pillow only.

    colors.py  the colour of each segment
    draw.py    segments over a picture
    labels.py  names on the segments
"""

from .colors import segment_colors
from .draw import DrawnSegment, draw_panoptic, drawn_segments

__all__ = ["DrawnSegment", "draw_panoptic", "drawn_segments", "segment_colors"]
