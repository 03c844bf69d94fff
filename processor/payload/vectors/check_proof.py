#!/usr/bin/env python3
"""Checks a proof with nothing but Python's standard library: a second verifier, in another language, by its own code.

Usage: check_proof.py PROOF GENESIS SIGNATURES (`daggerctl ledger proof ... > PROOF`; GENESIS.sig). Prints what is proven and exits
with 0; says why not and exits with 1. Covers the first epoch. BLAKE3 is written out below (github.com/BLAKE3-team/BLAKE3-specs).
"""
import base64
import hashlib
import json
import pathlib
import sys

from check import counts, decode, text, whole

MASK = 2**32 - 1
IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
CHUNK_START, CHUNK_END, PARENT, ROOT, CONTEXT, MATERIAL = 1, 2, 4, 8, 32, 64


def compress(chaining, block, counter, length, flags):
    state = list(chaining) + list(IV[:4]) + [counter & MASK, counter >> 32, length, flags]

    def mix(a, b, c, d, x, y):
        for message, turn, other in ((x, 16, 12), (y, 8, 7)):
            state[a] = (state[a] + state[b] + message) & MASK
            state[d] ^= state[a]
            state[d] = (state[d] >> turn | state[d] << (32 - turn)) & MASK
            state[c] = (state[c] + state[d]) & MASK
            state[b] ^= state[c]
            state[b] = (state[b] >> other | state[b] << (32 - other)) & MASK

    words = [int.from_bytes(block[at : at + 4], "little") for at in range(0, 64, 4)]
    for _ in range(7):
        for at in range(4):
            mix(at, 4 + at, 8 + at, 12 + at, words[2 * at], words[2 * at + 1])
        for at in range(4):
            columns = (at, 4 + (at + 1) % 4, 8 + (at + 2) % 4, 12 + (at + 3) % 4)
            mix(*columns, words[8 + 2 * at], words[9 + 2 * at])
        words = [words[at] for at in PERMUTATION]
    return [state[at] ^ state[at + 8] for at in range(8)]


