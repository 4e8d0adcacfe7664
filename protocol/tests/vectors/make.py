#!/usr/bin/env python3
"""Makes the test vectors in this folder, from docs/envelope.md and without latchkey's code.

Needs `cryptography` (HKDF's HMAC, X25519, ChaCha20-Poly1305) and `pynacl` (XChaCha20-Poly1305). All values are fixed,
so a second run writes the same bytes. The files are committed; run this only when the format changes:

    python3 make.py
"""

import base64
import copy
import hashlib
import hmac
import json
import pathlib
import uuid

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt as xchacha_encrypt

HERE = pathlib.Path(__file__).parent


def main():
    write("envelope.json", envelope_vectors())
    write("release.json", release_vectors())
    write("join-token.json", join_token_vectors())


# --- primitives ------------------------------------------------------------------------------------------------------


def u32(number):
    return number.to_bytes(4, "big")


def u64(number):
    return number.to_bytes(8, "big")


def key_id_salt(uuid_text):
    return hashlib.sha256(lp(b"latchkey volume key v1", uuid_text.encode())).digest()


def lp(*fields):
    return b"".join(u32(len(field)) + field for field in fields)


def b64(data):
    return base64.b64encode(data).decode()


def hkdf_extract(salt, ikm):
    return hmac.new(salt or bytes(32), ikm, hashlib.sha256).digest()


def hkdf_expand(prk, info, length):
    output, block, counter = b"", b"", 1
    while len(output) < length:
        block = hmac.new(prk, block + info + bytes([counter]), hashlib.sha256).digest()
        output, counter = output + block, counter + 1
    return output[:length]


def pattern(label, length):
    """Bytes that look random, and are the same in each run."""
    return hashlib.shake_256(label.encode()).digest(length)


# --- envelope --------------------------------------------------------------------------------------------------------


def seal_envelope(token, server, share, generation, secret, salt, nonce):
    volume = uuid.UUID(token["volume"]).bytes
    uuid_text = token["uuid"].encode()
    okm = hkdf_expand(
        hkdf_extract(salt, share), lp(b"latchkey envelope v1", uuid_text, volume, u32(generation)), 64
    )
    key, commitment = okm[:32], okm[32:]
    encoded = encode_bound(token["bound"])
    aad = lp(
        b"latchkey envelope v1", volume, uuid_text, encoded, server, u32(generation), salt, commitment
    )
    return {
        "server": server.hex(),
        "generation": generation,
        "salt": b64(salt),
        "nonce": b64(nonce),
        "commitment": b64(commitment),
        "sealed": b64(xchacha_encrypt(secret, aad, nonce, key)),
    }


def encode_bound(bound):
    ((kind, facts),) = bound.items()

    def number(field):
        return u32(facts[field])

    def text(field):
        return facts[field].encode()

    volume_key_id = base64.b64decode(facts["volume-key-id"])
    if kind in ("luks2", "detached-luks2"):
        return lp(
            kind.encode(),
            number("keyslot"),
            number("iterations"),
            text("cipher"),
            number("key-size"),
            number("sector-size"),
            u64(facts["offset"]),
            volume_key_id,
            *([encode_integrity(facts["integrity"])] if "integrity" in facts else []),
        )
    if kind == "luks1":
        return lp(
            b"luks1",
            number("keyslot"),
            number("iterations"),
            text("cipher"),
            text("hash"),
            number("key-size"),
            u64(facts["offset"]),
            number("digest-iterations"),
            volume_key_id,
        )
    assert kind == "plain"
    return lp(
        b"plain",
        text("secret"),
        text("cipher"),
        text("hash"),
        number("key-size"),
        number("sector-size"),
        u64(facts["offset"]),
        u64(facts["skip"]),
        volume_key_id,
    )


def encode_integrity(integrity):
    return lp(
        integrity["type"].encode(),
        integrity["journal-encryption"].encode(),
        integrity["journal-integrity"].encode(),
        u32(integrity["key-size"]) if "key-size" in integrity else b"",
    )


