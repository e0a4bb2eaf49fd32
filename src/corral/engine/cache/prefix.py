"""Names for cached blocks: a digest of all tokens up to a block's end, and of who may share them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

_DIGEST_BYTES = 16  # a collision would show one tenant's tokens to another: 128 bits rule it out


def prefix_salt(adapter: bytes, tenant: str) -> bytes:
    """The salt under which requests with the same adapter and the same tenant share prefixes.

    `adapter` identifies the adapter's weights, and is empty without one.
    """
    return len(adapter).to_bytes(8, "little") + adapter + tenant.encode("utf-8", "surrogatepass")


def root_digest(salt: bytes) -> bytes:
    """The digest that stands before a sequence's first block."""
    return blake2b(salt, digest_size=_DIGEST_BYTES, person=b"corral.kv.root").digest()


def block_digest(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The digest of a full block with these tokens, after the block (or root) with digest `parent`."""
    return blake2b(parent + array("q", tokens).tobytes(), digest_size=_DIGEST_BYTES).digest()
