"""Settings of embeddings as files."""

from __future__ import annotations

from pydantic import Field

from samserve.settings.section import MIB, Section


class EmbeddingFileSettings(Section):
    """Embeddings as files (GetEmbedding and PutEmbedding); see `docs/embeddings.md`."""

    get_enabled: bool = False
    """Whether GetEmbedding is enabled; callers also need the permission `embeddings_read`."""
    put_enabled: bool = False
    """Whether PutEmbedding is enabled; callers also need the permission `embeddings_write`."""
    max_upload_bytes: int = Field(default=128 * MIB, ge=1)
    """Maximum bytes of all files that are being received; no tenant may use all of them. A larger
    file is received alone."""
    upload_timeout_s: float = Field(default=300.0, gt=0)
    """Maximum time in seconds to receive a file; `server.receive_timeout_s` limits the time for
    each of its messages, and the call's deadline applies if it is earlier."""