def envelope_vectors():
    good = [
        envelope_case("one key server", 1, 32, {}, "5e9f3c1e-7a44-4f0c-8d3e-52a1c0ffee00"),
        envelope_case(
            "three key servers, 4096-byte sectors, a short and a long secret",
            3,
            512,
            {"sector-size": 4096, "offset": 2**64 - 1, "iterations": 2**32 - 1, "keyslot": 31},
            "00000000-0000-4000-8000-000000000000",
        ),
        envelope_case("a secret of one byte, a cipher in kernel spelling", 1, 1, {"cipher": "capi:xts(aes)-plain64"}, ""),
        envelope_case("a detached header", 1, 32, {"offset": 0}, UUID, "detached-luks2"),
        envelope_case("LUKS1", 2, 32, {}, UUID, "luks1"),
        envelope_case("plain by passphrase", 1, 13, {}, UUID, "plain"),
        envelope_case(
            "plain by volume key",
            1,
            64,
            {"secret": "volume-key", "hash": "plain", "skip": 2**64 - 1, "sector-size": 4096},
            UUID,
            "plain",
        ),
    ]
    refused = refused_envelopes(good[0])
    for case in good[3:6]:
        refused += refused_facts(case)
    bad = bad_tokens(good[0]) + bad_kinds(good[3:])
    authenticated = [
        envelope_case("LUKS2 with integrity", 1, 32, {"key-size": 96, "integrity": INTEGRITY}, UUID),
        envelope_case(
            "a detached header with integrity and the size of its key",
            1,
            32,
            {"key-size": 96, "integrity": dict(INTEGRITY, **{"key-size": 32})},
            UUID,
            "detached-luks2",
        ),
    ]
    for case in authenticated:
        bad += bad_integrity(case)
        refused += refused_integrity(case)
    return {"good": good + authenticated, "bad_json": bad, "refused": refused}


UUID = "7d1f0e5c-2b7e-4a55-9a3c-1b2c3d4e5f60"
INTEGRITY = {"type": "hmac(sha256)", "journal-encryption": "none", "journal-integrity": "none"}
FACTS = {
    "luks2": {
        "keyslot": 1,
        "iterations": 1000,
        "cipher": "aes-xts-plain64",
        "key-size": 64,
        "sector-size": 512,
        "offset": 16777216,
    },
    "luks1": {
        "keyslot": 1,
        "iterations": 1000,
        "cipher": "aes-xts-plain64",
        "hash": "sha256",
        "key-size": 64,
        "offset": 2097152,
        "digest-iterations": 123456,
    },
    "plain": {
        "secret": "passphrase",
        "cipher": "twofish-xts-plain64",
        "hash": "sha512",
        "key-size": 64,
        "sector-size": 512,
        "offset": 1048576,
        "skip": 2048,
    },
}
FACTS["detached-luks2"] = FACTS["luks2"]


def envelope_case(name, servers, secret_length, bound, uuid_text, kind="luks2"):
    volume_key = pattern(name + " volume key", 64)
    token = {
        "type": "latchkey",
        "keyslots": [] if kind == "plain" else ["1"],
        "version": 1,
        "volume": str(uuid.UUID(bytes=pattern(name + " volume", 16), version=4)),
        "uuid": uuid_text,
        "bound": {
            kind: FACTS[kind]
            | {
                "volume-key-id": b64(
                    hashlib.pbkdf2_hmac("sha256", volume_key, key_id_salt(uuid_text), 1, 32)
                ),
            }
            | bound
        },
        "envelopes": [],
    }
    secret = pattern(name + " secret", secret_length)
    shares = []
    for number in range(servers):
        label = f"{name} {number}"
        share = pattern(label + " share", 32)
        token["envelopes"].append(
            seal_envelope(
                token,
                pattern(label + " server", 32),
                share,
                number + 1,
                secret,
                pattern(label + " salt", 32),
                pattern(label + " nonce", 24),
            )
        )
        shares.append(share.hex())
    return {
        "name": name,
        "volume_key": volume_key.hex(),
        "secret": secret.hex(),
        "shares": shares,
        "token": token,
    }


