"""Keys and JSON Web Tokens of an issuer, valid ones and others, made by a library and by hand."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

ISSUER, AUDIENCE, SUBJECT = "https://issuer.example/realm", "model-registry", "system:serviceaccount:rl:trainer"

RSA = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
P256 = ec.generate_private_key(ec.SECP256R1())
PRIVATE: Mapping[str, Any] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), RSA),
    "ES256": P256,
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
KIDS = {"RSA": RSA, "P256": P256, "P384": PRIVATE["ES384"], "P521": PRIVATE["ES512"], "Ed25519": PRIVATE["EdDSA"]}


def jwk(private: Any, kid: str | None, **members: object) -> dict[str, object]:
    """Return the JSON Web Key of a key, without its private part."""
    public = private.public_key()
    algorithm: Any
    if isinstance(private, rsa.RSAPrivateKey):
        algorithm = jwt.algorithms.RSAAlgorithm
    elif isinstance(private, ec.EllipticCurvePrivateKey):
        algorithm = jwt.algorithms.ECAlgorithm
    else:
        algorithm = jwt.algorithms.OKPAlgorithm
    return {
        **algorithm.to_jwk(public, as_dict=True),
        **({} if kid is None else {"kid": kid}),
        **members,
    }


def jwks(*keys: dict[str, object]) -> bytes:
    """Return a JSON Web Key Set."""
    return json.dumps({"keys": keys}).encode()


ALL_KEYS = jwks(*(jwk(private, kid) for kid, private in KIDS.items()))


def claims_of(**claims: object) -> dict[str, object]:
    """Return the claims of a valid token, less those that are None."""
    now = int(time.time())
    all_claims = {"iss": ISSUER, "aud": [AUDIENCE], "sub": SUBJECT, "exp": now + 600, "iat": now, **claims}
    return {name: value for name, value in all_claims.items() if value is not None}


def signed(
    private: Any = RSA, kid: str | None = "RSA", algorithm: str = "RS256", headers: Any = None, **claims: object
) -> str:
    """Return a token, by default a valid one."""
    return jwt.encode(
        claims_of(**claims), private, algorithm, {**({} if kid is None else {"kid": kid}), **(headers or {})}
    )


PUBLIC_TEXT = RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def encoded(value: object) -> str:
    """Return a part of a token."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def crafted(header: object, claims: object, secret: bytes | None = None) -> str:
    """Return a token that no library would make: without a signature, or with an HMAC."""
    text = f"{encoded(header)}.{encoded(claims)}"
    return f"{text}." + ("" if secret is None else encoded(hmac.digest(secret, text.encode(), hashlib.sha256)))


