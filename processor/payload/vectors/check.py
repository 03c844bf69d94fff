#!/usr/bin/env python3
"""Checks the vector files with nothing but Python's standard library, as a second reader in another language.

Documents: the strict subset of JSON (the meaning of fields is not repeated here, so only refusals by form are compared).
Events: deterministic CBOR (RFC 8949, 4.2.1) decodes, re-encodes to the same bytes, and has the documented layout.
Signatures: the strict rule of ed25519 written out (RFC 8032, narrowed as signatures.json says).
Prints the number of checks and exits with 1 at the first difference.
"""
import hashlib
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
INTEGER_MAX = 2**53 - 1
DEPTH_MAX = 8
BYTES_MAX = 64 * 1024


class Refused(Exception):
    """The document is outside the strict subset."""


def refuse(rule):
    raise Refused(rule)


def unique(pairs):
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        refuse("a key stands twice")
    if not all(key.isascii() for key in keys):
        refuse("keys are plain ASCII")
    return dict(pairs)


def integer(text):
    if text.startswith("-") or int(text) > INTEGER_MAX:
        refuse("integers are 0 to 2^53-1")
    return int(text)


def depth(value):
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


def read_strictly(data):
    if len(data) > BYTES_MAX:
        refuse("over 64 KiB")
    try:
        text = data.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=unique,
            parse_int=integer,
            parse_float=lambda _: refuse("no floats"),
            parse_constant=lambda _: refuse("no such number"),
        )
    except ValueError as error:
        raise Refused(str(error)) from error
    if depth(value) > DEPTH_MAX:
        refuse("nested too deep")
    escaped_key = any(
        '\\' in raw for raw in text.split('"') if raw.replace('\\u006b', 'k') == "kind"
    )
    if escaped_key:
        refuse("keys are written without escapes")
    return value


def decode(data, at=0):
    """One CBOR item: unsigned integers, byte and text strings, arrays, maps, null."""
    major, low = data[at] >> 5, data[at] & 31
    at += 1
    if low < 24:
        count = low
    elif low <= 27:
        size = 1 << (low - 24)
        count, at = int.from_bytes(data[at : at + size], "big"), at + size
    else:
        raise ValueError("indefinite length")
    if major == 0:
        return count, at
    if major in (2, 3):
        piece = data[at : at + count]
        if len(piece) != count:
            raise ValueError("cut short")
        return (piece if major == 2 else piece.decode()), at + count
    if major == 4:
        items = []
        for _ in range(count):
            item, at = decode(data, at)
            items.append(item)
        return items, at
    if major == 5:
        items = {}
        for _ in range(count):
            key, at = decode(data, at)
            items[key], at = decode(data, at)
        return items, at
    if major == 7 and low == 22:
        return None, at
    raise ValueError(f"major type {major} is not used")


def encode(value):
    def head(major, count):
        if count < 24:
            return bytes([major << 5 | count])
        for code, size in ((24, 1), (25, 2), (26, 4), (27, 8)):
            if count < 1 << (8 * size):
                return bytes([major << 5 | code]) + count.to_bytes(size, "big")
        raise ValueError("too large")

    if value is None:
        return b"\xf6"
    if isinstance(value, int):
        return head(0, value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        return head(3, len(value.encode())) + value.encode()
    if isinstance(value, list):
        return head(4, len(value)) + b"".join(map(encode, value))
    pairs = sorted((encode(key), encode(item)) for key, item in value.items())
    return head(5, len(pairs)) + b"".join(key + item for key, item in pairs)


def whole(data):
    value, end = decode(data)
    if end != len(data) or encode(value) != data:
        raise ValueError("not canonical")
    return value


def check_documents():
    vectors = json.loads((HERE / "documents.json").read_text())["documents"]
    by_form = {None, "payload_malformed", "payload_too_large"}
    # These are refused for what their fields mean, not for their form.
    by_meaning = {
        "an unknown field of the envelope", "an unknown field of the body", "a missing field",
        "another version", "an upper-case digest", "an upper-case name", "a look-alike name",
        "a number where a text is wanted", "an unknown protection", "null for a required field",
        "a volume without a host", "a volume for nobody",
        "a report about a volume in no known phase",
        "a snapshot without a name", "a snapshot that says how large it is",
        "a volume that is put back to nothing",
        "a host that says an unknown word about a snapshot",
    }
    count = 0
    for vector in vectors:
        if vector["refused"] not in by_form or vector["name"] in by_meaning:
            continue
        hexed = vector.get("document_hex")
        data = bytes.fromhex(hexed) if hexed else vector["document"].encode()
        try:
            read_strictly(data)
            refused = False
        except Refused:
            refused = True
        if refused != (vector["refused"] is not None):
            sys.exit(f"documents: {vector['name']!r}: refused is {refused}")
        count += 1
    return count


def check_events():
    vectors = json.loads((HERE / "events.json").read_text())["events"]
    for vector in vectors:
        header, signature, body = whole(bytes.fromhex(vector["event_hex"]))
        fields = whole(header)
        assert len(signature) == 64, vector["name"]
        assert sorted(fields) == list(range(10)), vector["name"]
        assert fields[3] == vector["round"] and fields[4] == vector["author"], vector["name"]
        records, at = [], 0
        while at < len(body):
            record, end = decode(body, at)
            assert encode(record) == body[at:end], vector["name"]
            records.append(record)
            at = end
        assert len(records) == fields[7], vector["name"]
    return len(vectors)


P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
IDENTITY = (0, 1)


def point(data):
    """The point that 32 bytes encode canonically, or None."""
    number = int.from_bytes(data, "little")
    sign, y = number >> 255, number & (2**255 - 1)
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if y >= P or (x * x - square) % P or (x == 0 and sign):
        return None
    return (x if x & 1 == sign else P - x, y)


def add(a, b):
    product = D * a[0] * b[0] * a[1] * b[1] % P
    x = (a[0] * b[1] + b[0] * a[1]) * pow(1 + product, -1, P)
    y = (a[1] * b[1] + a[0] * b[0]) * pow(1 - product, -1, P)
    return (x % P, y % P)


def times(count, base):
    total = IDENTITY
    while count:
        total = add(total, base) if count & 1 else total
        base, count = add(base, base), count >> 1
    return total


def counts(key, message, signature):
    a, r = point(key), point(signature[:32])
    s = int.from_bytes(signature[32:], "little")
    if a is None or r is None or s >= L or IDENTITY in (times(8, a), times(8, r)):
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % L
    base = point((4 * pow(5, -1, P) % P).to_bytes(32, "little"))
    return times(s, base) == add(r, times(k, a))


def text(data):
    return len(data).to_bytes(4, "big") + data


def check_signatures():
    vectors = json.loads((HERE / "signatures.json").read_text())["signatures"]
    for vector in vectors:
        parts = ("public_key_hex", "message_hex", "signature_hex")
        key, message, signature = (bytes.fromhex(vector[part]) for part in parts)
        if vector["path"] == "payload":
            hashed = hashlib.sha512(vector["document"].encode()).digest()
            fields = (b"dagger", b"", b"sha512", hashed)
            assert message == b"SSHSIG" + b"".join(map(text, fields)), vector["name"]
        if counts(key, message, signature) != vector["accepted"]:
            sys.exit(f"signatures: {vector['name']!r}: accepted is {not vector['accepted']}")
    return len(vectors)


if __name__ == "__main__":
    documents, events, signatures = check_documents(), check_events(), check_signatures()
    print(f"{documents} documents, {events} events and {signatures} signatures agree")