def bad_tokens(case):
    """JSON texts that must not parse, each with the reason."""
    good = case["token"]
    text = json.dumps(good)
    envelope = json.dumps(good["envelopes"][0])
    bad = []

    def changed(why, change):
        token = copy.deepcopy(good)
        change(token)
        bad.append({"why": why, "json": json.dumps(token)})

    def replaced(why, old, new):
        assert text.count(old) >= 1, old
        bad.append({"why": why, "json": text.replace(old, new, 1)})

    for path in [(), ("bound",), ("bound", "luks2"), ("envelopes", 0)]:

        def at(token, path=path):
            for step in path:
                token = token[step]
            return token

        where = "/".join(map(str, path)) or "the token"
        changed(f"unknown field in {where}", lambda token: at(token).update(extra=1))
        for field in at(good):
            changed(f"no '{field}' in {where}", lambda token: at(token).pop(field))
            pair = json.dumps({field: at(good)[field]})[1:-1]
            replaced(f"'{field}' twice in {where}", pair, f"{pair}, {pair}")
            changed(f"'{field}' is null in {where}", lambda token: at(token).update({field: None}))
    for version in [0, 2, -1, "1", 1.0]:
        changed(f"version {version!r}", lambda token: token.update(version=version))
    changed("another type", lambda token: token.update(type="latchkey2"))
    changed("another kind of volume", lambda token: token.update(bound={"luks1": good["bound"]["luks2"]}))
    changed("volume id in upper case", lambda token: token.update(volume=good["volume"].upper()))
    changed("volume id without hyphens", lambda token: token.update(volume=good["volume"].replace("-", "")))
    changed("server id too short", lambda token: token["envelopes"][0].update(server="ab"))
    changed("keyslot above 32 bits", lambda token: token["bound"]["luks2"].update(keyslot=2**32))
    changed("offset below zero", lambda token: token["bound"]["luks2"].update(offset=-1))
    changed("offset above 64 bits", lambda token: token["bound"]["luks2"].update(offset=2**64))
    changed("keyslots as numbers", lambda token: token.update(keyslots=[1]))
    changed("no envelope", lambda token: token.update(envelopes=[]))
    changed("two envelopes for one key server", lambda token: token["envelopes"].append(token["envelopes"][0]))
    nine = [dict(good["envelopes"][0], server=f"{number:064x}") for number in range(9)]
    changed("nine envelopes", lambda token: token.update(envelopes=nine))
    changed("an envelope as a list", lambda token: token.update(envelopes=[list(good["envelopes"][0].values())]))
    bad.append({"why": "the token as a list", "json": json.dumps(list(good.values()))})
    changed("larger than 8192 bytes", lambda token: token.update(uuid="x" * 8192))
    for field in ["salt", "nonce", "commitment", "sealed"]:
        value = good["envelopes"][0][field]
        for why, spelling in not_canonical(value):
            changed(f"{field}: {why}", lambda token: token["envelopes"][0].update({field: spelling}))
    bad.append({"why": "an envelope alone", "json": envelope})
    bad.append({"why": "something after it", "json": text + "{}"})
    bad.append({"why": "cut off", "json": text[:-1]})
    bad.append({"why": "empty", "json": ""})
    return bad


def bad_kinds(cases):
    """Of each other kind of volume: no fact may be missing, none added, and no two kinds be mixed."""
    bad = []
    for case in cases:
        ((kind, facts),) = case["token"]["bound"].items()

        def changed(why, bound, case=case, kind=kind):
            bad.append({"why": f"{kind}: {why}", "json": json.dumps(dict(case["token"], bound=bound))})

        for field in facts:
            changed(f"no '{field}'", {kind: {key: facts[key] for key in facts if key != field}})
            changed(f"'{field}' is null", {kind: dict(facts, **{field: None})})
        changed("an unknown fact", {kind: dict(facts, extra=1)})
        changed("as a list", {kind: list(facts.values())})
        changed("two kinds", {kind: facts, "luks2": FACTS["luks2"]})
        if kind == "plain":
            changed("an unknown kind of secret", {kind: dict(facts, secret="key-file")})
    return bad


