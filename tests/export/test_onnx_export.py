"""What the exporter promises beside the numbers."""

from __future__ import annotations

import pytest
from samserve.export import onnx_export
from samserve.export.errors import ExportError
from samserve.export.sam.config import config_from_state
from samserve.export.sam.model import Sam

from tests.oracle.sam import TINY, original


def test_weights_that_do_not_fit_into_one_file_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sam = Sam(config_from_state(original(TINY).state_dict()))
    monkeypatch.setattr(onnx_export, "PROTOBUF_LIMIT_BYTES", 1_000_000)

    with pytest.raises(ExportError, match="do not fit into one ONNX file"):
        onnx_export.export_encoder(sam)
