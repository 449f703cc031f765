"""Inputs that are nearly right: a file or a text with some of it changed, by a `random.Random`.

What a reader looks at first (lengths, check sums, brackets) is often kept right, so that changes get further inside.
"""
import json
import re
import struct
import zlib

MOST = 1 << 17                        # bytes of an input
SIGNATURE = b"\x89PNG\r\n\x1a\n"
NUMBERS = ("0", "-0", "-1", "1", "7", "8", "64", "77", "255", "256", "65535", "65536", "2147483647", "4294967296", "9" * 19,
           "18446744073709551615", "18446744073709551616", "9" * 400, "1e308", "1e309", "-1e309", "1e-320", "nan", "inf", "0.5",
           "1_000", "٣", "0x10", "1.", ".5", "+3", "1e5", "9" * 5000)
PIECES = [
    b"\r\n", b"\0", b"\x1b[31m", b"\x7f", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"", b" ", b", ", b": ",
    b"Steps: ", b"Negative prompt:", b"Seed: -1", b"Size: 0x0", b"--steps ", b"<lora:a:1>", b"<lora:x:y:z>", b" AND ",
    b"[a:b:0.5]", "\u0301".encode() * 9, "\u202e".encode(), *(piece.encode() for piece in """
    , : " ' \\ / .. ../../x ~ ( ) [ ] | { } < > - -- -s = # ((((((((( ))))))))) [[[[[[[[[ [a|b] (a:1.5) __a__ __ BREAK null
    true [] None é 🐱 ſ İ""".split())]
VALUES = (
    None, True, False, 0, 1, -1, 2, 3, 7, 64, 77, 1000, 65536, 2**31, 2**63, 2**64, 10**30, 10**400, 0.0, -0.5, 0.5, 1e-12,
    1e308, float("inf"), float("nan"), "", "a", "0", "1e5", "x" * 3000, "\ud800", "\0", "../x", "é", [], [0], [1, 2], [None],
    [[]], [32, 64], ["a", "b"], {}, {"a": 1}, {"": None}, [[[[[[]]]]]])


def changed(name, content, random):
    """Bytes of a file of that name → others"""
    ways = [of_bytes] * 2
    if name.endswith(".safetensors"):
        ways += [of_safetensors] * 6
    elif name.endswith(".json"):
        ways += [of_json] * 6
    elif name.endswith(".png"):
        ways += [of_png] * 4
    elif name.endswith((".txt", ".csv", ".jsonl")):
        ways += [of_lines] * 2
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        content = random.choice(ways)(content, random)[:MOST]
    return content


def of_text(text, random):
    """A text → another, which may hold lone surrogates"""
    content = text.encode("utf-8", "surrogatepass")
    for _ in range(random.choice((1, 1, 2, 3, 5))):
        content = random.choice((of_bytes, of_lines))(content, random)[:MOST]
    return content.decode("utf-8", random.choice(("replace", "surrogateescape")))


def of_bytes(content, random):
    """One change anywhere: a bit, a span, a number, a piece that means something somewhere."""
    start = random.randrange(len(content) + 1)
    end = min(len(content), start + random.choice((1, 1, 2, 4, 8, 40, 400)))
    way = random.randrange(9)
    if way == 0 and content:
        return content[:start] + bytes([random.randrange(256)]) + content[start + 1:]
    if way == 1 and start < len(content):
        return content[:start] + bytes([content[start] ^ 1 << random.randrange(8)]) + content[start + 1:]
    if way == 2:
        return content[:start] + content[end:]
    if way == 3:
        return content[:start]
    if way == 4:
        return content[:end] + content[start:end] * random.choice((1, 2, 10, 1000)) + content[end:]
    if way == 5:
        other = random.randrange(len(content) + 1)
        return content[:start] + content[other:other + end - start] + content[end:]
    if way == 6:
        return content[:start] + random.randbytes(end - start) + content[end:]
    if way == 7:
        places = [match.span() for match in re.finditer(rb"-?\d+(\.\d+)?", content[:MOST])]
        if places:
            start, end = random.choice(places)
            return content[:start] + random.choice(NUMBERS).encode() + content[end:]
    return content[:start] + random.choice(PIECES) * random.choice((1, 1, 1, 2, 30, 3000)) + content[start:]


def of_lines(content, random):
    """Lines, or what is between commas, moved, doubled or left out."""
    separator = random.choice((b"\n", b",", b" ", b":"))
    parts = content.split(separator)
    i, j = random.randrange(len(parts)), random.randrange(len(parts))
    way = random.randrange(4)
    if way == 0:
        parts[i], parts[j] = parts[j], parts[i]
    elif way == 1:
        parts.insert(i, parts[j])
    elif way == 2:
        del parts[i]
    else:
        parts[i] = parts[i] * random.choice((2, 100))
    return separator.join(parts)


