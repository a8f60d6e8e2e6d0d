"""The label config of a Label Studio project: which controls label which images.

Source: label_studio_sdk/_extensions/label_studio_tools/core/label_config.py parse_config.
"""

from __future__ import annotations

import xml.parsers.expat
from dataclasses import dataclass
from typing import Self

from samserve.errors import InvalidRequest

MAX_CONFIG_CHARS = 1 << 20
_MAX_ELEMENTS = 20_000
_MAX_DEPTH = 100
_MAX_SHOWN = 60
_FIELD = "label_config"
_OUTPUTS = ("brushlabels", "polygonlabels")
_PROMPTS = ("keypointlabels", "rectanglelabels")
_CONTROLS = (*_OUTPUTS, *_PROMPTS)
_TRUE = ("true", "1", "yes")


@dataclass(frozen=True, slots=True)
class Control:
    """A control that labels regions of an image.

    ``kind`` is the type of its results, such as ``brushlabels``; ``image`` the name of the image.
    ``labels`` is empty if they come from the data of each task.  ``skipped`` is whether the
    attribute ``model_skip`` excludes it from predictions.  ``model`` and ``tolerance`` are the
    attributes ``samserve_model`` and ``samserve_tolerance``.
    """

    kind: str
    name: str
    image: str
    labels: tuple[str, ...]
    skipped: bool = False
    model: str = ""
    tolerance: float | None = None

    @property
    def is_output(self) -> bool:
        """Whether its regions can be masks."""
        return self.kind in _OUTPUTS and not self.skipped

    def accepts(self, label: str) -> bool:
        """Return whether its regions can have a label; an empty one is no label."""
        return not (label and self.labels) or label in self.labels


@dataclass(frozen=True, slots=True)
class LabelConfig:
    """The images of a project, as names and the keys of their URLs in a task; and the controls."""

    images: dict[str, str]
    controls: tuple[Control, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a label config.  Raises `InvalidRequest`."""
        if len(text) > MAX_CONFIG_CHARS:
            raise InvalidRequest(_FIELD, f"has over {MAX_CONFIG_CHARS} characters")
        parser = _Parser()
        try:
            parser.parse(text)
        except xml.parsers.expat.ExpatError as error:
            raise InvalidRequest(_FIELD, f"is not valid XML: {error}") from None
        return cls(parser.images, tuple(_control(each) for each in parser.controls))

    def image_of(self, name: str) -> tuple[str, str]:
        """Return the name of an image and the key of its URL; an empty name is the first image.

        Raises `InvalidRequest` if there is none.
        """
        if not self.images:
            raise InvalidRequest(_FIELD, "has no <Image> whose value is a field such as $image")
        name = name or next(iter(self.images))
        if name not in self.images:
            raise InvalidRequest(_FIELD, "has no <Image> of the name in the request")
        return name, self.images[name]

    def outputs(self, image: str) -> tuple[Control, ...]:
        """Return the controls whose regions can be masks of an image.

        Raises `InvalidRequest` if there is none.
        """
        found = tuple(each for each in self.controls if each.is_output and each.image == image)
        if not found:
            raise InvalidRequest(_FIELD, "has no <BrushLabels> or <PolygonLabels> for the image")
        return found

    def output_for(self, image: str, label: str) -> Control:
        """Return the control for the mask of an object with a label: the first that has the label.

        Raises `InvalidRequest` if none has it.
        """
        for each in self.outputs(image):
            if each.accepts(label):
                return each
        raise InvalidRequest(
            _FIELD, f"has no <BrushLabels> or <PolygonLabels> with the label {label[:_MAX_SHOWN]!r}"
        )


@dataclass(slots=True)
class _Element:
    tag: str
    attributes: dict[str, str]
    labels: list[str]


class _Parser:
    """Collects images and controls; accepts no document type, so no entities of its own."""

    def __init__(self) -> None:
        self.images: dict[str, str] = {}
        self.controls: list[_Element] = []
        self._open: list[_Element] = []
        self._count = 0

    def parse(self, text: str) -> None:
        parser = xml.parsers.expat.ParserCreate("utf-8")
        parser.StartDoctypeDeclHandler = self._doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        # A surrogate is not a character of XML.
        parser.Parse(text.encode("utf-8", "replace"), True)

    def _doctype(self, *_: object) -> None:
        raise InvalidRequest(_FIELD, "has a document type, which is not supported")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._count += 1
        if self._count > _MAX_ELEMENTS or len(self._open) >= _MAX_DEPTH:
            raise InvalidRequest(
                _FIELD, f"has over {_MAX_ELEMENTS} elements, or is deeper than {_MAX_DEPTH}"
            )
        # The interface of Label Studio ignores the case of both.
        lowered = {name.lower(): value for name, value in attributes.items()}
        element = _Element(tag.lower(), lowered, [])
        if element.tag == "label":
            self._add_label(lowered)
        elif element.tag == "image" and lowered.get("name"):
            self._add_image(lowered)
        elif element.tag in _CONTROLS and lowered.get("name") and lowered.get("toname"):
            self.controls.append(element)
        self._open.append(element)

    def _end(self, _: str) -> None:
        self._open.pop()

    def _add_label(self, attributes: dict[str, str]) -> None:
        owner = next((each for each in reversed(self._open) if each.tag in _CONTROLS), None)
        label = attributes.get("alias") or attributes.get("value")
        if owner is not None and label:
            owner.labels.append(label)

    def _add_image(self, attributes: dict[str, str]) -> None:
        value = attributes.get("value") or attributes.get("valuelist") or ""
        if value.startswith("$") and len(value) > 1:
            self.images[attributes["name"]] = value[1:]


def _control(element: _Element) -> Control:
    attributes = element.attributes
    dynamic = attributes.get("value", "").startswith("$")
    return Control(
        kind=element.tag,
        name=attributes["name"],
        image=attributes["toname"],
        labels=() if dynamic else tuple(element.labels),
        skipped=attributes.get("model_skip", "").lower() in _TRUE,
        model=attributes.get("samserve_model", ""),
        tolerance=_tolerance(attributes.get("samserve_tolerance", "")),
    )


def _tolerance(text: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1000:
        raise InvalidRequest(_FIELD, "samserve_tolerance is not a number from 0 to 1000")
    return value
