#!/usr/bin/env python3
"""Records one AMQP conversation between two peers as frames in hexadecimal.

    record.py OUTPUT.hex SERVER COMMAND ... -- CLIENT COMMAND ...

Both commands get the port as their last argument. The bytes pass through a proxy on the loopback interface and are
cut at the protocol headers and the frames' own sizes, so that each line of the output is one protocol header or one
frame exactly as the peer encoded it: `> HEX` from the client, `< HEX` from the server, in the order of arrival.
"""
import asyncio
import socket
import sys


def cut(buffer):
    """Takes the complete headers and frames off the front of `buffer`."""
    while len(buffer) >= 8:
        size = 8 if buffer[:4] == b"AMQP" else int.from_bytes(buffer[:4], "big")
        if len(buffer) < size:
            return
        yield bytes(buffer[:size])
        del buffer[:size]


async def pump(mark, reader, writer, lines):
    buffer = bytearray()
    try:
        while chunk := await reader.read(65536):
            buffer += chunk
            lines += [f"{mark} {frame.hex()}" for frame in cut(buffer)]
            writer.write(chunk)
            await writer.drain()
    finally:
        writer.write_eof()


async def connect(port):
    for _ in range(100):
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.1)
    raise SystemExit("the server does not listen")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def main():
    output, arguments = sys.argv[1], sys.argv[2:]
    split = arguments.index("--")
    lines = []
    finished = asyncio.Event()
    port = free_port()
    server = await asyncio.create_subprocess_exec(*arguments[:split], str(port))

    async def proxy(reader, writer):
        server_reader, server_writer = await connect(port)
        await asyncio.gather(
            pump(">", reader, server_writer, lines),
            pump("<", server_reader, writer, lines),
            return_exceptions=True,
        )
        finished.set()

    listener = await asyncio.start_server(proxy, "127.0.0.1", 0)
    proxy_port = listener.sockets[0].getsockname()[1]
    client = await asyncio.create_subprocess_exec(*arguments[split + 1 :], str(proxy_port))
    try:
        await asyncio.wait_for(client.wait(), 30)
        await asyncio.wait_for(finished.wait(), 10)
    finally:
        listener.close()
        for process in (client, server):
            if process.returncode is None:
                process.terminate()
                await process.wait()
        with open(output, "w") as out:
            out.write("\n".join(lines) + "\n")


asyncio.run(main())
