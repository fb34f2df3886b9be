"""The payloads of the interop tests: every message says which stream it is of and which number it has.

Both peers make them from this rule, so a receiver can tell a lost, doubled, reordered, mixed up or damaged message
without being told what was sent: `STREAM:NUMBER:` and then, up to the size asked for, a fixed byte pattern that begins
at an offset given by the number.
"""

_PERIOD = 65521
_BLOCK = bytes((i * 167 + (i >> 8) * 13 + 7) & 0xFF for i in range(_PERIOD))


def make(stream: str, number: int, size: int) -> bytes:
    """The payload of message `number` of `stream`, `size` bytes long."""
    head = f"{stream}:{number}:".encode()
    if size <= len(head):
        return head
    start = number * 31 % _PERIOD
    need = start + size - len(head)
    pattern = _BLOCK if need <= _PERIOD else _BLOCK * (need // _PERIOD + 1)
    return head + pattern[start:need]


def fault(body: object, stream: str, number: int, size: int) -> "str | None":
    """What is wrong with `body`, if it should be message `number`; nothing if it is that message."""
    if not isinstance(body, (bytes, memoryview)):
        return f"message {number}: the body is a {type(body).__name__}, not binary data"
    body = bytes(body)
    wanted = make(stream, number, size)
    if body == wanted:
        return None
    head = body[:60].split(b":")
    if len(head) >= 3 and head[0] == stream.encode() and head[1] != str(number).encode():
        return f"message {number} was due, message {head[1].decode(errors='replace')} came"
    if len(body) != len(wanted):
        return f"message {number}: {len(body)} bytes, not {len(wanted)}"
    at = next(i for i, (got, want) in enumerate(zip(body, wanted)) if got != want)
    return f"message {number} differs from byte {at} on"