def refused_facts(case):
    """Each fact of another kind of volume, changed, with the right share."""
    refused = []
    ((kind, facts),) = case["token"]["bound"].items()
    for field, value in facts.items():
        other = {"secret": "volume-key", "volume-key-id": b64(pattern("other", 32))}.get(field)
        other = other or (value + 1 if isinstance(value, int) else value + "x")
        token = dict(case["token"], bound={kind: dict(facts, **{field: other})})
        share = case["shares"][0]
        refused.append({"why": f"{kind}: {field}", "error": "changed", "token": token, "share": share})
    if kind == "detached-luks2":
        token = dict(case["token"], bound={"luks2": facts})
        refused.append({"why": "an attached header", "error": "changed", "token": token, "share": share})
    return refused


def bad_integrity(case):
    """Of authenticated encryption: nothing may be missing or null but the key's size, and nothing added."""
    ((kind, facts),) = case["token"]["bound"].items()
    integrity = facts["integrity"]
    bad = []

    def changed(why, value):
        bound = {kind: dict(facts, integrity=value)}
        bad.append({"why": f"{kind}, integrity: {why}", "json": json.dumps(dict(case["token"], bound=bound))})

    for field in integrity:
        if field != "key-size":
            changed(f"no '{field}'", {key: integrity[key] for key in integrity if key != field})
        changed(f"'{field}' is null", dict(integrity, **{field: None}))
    changed("null", None)
    changed("a text", integrity["type"])
    changed("as a list", list(integrity.values()))
    changed("empty", {})
    changed("an unknown fact", dict(integrity, extra=1))
    changed("a negative size", dict(integrity, **{"key-size": -1}))
    changed("a size as text", dict(integrity, **{"key-size": "32"}))
    changed("a size above 32 bits", dict(integrity, **{"key-size": 2**32}))
    return bad


def refused_integrity(case):
    """Authenticated encryption that was taken away, or is another one, with the right share."""
    ((kind, facts),) = case["token"]["bound"].items()
    integrity = facts["integrity"]
    others = [dict(integrity, **{field: "x"}) for field in INTEGRITY]
    others += [
        {key: integrity[key] for key in INTEGRITY} if "key-size" in integrity else None,
        dict(integrity, **{"key-size": 0}),
        dict(integrity, **{"key-size": 33}),
        dict(integrity, **{"journal-encryption": "none" + integrity["journal-integrity"], "journal-integrity": ""}),
    ]
    bounds = [dict(facts, integrity=other) for other in others if other]
    bounds.append({field: facts[field] for field in facts if field != "integrity"})
    return [
        {
            "why": f"{kind}: integrity {number}",
            "error": "changed",
            "token": dict(case["token"], bound={kind: bound}),
            "share": case["shares"][0],
        }
        for number, bound in enumerate(bounds)
    ]


def not_canonical(value):
    data = base64.b64decode(value)
    yield "no padding" if value.endswith("=") else "padding too much", (
        value.rstrip("=") if value.endswith("=") else value + "="
    )
    yield "white space", value[:4] + "\n" + value[4:]
    yield "base64url", base64.urlsafe_b64encode(b"\xff" * len(data)).decode()
    if value.endswith("="):
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        body = value.rstrip("=")
        last = alphabet[alphabet.index(body[-1]) | 1]
        assert last != body[-1]
        yield "unused bits set", body[:-1] + last + "=" * (len(value) - len(body))
    yield "not text", value[:-4] + "!!!!"


