"""Loads the graphs of models into ONNX Runtime, and checks that they are those of the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import onnxruntime as ort
import structlog
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from samserve.errors import EngineUnavailable
from samserve.models.digest import DIGEST_OUTPUT, STAMP_KEY, digest_of_note
from samserve.models.repository import Bundle, default_first
from samserve.models.selection import Selection, load_failure
from samserve.models.tensors import GraphTensors, check_tensors
from samserve.types import ModelInfo

ORT_ERRORS = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    # Of runs with an `IOBinding`, whatever the cause.
    RuntimeError,
)

_NONE: Mapping[str, ort.InferenceSession] = MappingProxyType({})


def open_all(selection: Selection, threads: int) -> dict[str, Bundle[ort.InferenceSession]]:
    """Load all models, the default one first; without optional ones that cannot be loaded."""
    bundles = {bundle.info.name: bundle for bundle in selection.bundles}
    problems, opened = list(selection.problems), {}
    for name in default_first(bundles, selection.default):
        try:
            opened[name] = open_bundle(bundles[name], threads)
        except EngineUnavailable as error:
            if name not in selection.stored:
                raise
            failure = load_failure(name, bundles[name].graphs["encoder"], error)
            if name not in selection.optional:
                raise EngineUnavailable(failure) from error
            problems.append(failure)
    log = structlog.get_logger("samserve.models")
    for problem in problems:
        log.error("model not served", error=problem)
    return opened


def open_bundle(
    bundle: Bundle[Path], threads: int, kept: Mapping[str, ort.InferenceSession] = _NONE
) -> Bundle[ort.InferenceSession]:
    """Load the graphs of a model, by role, except those that are *kept* of another version."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin between runs would compete with image decoding and mask processing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # With a pattern, the second run allocates one block for all its tensors, while the arena keeps
    # those of the first run: much more memory, and no time saved.
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    try:
        sessions = {
            role: kept.get(role) or ort.InferenceSession(path, options, ["CPUExecutionProvider"])
            for role, path in bundle.graphs.items()
        }
    except ORT_ERRORS as error:
        raise EngineUnavailable(f"model {bundle.info.name!r} cannot be loaded: {error}") from error
    for role, path in bundle.graphs.items():
        _check_graph(path, sessions[role], bundle.info)
        check_tensors(role, _tensors(sessions[role]), bundle.info)
    return Bundle(bundle.info, sessions, bundle.versions)


def _check_graph(path: Path, session: ort.InferenceSession, info: ModelInfo) -> None:
    """Reject a graph that does not belong to the encoder that its configuration names.

    The files may also have been replaced since the configuration was read.
    """
    outputs = {output.name for output in session.get_outputs()}
    note = session.get_modelmeta().custom_metadata_map.get(STAMP_KEY, "")
    if DIGEST_OUTPUT not in outputs or digest_of_note(note) != info.encoder_digest:
        stamped, expected = digest_of_note(note)[:12] or "none", info.encoder_digest[:12]
        raise EngineUnavailable(
            f"model {info.name!r}: {path} has the digest {stamped}, its configuration {expected}; "
            f"start again if the files are being replaced, otherwise update them with: "
            f"samserve models upgrade {path.parents[2]}"
        )


def _tensors(session: ort.InferenceSession) -> GraphTensors:
    """Return the tensors that the graph itself declares, whatever its configuration does."""
    inputs, outputs = (
        # Open axes have names instead of lengths.
        {
            each.name: [dim if isinstance(dim, int) else -1 for dim in each.shape[1:]]
            for each in tensors
        }
        for tensors in (session.get_inputs(), session.get_outputs())
    )
    return GraphTensors(inputs, outputs)
