"""Names and colours of the classes of dense prediction's data sets."""

from __future__ import annotations

from mmseg.utils import cityscapes_classes, cityscapes_palette, voc_classes

NYU_40 = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf"),
    *("picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror"),
    *("floor mat", "clothes", "ceiling", "books", "refrigerator", "television", "paper", "towel"),
    *("shower curtain", "box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp"),
    *("bathtub", "bag", "other structure", "other furniture", "other prop"),
)
NYU_13 = (
    *("bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa"),
    *("table", "tv", "wall", "window"),
)
CITYSCAPES_7 = ("flat", "construction", "object", "nature", "sky", "human", "vehicle")
CITYSCAPES_19 = tuple(cityscapes_classes())
PASCAL_21 = tuple(voc_classes())
HUMAN_PARTS = (
    *("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg"),
)

CATEGORIES = (0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4, 5, 5, 6, 6, 6, 6, 6, 6)
"""Class of :data:`CITYSCAPES_7` of each class of :data:`CITYSCAPES_19`."""


def voc_colours(count: int, first: int = 0) -> list[list[int]]:
    """Return colours of PASCAL VOC's colour map, the bits of a number dealt out to the channels.

    Args:
        count: Number of colours.
        first: Number of the first; 0 is black.
    """
    return [
        [
            sum((i >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8))
            for channel in range(3)
        ]
        for i in range(first, first + count)
    ]


CITYSCAPES_19_COLOURS = [list(colour) for colour in cityscapes_palette()]
CITYSCAPES_7_COLOURS = [CITYSCAPES_19_COLOURS[i] for i in (0, 2, 5, 8, 10, 11, 13)]