def refused_envelopes(case):
    """Changed envelopes that parse, and the error that they must give with the right share."""
    good = case["token"]
    refused = []

    def changed(error, why, change):
        token = copy.deepcopy(good)
        change(token, token["bound"]["luks2"], token["envelopes"][0])
        refused.append({"why": why, "error": error, "token": token})

    other = b64(pattern("other", 32))
    changed("changed", "cipher", lambda t, b, e: b.update(cipher="cipher_null-ecb"))
    changed("changed", "keyslot", lambda t, b, e: b.update(keyslot=2))
    changed("changed", "iterations", lambda t, b, e: b.update(iterations=1001))
    changed("changed", "key size", lambda t, b, e: b.update({"key-size": 32}))
    changed("changed", "sector size", lambda t, b, e: b.update({"sector-size": 4096}))
    changed("changed", "offset", lambda t, b, e: b.update(offset=0))
    changed("changed", "volume key id", lambda t, b, e: b.update({"volume-key-id": other}))
    changed("changed", "server", lambda t, b, e: e.update(server="00" * 32))
    changed("changed", "nonce", lambda t, b, e: e.update(nonce=b64(bytes(24))))
    changed("changed", "sealed", lambda t, b, e: e.update(sealed=b64(bytes(48))))
    changed("changed", "sealed shorter", lambda t, b, e: e.update(sealed=b64(base64.b64decode(e["sealed"])[:-1])))
    changed("length", "sealed is a tag alone", lambda t, b, e: e.update(sealed=b64(bytes(16))))
    changed("length", "sealed is shorter than a tag", lambda t, b, e: e.update(sealed=b64(bytes(15))))
    changed("length", "sealed is empty", lambda t, b, e: e.update(sealed=""))
    changed("length", "a secret of 513 bytes", lambda t, b, e: e.update(sealed=b64(bytes(529))))
    changed("wrong share", "salt", lambda t, b, e: e.update(salt=other))
    changed("wrong share", "commitment", lambda t, b, e: e.update(commitment=other))
    changed("wrong share", "uuid", lambda t, b, e: t.update(uuid="5e9f3c1e-7a44-4f0c-8d3e-52a1c0ffee01"))
    changed("wrong volume", "volume", lambda t, b, e: t.update(volume="00000000-0000-4000-8000-000000000000"))
    changed("wrong generation", "generation", lambda t, b, e: e.update(generation=2))
    return refused


# --- release ---------------------------------------------------------------------------------------------------------

KEM = b"KEM" + (0x20).to_bytes(2, "big")
HPKE = b"HPKE" + (0x20).to_bytes(2, "big") + (1).to_bytes(2, "big") + (3).to_bytes(2, "big")


def labeled_extract(suite, salt, label, ikm):
    return hkdf_extract(salt, b"HPKE-v1" + suite + label + ikm)


def labeled_expand(suite, prk, label, info, length):
    return hkdf_expand(prk, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info, length)


def derive_key_pair(seed):
    private = labeled_expand(KEM, labeled_extract(KEM, b"", b"dkp_prk", seed), b"sk", b"", 32)
    key = X25519PrivateKey.from_private_bytes(private)
    return key, key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def seal_release(recipient, encapsulation_seed, info, share):
    ephemeral, enc = derive_key_pair(encapsulation_seed)
    dh = ephemeral.exchange(X25519PublicKey.from_public_bytes(recipient))
    shared = labeled_expand(
        KEM, labeled_extract(KEM, b"", b"eae_prk", dh), b"shared_secret", enc + recipient, 32
    )
    context = (
        b"\0"
        + labeled_extract(HPKE, b"", b"psk_id_hash", b"")
        + labeled_extract(HPKE, b"", b"info_hash", info)
    )
    secret = labeled_extract(HPKE, shared, b"secret", b"")
    key = labeled_expand(HPKE, secret, b"key", context, 32)
    nonce = labeled_expand(HPKE, secret, b"base_nonce", context, 12)
    return enc + ChaCha20Poly1305(key).encrypt(nonce, share, b"")


