"""The rule that each new version of a model is signed by one of some keys.

It holds for versions that are created, by whatever call, and for transient ones that are promoted. It is asked of the
catalog before bytes are received, so that an upload that will be refused sends none, and again within the change that
makes the version visible: what becomes visible has obeyed the rule of that moment. What was there before stays.
"""

from collections.abc import Sequence

from cogment_model_registry.errors import PreconditionError, quoted
from cogment_model_registry.records.signatures import PublicKey, Signable, Signature, message_of
from cogment_model_registry.records.versions import VersionHeader
from cogment_model_registry.system import ed25519


def check_can_verify(model_id: str) -> None:
    """Refuse to demand signatures where they cannot be checked.

    Raises:
        PreconditionError: The package that checks them is not installed.
    """
    if not ed25519.is_available():
        raise PreconditionError(
            f"this server cannot check signatures of model {quoted(model_id)}, since cryptography is not installed: "
            f"its operator installs it with {ed25519.INSTALL}",
            model_id=model_id,
        )


def check_header(signers: Sequence[PublicKey], header: VersionHeader) -> None:
    """Refuse to receive a version that will be refused, as far as its header tells.

    Raises:
        PreconditionError: It is not signed by one of the keys, or signatures cannot be checked here.
    """
    if header.data_hash:
        check_signature(signers, header, header.signature)
    else:
        _signer(signers, header.model_id, header.signature)


def check_signature(signers: Sequence[PublicKey], version: Signable, signature: Signature | None) -> None:
    """Refuse a version that is not signed by one of some keys.

    Args:
        signers: The keys; none if signatures are not demanded.
        version: The version, with the hash of the bytes that were received.
        signature: Its signature, if it has one.

    Raises:
        PreconditionError: It is not, or signatures cannot be checked here.
    """
    found = _signer(signers, version.model_id, signature)
    if found is None:
        return
    key, value = found
    if not ed25519.is_signed(key.raw, value, message_of(version)):
        message = (
            f"the signature of a version of model {quoted(version.model_id)} is wrong: key {key.key_id} did not sign "
            "this model, hash, size and user_data"
        )
        raise PreconditionError(message, model_id=version.model_id)


def _signer(signers: Sequence[PublicKey], model_id: str, signature: Signature | None) -> tuple[PublicKey, bytes] | None:
    """Return the key that a signature names, and its bytes; None if no signature is demanded."""
    if not signers:
        return None
    check_can_verify(model_id)
    what = f"model {quoted(model_id)} takes only versions that one of its signers has signed"
    if signature is None:
        message = f"{what}, and this one has no signature: sign it, and upload it by UploadVersion"
        raise PreconditionError(message, model_id=model_id)
    for key in signers:
        if key.key_id == signature.key_id:
            return key, signature.value_bytes
    message = f"{what}, and this one is signed by another key, {signature.key_id}"
    raise PreconditionError(message, model_id=model_id)
