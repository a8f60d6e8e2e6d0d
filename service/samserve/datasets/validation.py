"""Values of files, checked by pydantic: an `InvalidRequest` names the place of what is wrong."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from samserve.errors import FieldViolation, InvalidRequest, Violations

MAX_ID = 2**63 - 1
Id = Annotated[int, Field(ge=-MAX_ID, le=MAX_ID, strict=True)]
Length = Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(strict=True)]


class Model(BaseModel):
    """A JSON object whose further keys are kept, see `extra`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    def extra(self) -> dict[str, Any]:
        """Return the keys that the class does not declare."""
        return dict(self.model_extra or {})


M = TypeVar("M", bound=BaseModel)


def parse(model: type[M], value: Any, place: str) -> M:
    """Return *value* as *model*.

    Raises `InvalidRequest` with all that is wrong, each with the place inside *value*.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        violations = tuple(
            FieldViolation(f"{place}{_path(each['loc'])}", _text(each["msg"]))
            for each in found[: Violations.MAX_VIOLATIONS]
        )
        # The first one in full; the others are in `violations`.
        first = InvalidRequest(*violations[0])
        first.violations = violations
        raise first from None


def _path(location: tuple[int | str, ...]) -> str:
    """Return the place inside a value, such as ``: bbox[2]``."""
    text = ""
    for step in location:
        text += f"[{step}]" if isinstance(step, int) else f".{step[:60]}"
    return f": {text.lstrip('.')}" if text else ""


def _text(message: str) -> str:
    text = " ".join(message.removeprefix("Value error, ").split())
    return text[:1].lower() + text[1:]