def blake3(data, key=IV, flags=0):
    def output(piece, first_chunk, is_root):
        """The chaining value over whole chunks, the first of which has this number."""
        root = ROOT if is_root else 0
        if len(piece) <= 1024:
            chaining = key
            blocks = [piece[at : at + 64] for at in range(0, len(piece), 64)] or [b""]
            for number, block in enumerate(blocks):
                start = CHUNK_START if number == 0 else 0
                end = CHUNK_END | root if number == len(blocks) - 1 else 0
                padded = block.ljust(64, b"\0")
                chaining = compress(chaining, padded, first_chunk, len(block), flags | start | end)
            return chaining
        chunks = (len(piece) - 1) // 1024
        left = 1024 << (chunks.bit_length() - 1)
        words = output(piece[:left], first_chunk, False)
        words = words + output(piece[left:], first_chunk + left // 1024, False)
        block = b"".join(word.to_bytes(4, "little") for word in words)
        return compress(key, block, 0, 64, flags | PARENT | root)

    return b"".join(word.to_bytes(4, "little") for word in output(data, 0, True))


def derived(context, data):
    key = blake3(context.encode(), flags=CONTEXT)
    words = tuple(int.from_bytes(key[at : at + 4], "little") for at in range(0, 32, 4))
    return blake3(data, words, MATERIAL)


class NotProven(Exception):
    """Nobody has to believe it."""


def require(holds, what):
    if not holds:
        raise NotProven(what)


def public_key(line):
    return base64.b64decode(line.split()[1])[-32:]


def ssh_signature(armor, namespace, message):
    """The key and whether it signed `message`, of one armoured OpenSSH signature."""
    lines = [line for line in armor.strip().splitlines() if not line.startswith("-----")]
    data = base64.b64decode("".join(lines), validate=True)
    require(data[:10] == b"SSHSIG\0\0\0\1", "not an OpenSSH signature")
    fields, at = [], 10
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        fields.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    key, name, reserved, hashed, signature = fields
    require((name, reserved, hashed) == (namespace, b"", b"sha512"), "a signature for another purpose")
    digest = hashlib.sha512(message).digest()
    signed = b"SSHSIG" + b"".join(map(text, (namespace, b"", b"sha512", digest)))
    return key[-32:], counts(key[-32:], signed, signature[-64:])


def check_genesis(document, signatures):
    genesis = json.loads(document)
    signed = set()
    for block in signatures.split("-----END SSH SIGNATURE-----"):
        if block.strip():
            key, holds = ssh_signature(block, b"dagger-genesis", document)
            require(holds, "a false signature under the genesis")
            signed.add(key)
    for operator in genesis["operators"]:
        require(public_key(operator["key"]) in signed, f"{operator['name']} has not signed the genesis")
    return genesis, derived("dagger v1 genesis", document)


def check_header(signed, genesis, cluster):
    """The fields of a member's signed header, and who the member is."""
    header = bytes.fromhex(signed["header"])
    fields = whole(header)
    require(fields[0] == 1 and fields[1] == cluster and fields[2] == 0, "a header of another cluster or epoch")
    require(fields[4] < len(genesis["hosts"]), "a header of no member")
    member = genesis["hosts"][fields[4]]
    message = EVENT_DOMAIN + derived("dagger v1 event", header)
    holds = counts(public_key(member["ledger_key"]), message, bytes.fromhex(signed["signature"]))
    require(holds, "a header that its author did not sign")
    return fields, member["name"]


def check_carried(proof, genesis, cluster):
    """Who carried the payload, or None when the proof does not show it."""
    carried = proof.get("carried")
    if carried is None:
        return None
    fields, member = check_header(carried["event"], genesis, cluster)
    record, path = bytes.fromhex(carried["record"]), bytes.fromhex(carried["path"])
    kind, signature, document = whole(record)
    digest = derived("dagger v1 payload", document)
    require(proof["subject"] == {"kind": "payload", "id": digest.hex()}, "another payload is shown to be carried")
    at, width, beside = carried["index"], fields[7], [path[at : at + 32] for at in range(0, len(path), 32)]
    require(isinstance(at, int) and 0 <= at < width, "no place in the event")
    found = derived("dagger v1 merkle leaf", digest + bytes([kind]) + signature)
    while width > 1:
        if not (at == width - 1 and width % 2 == 1):
            require(beside, "a path that ends too early")
            pair = (found, beside.pop(0)) if at % 2 == 0 else (beside.pop(0), found)
            found = derived("dagger v1 merkle node", b"".join(pair))
        at, width = at // 2, (width + 1) // 2
    require(not beside and found == fields[6], "the path does not lead to the event's Merkle root")
    return member


def check_headers(proof, genesis, cluster):
    end = proof["end"]
    state = [end["position"], bytes.fromhex(end["prefix_hash"]), bytes.fromhex(end["state_root"])]
    require(not proof["handovers"], "a later epoch, which this program does not follow")
    authors, commits = set(), []
    for signed in proof["headers"]:
        fields, _ = check_header(signed, genesis, cluster)
        named = [named[0] for named in fields[9] if named is not None and named[1:] == state]
        require(named, "a header that attests another state")
        require(fields[4] not in authors, "one member twice")
        authors.add(fields[4])
        commits.append(min(named))
    members = len(genesis["hosts"])
    quorum = members - (members - 1) // 3
    require(len(authors) >= quorum, f"{len(authors)} members attest it, and it takes {quorum}")
    require(end["commit"] == min(commits), "the headers name another commit")
    return sorted(genesis["hosts"][author]["name"] for author in authors), state[2]


def subject_key(subject):
    kind, name = subject["kind"], subject.get("id")
    if kind == "order":
        return b"order"
    if kind == "image":
        return b"image/" + name.encode()
    if kind in ("seat", "epoch"):
        return kind.encode() + b"/" + name.to_bytes(8, "big")
    return kind.encode() + b"/" + bytes.fromhex("".join(name) if kind == "usage" else name)


def check_state(proof, root):
    """The value under the subject, or None when there is none."""
    path, (finding, parts) = whole(bytes.fromhex(proof["state"]))
    place = derived("dagger v1 state key", subject_key(proof["subject"]))
    beside = [path[at : at + 32] for at in range(0, len(path), 32)]
    side = lambda where, depth: where[depth // 8] >> (7 - depth % 8) & 1
    leaf = lambda where, value_hash: derived("dagger v1 state leaf", where + value_hash)
    value = None
    if finding == 0:
        (value,) = parts
        found = leaf(place, derived("dagger v1 state value", value))
    elif finding == 1:
        found = bytes(32)
    else:
        other, value_hash = parts
        in_the_way = all(side(other, depth) == side(place, depth) for depth in range(len(beside)))
        require(finding == 2 and in_the_way and other != place, "the leaf that is shown does not stand in the way")
        found = leaf(other, value_hash)
    for depth in reversed(range(len(beside))):
        pair = (found, beside[depth]) if side(place, depth) == 0 else (beside[depth], found)
        found = derived("dagger v1 state node", b"".join(pair))
    require(found == root, "the path leads to another root")
    return value


def check_documents(proof):
    for signed in proof["documents"]:
        document = signed["document"].encode()
        key, holds = ssh_signature(signed["signature"], b"dagger", document)
        fields = json.loads(document)
        require(holds and key == public_key(fields["signer"]), "a document that is not signed by its signer")
        require(fields["cluster"] == proof["cluster"], "a document for another cluster")
        yield derived("dagger v1 payload", document), fields["kind"]


def named_digests(value, subject):
    """Every byte string of a digest's length in the object: causes are among them."""
    found = {bytes.fromhex(subject["id"])} if subject["kind"] == "payload" else set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, bytes) and len(item) == 32:
            found.add(item)
        elif isinstance(item, (list, dict)):
            waiting.extend(item.values() if isinstance(item, dict) else item)
    return found


def check(proof, document, signatures):
    genesis, cluster = check_genesis(document, signatures)
    require(proof["dagger_proof"] == 1, "a proof of another version")
    require(bytes.fromhex(proof["cluster"]) == cluster, "a proof about another cluster")
    attested_by, root = check_headers(proof, genesis, cluster)
    value = check_state(proof, root)
    # Its hash binds it, so one spelling of it is as good as another.
    object_ = None if value is None else decode(value)[0]
    kinds = []
    for digest, kind in check_documents(proof):
        require(value is not None and digest in named_digests(object_, proof["subject"]), "a document that nothing names")
        kinds.append(kind)
    carrier = check_carried(proof, genesis, cluster)
    carried = f", carried by {carrier}" if carrier else ""
    there = "is there" if value is not None else "is not there"
    subject = " ".join(map(str, proof["subject"].values()))
    return f"{subject} {there} after commit {proof['end']['commit']}{carried}, attested by {', '.join(attested_by)}; signed: {', '.join(kinds) or '-'}"


# Domain of event signatures; see `Domain` in src/key.rs.
EVENT_DOMAIN = b"dagger v1 event\0"

if __name__ == "__main__":
    files = [pathlib.Path(name) for name in sys.argv[1:4]]
    try:
        print("PROVEN:", check(json.loads(files[0].read_text()), files[1].read_bytes(), files[2].read_text()))
    except (NotProven, ValueError, KeyError, IndexError, TypeError) as why:
        sys.exit(f"NOT PROVEN: {why}")
