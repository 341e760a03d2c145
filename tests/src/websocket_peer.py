"""A WebSocket server, or a client of it, by the library `websockets`.

    websocket_peer.py serve        prints its port and serves until it is ended
    websocket_peer.py talk URL CA  sends texts and bytes, and prints what came back
"""

import asyncio
import ssl
import sys

import websockets


async def serve():
    async def echo(socket):
        async for message in socket:
            await socket.send(message)

    async with websockets.serve(echo, "127.0.0.1", 0) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Future()


async def talk(url, ca):
    context = ssl.create_default_context(cafile=ca) if url.startswith("wss") else None
    named = {"server_hostname": "ws.test"} if context else {}
    async with websockets.connect(url, ssl=context, host="127.0.0.1", open_timeout=20, **named) as socket:
        for message in ["hello", b"\x00\x01" * 50_000]:
            await socket.send(message)
            back = await asyncio.wait_for(socket.recv(), 20)
            print("same" if back == message else "other", flush=True)


if sys.argv[1] == "serve":
    asyncio.run(serve())
else:
    asyncio.run(talk(sys.argv[2], sys.argv[3]))
