"""What is signed of a version, as bytes, and the texts of signatures and public keys."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records import signatures
from cogment_model_registry.records.signatures import (
    MESSAGE_PREFIX,
    PublicKey,
    Signature,
    message_of,
    parse_public_keys,
    parse_signature,
    public_key,
    public_key_of_raw,
    signature_of,
)
from cogment_model_registry.records.uploads import UploadHeader
from cogment_model_registry.records.versions import VersionHeader
from tests import pages
from tests.signing import KeyPair

SECRET = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
"""The private key of the first example of RFC 8032 (section 7.1)."""

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
HEADERS = st.builds(
    VersionHeader,
    model_id=TEXTS,
    archived=st.booleans(),
    data_size_bytes=st.integers(0, 2**63 - 1),
    data_hash=TEXTS,
    user_data=st.dictionaries(TEXTS, TEXTS, max_size=3),
)
SIGNED = VersionHeader("m", False, 3, "hash", user_data={"a": "b"})


def fields_in(message: bytes) -> list[str]:
    """Return the fields of a message, read by another way than they were written."""
    assert message.startswith(MESSAGE_PREFIX)
    rest, fields = message[len(MESSAGE_PREFIX) :], []
    while rest:
        length = re.match(rb"(0|[1-9][0-9]*):", rest)
        assert length
        end = length.end() + int(length[1])
        fields.append(rest[length.end() : end].decode())
        assert rest[end : end + 1] == b","
        rest = rest[end + 1 :]
    return fields


@given(HEADERS)
def test_everything_that_is_signed_can_be_read_back_from_the_message(header: VersionHeader) -> None:
    model_id, data_hash, size, *entries = fields_in(message_of(header))
    assert (model_id, data_hash, int(size)) == (header.model_id, header.data_hash, header.data_size_bytes)
    assert dict(zip(entries[::2], entries[1::2], strict=True)) == header.user_data
    keys = [key.encode() for key in entries[::2]]
    assert keys == sorted(keys)


@given(HEADERS, HEADERS)
def test_two_versions_have_the_same_message_only_if_all_that_is_signed_is_the_same(
    one: VersionHeader, other: VersionHeader
) -> None:
    def signed(header: VersionHeader) -> tuple[str, str, int, Mapping[str, str]]:
        return header.model_id, header.data_hash, header.data_size_bytes, header.user_data

    assert (message_of(one) == message_of(other)) == (signed(one) == signed(other))


def test_the_published_vectors_are_right() -> None:
    private = Ed25519PrivateKey.from_private_bytes(SECRET)
    key = public_key_of_raw(private.public_key().public_bytes_raw())
    document = json.loads(pages.text_of("docs/signature-vectors.json"))
    assert document["private_key"] == SECRET.hex()
    assert document["key_id"] == key.key_id
    assert document["public_key"] == key.der.hex()
    assert len(document["versions"]) >= 2
    for vector in document["versions"]:
        header = VersionHeader(
            vector["model_id"], False, vector["data_size"], vector["data_hash"], user_data=vector["user_data"]
        )
        assert message_of(header).hex() == vector["message"]
        assert private.sign(message_of(header)).hex() == vector["signature"]


def test_only_what_can_change_later_is_not_signed() -> None:
    same = VersionHeader("m", True, 3, "hash", created_ns=7, user_data={"a": "b"})
    assert message_of(same) == message_of(SIGNED)


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=64, max_size=64))
def test_a_signature_survives_its_text(key_id: bytes, value: bytes) -> None:
    signature = signature_of(key_id, value)
    assert parse_signature(str(signature)) == signature
    assert (signature.key_id_bytes, signature.value_bytes) == (key_id, value)


SIGNATURE = signature_of(bytes(32), b"\xff" * 64)


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "x", SIGNATURE.key_id, SIGNATURE.value, f"{SIGNATURE} ", f" {SIGNATURE}", f"{SIGNATURE}\n"),
        str(SIGNATURE).replace(":", "::"),
        str(SIGNATURE)[1:],
        str(SIGNATURE)[:-1],
        str(SIGNATURE).replace("0", "A", 1),
        str(SIGNATURE).replace("w==", "x=="),  # stray bits
        str(SIGNATURE).replace("w==", "é=="),
    ],
)
def test_a_malformed_text_is_no_signature(text: str) -> None:
    assert parse_signature(text) is None


@pytest.mark.parametrize(("key_id", "value"), [(b"", bytes(64)), (bytes(31), bytes(64)), (bytes(32), bytes(63))])
def test_a_signature_of_another_length_is_refused(key_id: bytes, value: bytes) -> None:
    with pytest.raises(InvalidError, match="must have"):
        signature_of(key_id, value)


def test_the_digest_of_an_upload_depends_on_its_signature_and_is_as_before_without_one() -> None:
    plain = UploadHeader(SIGNED)
    signed = UploadHeader(VersionHeader("m", False, 3, "hash", user_data={"a": "b"}, signature=SIGNATURE))
    assert plain.digest() == "6e8bd2c1e4be7706774047281e7d30e6"
    assert signed.digest() != plain.digest()


# Keys.


def test_keys_are_those_of_openssl_and_cryptography() -> None:
    pair = KeyPair()
    public = pair.private.public_key()
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    key = public_key(der)
    assert key.pem.encode() == pem
    assert key.key_id == hashlib.sha256(der).hexdigest()
    assert (key.der, key.raw) == (der, public.public_bytes_raw())
    assert parse_public_keys(pem) == [key]


def test_a_file_may_have_several_keys_with_text_between_them() -> None:
    pairs = [KeyPair(), KeyPair()]
    text = b"# the trainers\r\n" + b"\nand\n".join(pair.public_pem for pair in pairs).replace(b"\n", b"\r\n")
    assert parse_public_keys(text) == [pair.public for pair in pairs]


def other_pem() -> bytes:
    return (
        X25519PrivateKey.generate()
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


@pytest.mark.parametrize(
    ("pem", "reason"),
    [
        (b"", "no public key"),
        (b"\x00\xff", "no public key"),
        (b"-----BEGIN PUBLIC KEY-----\n", "no public key"),
        (b"-----BEGIN PUBLIC KEY-----\n!\n-----END PUBLIC KEY-----\n", "not an Ed25519 key"),
        (b"-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n", "not an Ed25519 key"),
        (KeyPair().private_pem, "a private key"),
        (b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n", "something else"),
        (other_pem(), "not an Ed25519 key"),
    ],
    ids=["empty", "binary", "no end", "no base64", "no key", "private", "certificate", "another curve"],
)
def test_other_files_are_refused(pem: bytes, reason: str) -> None:
    with pytest.raises(InvalidError, match=reason) as caught:
        parse_public_keys(pem)
    for line in pem.splitlines():
        if len(line) > 20 and not line.startswith(b"-"):
            assert line.decode() not in str(caught.value)


# The curve, as RFC 8032 (section 5.1) defines it, to find the keys for which anybody can sign.

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
Point = tuple[int, int]


def added(one: Point, other: Point) -> Point:
    (x1, y1), (x2, y2) = one, other
    product = D * x1 * x2 * y1 * y2 % P
    x = (x1 * y2 + x2 * y1) * pow(1 + product, -1, P)
    y = (y1 * y2 + x1 * x2) * pow(1 - product, -1, P)
    return x % P, y % P


def decoded(raw: bytes) -> Point | None:
    """Return the point of a key, with an x of either sign; None if there is none."""
    y = int.from_bytes(raw, "little") % 2**255 % P
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    return (x, y) if x * x % P == square else None


def is_of_small_order(raw: bytes) -> bool:
    point = decoded(raw)
    assert point
    for _ in range(3):
        point = added(point, point)
    return point == (0, 1)


def test_keys_of_small_order_are_refused_since_anybody_can_sign_for_them() -> None:
    listed = signatures._SMALL_ORDER
    assert all(map(is_of_small_order, listed))
    # All of them: 8 points have such an order, which have 5 values of y, of which 2 have another encoding.
    assert len({point[1] for raw in listed if (point := decoded(raw))}) == 5
    assert len(listed) == 7
    for raw in listed:
        for sign in (0, 0x80):
            with pytest.raises(InvalidError, match="small order"):
                public_key_of_raw(raw[:-1] + bytes([raw[-1] | sign]))
    assert not is_of_small_order(KeyPair().public.raw)


def test_anybody_can_sign_for_a_key_of_small_order() -> None:
    identity = (1).to_bytes(32, "little")
    value = identity + bytes(32)  # R = 1 and S = 0: valid for each message
    Ed25519PublicKey.from_public_bytes(identity).verify(value, b"anything")


def test_no_key_has_anothers_text() -> None:
    keys = [KeyPair().public for _ in range(20)]
    assert len({key.key_id for key in keys}) == 20
    assert base64.b64decode(keys[0].pem.splitlines()[1]) == keys[0].der
    assert PublicKey(keys[0].key_id, keys[0].pem) == keys[0]
    assert Signature("a", "b") != Signature("a", "c")
