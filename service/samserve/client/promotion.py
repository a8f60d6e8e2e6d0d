"""Putting a version of a model into service, for `samserve models promote`."""

from __future__ import annotations

from samserve.client.calls import Call, stub
from samserve.types.models import ModelVersion
from samserve.v1 import samserve_pb2 as pb


class PromotionCalls:
    """The method of `Client` for versions; in a class of its own for its size only."""

    def _begin(self, request_id: str) -> Call:
        raise NotImplementedError

    async def promote_model(self, step: str, version: ModelVersion, *, request_id: str = "") -> str:
        """Run one step: ``prepare``, ``activate``, ``drain`` or ``release``; safe to repeat.

        Returns the digest of the version that is in service afterwards.  A refusal has the reason
        ``PROMOTION_REFUSED`` or ``MEMORY_EXHAUSTED``.
        """
        request = pb.PromoteModelRequest(
            step=pb.PromotionStep.Value(f"PROMOTION_STEP_{step.upper()}"),
            model=version.model,
            digest=version.digest,
            version=version.number,
            configs=version.configs,
            new_bytes=version.new_bytes,
            served_bytes=version.served_bytes,
        )
        response = await self._begin(request_id).send(
            lambda channel: stub(channel).PromoteModel, request
        )
        return response.digest