def bad_tokens() -> dict[str, str]:
    """Return tokens that must be refused, by what is wrong with them."""
    now = time.time()
    admin = claims_of(scope="admin")
    good = signed(scope="admin")
    head, body, signature = good.split(".")
    nested = b"[" * 2500 + b"]" * 2500
    return {
        "of another issuer": signed(scope="admin", iss=ISSUER + "/"),
        "of an issuer whose name begins alike": signed(scope="admin", iss=ISSUER[:-1]),
        "issuers in a list": signed(scope="admin", iss=[ISSUER]) if jwt.__version__ < "2.10" else head,
        "without an issuer": signed(scope="admin", iss=None),
        "for another audience": signed(scope="admin", aud="other"),
        "for an audience that begins alike": signed(scope="admin", aud=[AUDIENCE + "x", AUDIENCE[:-1]]),
        "for none": signed(scope="admin", aud=None),
        "for an empty list": signed(scope="admin", aud=[]),
        "audience of another type": signed(scope="admin", aud={AUDIENCE: 1}),
        "expired": signed(scope="admin", exp=int(now) - 1),
        "expired long ago": signed(scope="admin", exp=0),
        "without an end": signed(scope="admin", exp=None),
        "end that is a text": signed(scope="admin", exp=str(int(now) + 600)),
        "end that is true": signed(scope="admin", exp=True),
        "endless": signed(scope="admin", exp=float("inf")),
        "end that is no number": signed(scope="admin", exp=float("nan")),
        "end far away": signed(scope="admin", exp=10**400),
        "not valid yet": signed(scope="admin", nbf=int(now) + 600),
        "begin that is malformed": signed(scope="admin", nbf=[1]),
        "issued in the future": signed(scope="admin", iat=int(now) + 600),
        "issued at no number": signed(scope="admin", iat="yesterday"),
        "without a subject": signed(scope="admin", sub=None),
        "empty subject": signed(scope="admin", sub=""),
        "subject with a line break": signed(scope="admin", sub="a\nb"),
        "long subject": signed(scope="admin", sub="a" * 256),
        "subject that is a number": crafted({"alg": "none"}, claims_of(sub=7)),
        "signed by another key": signed(OTHER_RSA, scope="admin"),
        "key of another name": signed(OTHER_RSA, "other", scope="admin"),
        "key of another type": signed(P256, "RSA", "ES256", scope="admin"),
        "algorithm of another key": signed(RSA, "P256", scope="admin"),
        "without the name of a key": signed(kid=None, scope="admin"),
        "key that comes along": signed(OTHER_RSA, headers={"jwk": jwk(OTHER_RSA, "RSA")}, scope="admin"),
        "critical extension": signed(headers={"crit": ["x"], "x": 1}, scope="admin"),
        "payload that is not encoded": signed(headers={"b64": False, "crit": ["b64"]}, scope="admin"),
        "none": crafted({"alg": "none", "kid": "RSA"}, admin),
        "None": crafted({"alg": "None", "kid": "RSA"}, admin),
        "none with a signature": f"{encoded({'alg': 'none', 'kid': 'RSA'})}.{body}.{signature}",
        "HMAC with the public key": crafted({"alg": "HS256", "kid": "RSA"}, admin, PUBLIC_TEXT),
        "HMAC with the key of the set": crafted({"alg": "HS256", "kid": "RSA"}, admin, ALL_KEYS),
        "HMAC with nothing": crafted({"alg": "HS256", "kid": "RSA"}, admin, b""),
        "HMAC that says that it is not": crafted({"alg": "RS256", "kid": "RSA"}, admin, PUBLIC_TEXT),
        "curve that is not accepted": signed(ec.generate_private_key(ec.SECP256K1()), "P256", "ES256K", scope="admin"),
        "algorithm that is a list": crafted({"alg": ["RS256"], "kid": "RSA"}, admin),
        "algorithm that is nothing": crafted({"kid": "RSA"}, admin),
        "key that is a list": crafted({"alg": "RS256", "kid": ["RSA"]}, admin),
        "header that is a list": crafted([], admin),
        "header that is nested": crafted(nested, admin),
        "header that is not UTF-8": crafted(b"\xff", admin),
        "claims that are a list": jwt.api_jws.encode(b"[]", RSA, "RS256", {"kid": "RSA"}),
        "claims that are nested": jwt.api_jws.encode(nested[:4000], RSA, "RS256", {"kid": "RSA"}),
        "claims that are not UTF-8": jwt.api_jws.encode(b"\xff", RSA, "RS256", {"kid": "RSA"}),
        "without a signature": f"{head}.{body}.",
        "signature of another": f"{head}.{body}.{signed(scope='read').split('.')[2]}",
        "other claims": f"{head}.{encoded(admin)}.{signed(scope='read').split('.')[2]}",
        "without claims": f"{head}..{signature}",
        "dots": "..",
        "a part more": f"{good}.{signature}",
        "a part less": f"{head}.{body}",
        "too long": signed(scope="admin", padding="a" * 9000),
        "far too long": f"{head}.{'a' * 10_000}.{signature}",
        "not ours": "cmr_" + "a" * 43,
        "empty": "",
    }


def mutated(token: str, chance: Random, alphabet: Sequence[str]) -> str:
    """Return a token with some characters changed, removed, added or moved."""
    letters = list(token)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(letters) or 1)
        letters[place : place + chance.randint(0, 2)] = chance.choices(alphabet, k=chance.randint(0, 2))
    if chance.random() < 0.2:
        parts = "".join(letters).split(".")
        chance.shuffle(parts)
        return ".".join(parts)
    return "".join(letters)


def is_same(token: str, good: str) -> bool:
    """Return whether a token is another spelling of a good one, with other unused bits at the ends of its parts.

    Base64 leaves some bits unused, and Python's decoder ignores what is not of its alphabet.
    """

    def parts(text: str) -> list[bytes]:
        return [base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in text.split(".")]

    try:
        same_signature = parts(token)[2:] == parts(good)[2:]
    except ValueError:
        return False
    return same_signature and token.split(".")[:2] == good.split(".")[:2]
