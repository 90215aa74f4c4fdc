"""Objects of a large COCO file, read one image at a time."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any, NamedTuple

Json = dict[str, Any]

AT = "annotations_at"
"""Key of an image: first byte and number of bytes of the image's annotations in the file."""
_OBJECTS = b', "annotations": ['
_IMAGES = b'\n], "images": '
_HEAD = 1 << 16
"""Number of bytes at the file's start within which the annotations begin."""


class LazyObjects(NamedTuple):
    """COCO JSON that states in which bytes the annotations of each image stand.

    ``tools/dataset_converters/metagraspnet.py`` writes such files.

    Attributes:
        path: Path of the file.
        head: Everything but the annotations: ``info``, ``categories`` and ``images``.
    """

    path: str
    head: Json

    @classmethod
    def of(cls, path: str | Path) -> LazyObjects | None:
        """Read all but the annotations; None for any other JSON, which has to be read whole."""
        with open(path, "rb") as file:
            try:
                view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:  # an empty file
                return None
            with view:
                start, end = view.find(_OBJECTS, 0, _HEAD), view.rfind(_IMAGES)
                if start < 0 or end < 0:
                    return None
                try:
                    head = json.loads(view[:start] + b"}")
                    images = json.loads(b"{" + view[end + len(b"\n], ") :])["images"]
                except ValueError:
                    return None
        if not images or any(AT not in image for image in images):
            return None
        return cls(str(path), {**head, "images": images})

    def read(self, image: Json) -> list[Json]:
        """Return the annotations of an image.

        Args:
            image: Record of ``head["images"]``.

        Raises:
            ValueError: The file was edited after it was written.
        """
        start, length = image[AT]
        with open(self.path, "rb") as file:
            file.seek(start)
            text = file.read(length)
        try:
            annotations = json.loads(b"[%b]" % text)
            if any(one["image_id"] != image["id"] for one in annotations):
                raise ValueError("they are another image's")
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{self.path}: the annotations of the image with the id {image['id']} are not at "
                f"the byte {start}, as it says: {error}. The file was edited: write it again with "
                "tools/dataset_converters/metagraspnet.py"
            ) from None
        return annotations