def release_vectors():
    good = []
    for purpose, client, generation in [
        ("release", "web-1", 1),
        ("proof", "web-1", 1),
        ("registration", "A.b_c-9", 2**32 - 1),
    ]:
        server = pattern(purpose + " server", 32)
        request = pattern(purpose + " request", 16)
        volume = uuid.UUID(bytes=pattern(purpose + " volume", 16), version=4)
        share = pattern(purpose + " share", 32)
        seed = pattern(purpose + " seed", 32)
        encapsulation_seed = pattern(purpose + " encapsulation", 32)
        _, public = derive_key_pair(seed)
        info = lp(
            b"latchkey release v1",
            purpose.encode(),
            server,
            client.encode(),
            request,
            volume.bytes,
            u32(generation),
        )
        good.append(
            {
                "purpose": purpose,
                "server": server.hex(),
                "client": client,
                "request": request.hex(),
                "volume": str(volume),
                "generation": generation,
                "share": share.hex(),
                "seed": seed.hex(),
                "ephemeral_key": b64(public),
                "encapsulation_seed": encapsulation_seed.hex(),
                "sealed": b64(seal_release(public, encapsulation_seed, info, share)),
            }
        )
    # Points of low order (RFC 7748 §7): X25519 gives zeros for each.
    low_order = [
        bytes(32),
        (1).to_bytes(32, "little"),
        (2**255 - 19 - 1).to_bytes(32, "little"),
        (2**255 - 19).to_bytes(32, "little"),
        (2**255 - 18).to_bytes(32, "little"),
        bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
        bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    ]
    return {"good": good, "refused_ephemeral_keys": [b64(point) for point in low_order]}


# --- join token ------------------------------------------------------------------------------------------------------


def join_token(server, secret, texts, checksum=True):
    body = server + secret + b"".join(bytes([len(text)]) + text for text in texts)
    if checksum:
        body += hashlib.sha256(body).digest()[:4]
    return "latchkey1." + base64.urlsafe_b64encode(body).decode().rstrip("=")


def join_token_vectors():
    server, secret = pattern("join server", 32), pattern("join secret", 32)
    cases = [
        ["web-1", "keys.example.org:7443"],
        ["A.b_c-9", "10.0.2.2:7443", "[2001:db8::1]:7444", "x:1"],
        ["eight"] + [f"k{number}.example.org:{7443 + number}" for number in range(8)],
    ]
    good = [
        {
            "server": server.hex(),
            "secret": secret.hex(),
            "client": client,
            "addresses": addresses,
            "line": join_token(server, secret, [text.encode() for text in [client, *addresses]]),
        }
        for client, *addresses in cases
    ]
    line = good[0]["line"]
    raw = lambda *texts: join_token(server, secret, texts)
    bad = [
        ("no checksum", join_token(server, secret, [b"web-1", b"keys.example.org:7443"], checksum=False)),
        ("no address", raw(b"web-1")),
        ("nothing but server and secret", raw()),
        ("nine addresses", raw(b"web-1", *[b"k%d:1" % number for number in range(9)])),
        ("a client name with a slash", raw(b"web/1", b"keys.example.org:7443")),
        ("an empty client name", raw(b"", b"keys.example.org:7443")),
        ("an address that is not UTF-8", raw(b"web-1", b"\xff:1")),
        ("an address with a path", raw(b"web-1", b"keys.example.org:7443/x")),
        ("port 0", raw(b"web-1", b"keys.example.org:0")),
        ("an empty address", raw(b"web-1", b"")),
        ("another version", line.replace("latchkey1.", "latchkey2.")),
        ("no version", line.replace("latchkey1.", "")),
        ("padding", line + "="),
        ("a character too much", line + "A"),
        ("white space within", line[:40] + " " + line[40:]),
        ("standard base64", "latchkey1." + "+/" + line[12:]),
        ("empty", ""),
    ]
    return {"good": good, "bad": [{"why": why, "line": text} for why, text in bad]}


def write(name, vectors):
    (HERE / name).write_text(json.dumps(vectors, indent=1, ensure_ascii=True) + "\n")


if __name__ == "__main__":
    main()
