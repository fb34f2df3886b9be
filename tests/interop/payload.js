'use strict';
// The payloads of the interop tests, by the same rule as payload.py.

const PERIOD = 65521;
const BLOCK = Buffer.alloc(PERIOD);
for (let i = 0; i < PERIOD; i++) BLOCK[i] = (i * 167 + (i >> 8) * 13 + 7) & 0xff;

let pattern = BLOCK;

/** The payload of message `number` of `stream`, `size` bytes long. */
function make(stream, number, size) {
    const head = Buffer.from(`${stream}:${number}:`);
    if (size <= head.length) return head;
    const start = (number * 31) % PERIOD;
    const need = start + size - head.length;
    while (pattern.length < need) pattern = Buffer.concat([pattern, BLOCK]);
    return Buffer.concat([head, pattern.subarray(start, need)]);
}

/** What is wrong with `body`, if it should be message `number`; undefined if it is that message. */
function fault(body, stream, number, size) {
    if (!Buffer.isBuffer(body)) return `message ${number}: the body is a ${typeof body}, not binary data`;
    const wanted = make(stream, number, size);
    if (body.equals(wanted)) return undefined;
    const head = body.subarray(0, 60).toString('latin1').split(':');
    if (head.length >= 3 && head[0] === stream && head[1] !== String(number)) {
        return `message ${number} was due, message ${head[1]} came`;
    }
    if (body.length !== wanted.length) return `message ${number}: ${body.length} bytes, not ${wanted.length}`;
    return `message ${number} differs from byte ${wanted.findIndex((byte, at) => body[at] !== byte)} on`;
}

module.exports = { make, fault };
