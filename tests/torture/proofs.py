"""All proofs, in the order of the table."""

from tests.torture import (
    aliases,
    catalog_failing_io,
    catalog_power_cut,
    containment,
    failing_io,
    file_system_shutdown,
    full_disk,
    fuzzed_messages,
    http2_abuse,
    isolation,
    kills,
    lifecycle_machine,
    memory,
    numbers,
    power_cut,
    wake_ups,
    wrong_bytes,
)
from tests.torture.proof import Proof

PROOFS: list[Proof] = [
    kills.PROOF,
    power_cut.PROOF,
    catalog_power_cut.PROOF,
    file_system_shutdown.PROOF,
    failing_io.PROOF,
    catalog_failing_io.PROOF,
    full_disk.PROOF,
    wrong_bytes.PROOF,
    numbers.PROOF,
    aliases.PROOF,
    isolation.PROOF,
    wake_ups.PROOF,
    memory.PROOF,
    containment.PROOF,
    lifecycle_machine.PROOF,
    fuzzed_messages.PROOF_MESSAGES,
    fuzzed_messages.PROOF_DECODING,
    http2_abuse.PROOF,
]
