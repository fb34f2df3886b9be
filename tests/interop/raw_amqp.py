"""A device on a bare socket: AMQP 1.0 bytes written by hand, for what no client library can be told to do."""

import socket
import struct
import time

from lab import Failed

HEADER = b"AMQP\x00\x01\x00\x00"
OPEN, BEGIN, ATTACH, FLOW, TRANSFER, DISPOSITION, DETACH, END, CLOSE = range(0x10, 0x19)
SOURCE, TARGET, ACCEPTED, DATA = 0x28, 0x29, 0x24, 0x75
RECEIVE_TIMEOUT = 15.0


class Symbol(str):
    """A string that is written as a symbol."""


class Uint(int):
    """An integer that is written as a uint; a plain int is a ulong."""


class Described:
    """A described value; `fields` is its list, or what stands in its place."""

    def __init__(self, code, fields):
        self.code = code
        self.fields = fields

    def __repr__(self):
        return f"@{self.code:#x}{self.fields}"

    def field(self, at):
        return self.fields[at] if at < len(self.fields) else None


def encode(value):
    if value is None:
        return b"\x40"
    if value is True or value is False:
        return b"\x41" if value else b"\x42"
    if isinstance(value, Uint):
        return b"\x43" if value == 0 else b"\x70" + struct.pack(">I", value)
    if isinstance(value, int):
        return b"\x53" + bytes([value]) if value < 256 else b"\x80" + struct.pack(">Q", value)
    if isinstance(value, bytes):
        return b"\xa0" + bytes([len(value)]) + value if len(value) < 256 else b"\xb0" + struct.pack(">I", len(value)) + value
    if isinstance(value, str):
        text = value.encode()
        return (b"\xa3" if isinstance(value, Symbol) else b"\xa1") + bytes([len(text)]) + text
    if isinstance(value, Described):
        return b"\x00" + encode(value.code) + encode(value.fields)
    if isinstance(value, list):
        items = b"".join(map(encode, value))
        return b"\xd0" + struct.pack(">II", len(items) + 4, len(value)) + items
    raise TypeError(f"cannot encode {value!r}")


FIXED = {
    0x40: ("", lambda: None), 0x41: ("", lambda: True), 0x42: ("", lambda: False),
    0x43: ("", lambda: 0), 0x44: ("", lambda: 0), 0x45: ("", lambda: []),
    0x50: ("B", int), 0x51: ("b", int), 0x52: ("B", int), 0x53: ("B", int), 0x54: ("b", int), 0x55: ("b", int),
    0x56: ("?", bool), 0x60: ("H", int), 0x61: ("h", int), 0x70: ("I", int), 0x71: ("i", int),
    0x72: ("f", float), 0x73: ("I", chr), 0x80: ("Q", int), 0x81: ("q", int), 0x82: ("d", float),
    0x83: ("q", int), 0x98: ("16s", bytes),
}  # fmt: skip
VARIABLE = {0xA0: (1, bytes), 0xB0: (4, bytes), 0xA1: (1, str), 0xB1: (4, str), 0xA3: (1, Symbol), 0xB3: (4, Symbol)}


def decode(data, at):
    """The value at `at`, and where the next one begins."""
    code = data[at]
    at += 1
    if code == 0x00:
        descriptor, at = decode(data, at)
        fields, at = decode(data, at)
        return Described(descriptor, fields), at
    if code in FIXED or code in VARIABLE:
        return decode_primitive(code, data, at)
    width = {0xC: 1, 0xD: 4, 0xE: 1, 0xF: 4}[code >> 4]
    size, count = struct.unpack_from(">BB" if width == 1 else ">II", data, at)
    end = at + width + size
    at += 2 * width
    values = []
    if code >> 4 in (0xE, 0xF):
        inner = data[at]
        at += 1
        for _ in range(count):
            value, at = decode_primitive(inner, data, at)
            values.append(value)
        return values, end
    for _ in range(count):
        value, at = decode(data, at)
        values.append(value)
    if code in (0xC1, 0xD1):
        return dict(zip(values[::2], values[1::2])), end
    return values, end


def decode_primitive(code, data, at):
    if code in FIXED:
        form, make = FIXED[code]
        return make(*struct.unpack_from(">" + form, data, at)), at + struct.calcsize(">" + form)
    width, make = VARIABLE[code]
    size = int.from_bytes(data[at : at + width], "big")
    raw = bytes(data[at + width : at + width + size])
    return raw if make is bytes else make(raw.decode()), at + width + size


def frame(channel, code, fields, payload=b""):
    body = encode(Described(code, fields)) + payload
    return struct.pack(">IBBH", len(body) + 8, 2, 0, channel) + body


def open_frame(container):
    return frame(0, OPEN, [container, "raw", Uint(65536), None, None])


def begin_frame(next_outgoing_id):
    return frame(0, BEGIN, [None, Uint(next_outgoing_id), Uint(2048), Uint(2048), Uint(255)])


def attach_frame(name, handle, receiver, address):
    source = Described(SOURCE, [address] if receiver else [])
    target = Described(TARGET, [] if receiver else [address])
    return frame(
        0, ATTACH, [name, Uint(handle), receiver, None, None, source, target, None, None, None if receiver else Uint(0)]
    )


def flow_frame(next_incoming_id, next_outgoing_id, handle=None, delivery_count=None, credit=None):
    session = [None if next_incoming_id is None else Uint(next_incoming_id), Uint(2048), Uint(next_outgoing_id), Uint(2048)]
    link = [] if handle is None else [Uint(handle), Uint(delivery_count), Uint(credit)]
    return frame(0, FLOW, session + link)


def transfer_frame(handle, delivery_id, tag, payload, settled=False):
    fields = [Uint(handle), Uint(delivery_id), tag, Uint(0), settled, False]
    return frame(0, TRANSFER, fields, encode(Described(DATA, payload)))


class RawDevice:
    """A socket, what was read from it and not used yet, and the one session's numbers."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), RECEIVE_TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.greeted = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, *parts):
        """Writes all parts with one call, so that they leave in one packet as far as they fit."""
        self.socket.sendall(b"".join(parts))

    def need(self, count):
        deadline = time.monotonic() + RECEIVE_TIMEOUT
        while len(self.buffer) < count:
            self.socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                more = self.socket.recv(65536)
            except TimeoutError:
                raise Failed("raw device: nothing more came") from None
            if not more:
                raise Failed("raw device: the connection was closed")
            self.buffer += more

    def frame(self):
        """The next frame's performative and payload; empty frames are passed over."""
        while True:
            if not self.greeted:
                self.need(8)
                if self.buffer[:8] != HEADER:
                    raise Failed(f"raw device: greeted with {self.buffer[:8]!r}")
                self.buffer = self.buffer[8:]
                self.greeted = True
            self.need(8)
            size, offset = struct.unpack_from(">IB", self.buffer)
            self.need(size)
            body, self.buffer = self.buffer[offset * 4 : size], self.buffer[size:]
            if body:
                performative, end = decode(body, 0)
                return performative, body[end:]

    def expect(self, code, passing=(FLOW,)):
        """The next frame, which must be of this kind; kinds in `passing` may come before it."""
        while True:
            performative, payload = self.frame()
            if performative.code == code:
                return performative, payload
            if performative.code not in passing:
                raise Failed(f"raw device: {performative} came, {code:#x} was due")
