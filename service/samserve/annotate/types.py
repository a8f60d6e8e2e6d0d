"""What the steps of the pipeline exchange."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from samserve.annotate.gateways import Gateways
from samserve.annotate.source import ImageFile, Source
from samserve.datasets.types import Annotation
from samserve.types import Size


@dataclass(frozen=True, slots=True, eq=False)
class LoadedImage:
    """An image of a source; ``sha256`` is the hash of its file, 64 hexadecimal digits.

    ``data`` is the file in a format that servers decode; None for one that is read in windows.
    """

    file: ImageFile
    source: Source
    sha256: str
    data: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True, eq=False)
class Segmented:
    """The annotations of an image, without ids, and further values of its record.

    ``on_written`` is called in a thread once the record is written.
    """

    size: Size
    annotations: tuple[Annotation, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    on_written: Callable[[], None] = lambda: None


class Segmenter(Protocol):
    """The way in which an image gets its masks.

    Picklable, so that it can be sent to other machines.
    """

    @property
    def windowed(self) -> bool:
        """Whether images may be larger than what a server takes: they are not loaded as a whole."""

    def fingerprint(self, name: str) -> Mapping[str, Any]:
        """Return all that the masks of the image *name* depend on, except for image and model.

        As JSON values; an image whose record has another fingerprint is annotated again.
        """

    async def segment(self, gateways: Gateways, image: LoadedImage) -> Segmented:
        """Return the masks of an image.

        Raises `samserve.errors.InvalidRequest` for an image that cannot be annotated, and the
        classes of `samserve.client.errors`.
        """