def of_json(content, random):
    """One value, or name of a value, changed in a text that stays JSON."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return of_bytes(content, random)
    return json.dumps(of_value(value, random)).encode("utf-8", "surrogatepass")


def of_value(value, random):
    """A value from JSON with one change somewhere inside."""
    inside = isinstance(value, (dict, list)) and value and random.random() < 0.9
    if not inside:
        return random.choice(VALUES)
    if isinstance(value, list):
        i = random.randrange(len(value))
        way = random.randrange(5)
        if way == 0:
            return value[:i] + value[i + 1:]
        if way == 1:
            return value[:i] + [value[i]] * random.choice((2, 3, 100)) + value[i:]
        return [*value[:i], of_value(value[i], random), *value[i + 1:]]
    key = random.choice(list(value))
    way = random.randrange(6)
    if way == 0:
        return {name: each for name, each in value.items() if name != key}
    if way == 1:
        return value | {of_text(key, random).encode("utf-8", "replace").decode(): value[key]}
    if way == 2:
        return value | {random.choice(list(value)): value[key]}
    return value | {key: of_value(value[key], random)}


def of_safetensors(content, random):
    """The table of contents changed, its length right; sometimes the numbers."""
    length = int.from_bytes(content[:8], "little")
    table, numbers = content[8:8 + length], content[8 + length:]
    if random.random() < 0.15:
        numbers = of_bytes(numbers, random)
    try:
        entries = json.loads(table)
    except (ValueError, RecursionError):
        entries = None
    if isinstance(entries, dict) and random.random() < 0.5:       # another type, shape or name that still fits the numbers
        name = random.choice(list(entries) or [""])
        entry = entries.get(name)
        if isinstance(entry, dict) and isinstance(entry.get("shape"), list) and name != "__metadata__":
            way = random.randrange(4)
            if way == 0:
                entry["shape"] = [1] * random.choice((1, 2, 60, 70)) + entry["shape"]
            elif way == 1:
                entry["shape"] = entry["shape"][::-1]
            elif way == 2 and entry.get("dtype") in ("F16", "BF16", "I16"):
                entry["dtype"] = random.choice(("F16", "BF16", "I16", "U16"))
            else:
                entries[of_text(name, random).encode("utf-8", "replace").decode()] = entries.pop(name)
        table = json.dumps(entries).encode()
    else:
        table = of_json(table, random) if random.random() < 0.7 else of_bytes(table, random)
    return struct.pack("<Q", len(table)) + table + numbers


def of_png(content, random):
    """A chunk changed, moved, doubled or left out; check sums right, mostly."""
    found, place = [], len(SIGNATURE)
    while place + 12 <= len(content):
        length, kind = struct.unpack(">I4s", content[place:place + 8])
        found.append((kind, content[place + 8:place + 8 + length]))
        place += 12 + length
    if not found:
        return of_bytes(content, random)
    i = random.randrange(len(found))
    kind, data = found[i]
    way = random.randrange(5)
    if way == 0:
        del found[i]
    elif way == 1:
        found.insert(random.randrange(len(found)), found[i])
    elif way == 2 and kind in (b"zTXt", b"iTXt", b"IDAT"):
        found[i] = kind, data[:-random.randrange(1, 20)] + zlib.compress(random.randbytes(9) * random.choice((1, 9, 9000)))
    else:
        found[i] = kind, of_bytes(data, random)
    result = bytearray(SIGNATURE)
    for kind, data in found:
        check = zlib.crc32(kind + data) ^ (random.random() < 0.02)
        result += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)
    return bytes(result)


# ---- one thing changed, wherever it stands

def with_numbers(content, numbers):
    """Yields lines of JSON, or one text of it, with each of its numbers replaced by each of these."""
    lines = [json.loads(line) for line in content.splitlines()] if b"}\n{" in content else [json.loads(content)]
    for i, line in enumerate(lines):
        for changed in replaced(line, numbers):
            yield b"\n".join(json.dumps(each).encode() for each in (*lines[:i], changed, *lines[i + 1:]))


def replaced(value, numbers):
    """Yields a value from JSON with one number inside replaced."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield from numbers
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        for changed in replaced(value[key], numbers):
            copy = value.copy()
            copy[key] = changed
            yield copy


def with_axes(content, more=64):
    """Yields a safetensors file in which one tensor after the other has so many axes more, of length 1."""
    length = int.from_bytes(content[:8], "little")
    table = json.loads(content[8:8 + length])
    for name in table.keys() - {"__metadata__"}:
        entry = table[name] | {"shape": [1] * more + table[name]["shape"]}
        changed = json.dumps(table | {name: entry}).encode()
        yield struct.pack("<Q", len(changed)) + changed + content[8 + length:]
