"""All proofs, in the order of the table."""

from tests.torture import memory
from tests.torture.proof import Proof

PROOFS: list[Proof] = [
    memory.PROOF,
]
