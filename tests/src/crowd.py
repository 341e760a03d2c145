"""Opens connections one after another and holds them; a line of JSON says how many of them are served.

    crowd.py ADDRESS PORT COUNT

It ends when its input does. Each line that it reads is a number of further tries, which are answered alike.
"""

import json
import socket
import sys
import time

address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
held = []


def come():
    try:
        held.append(socket.create_connection((address, port), timeout=2))
    except OSError:
        pass


def is_served(connection):
    """Members speak first, and whoever is refused hears an end or a reset."""
    try:
        return connection.recv(1) != b""
    except OSError:
        return False


def look():
    # Longer than a connection may wait for what other nodes give.
    time.sleep(0.5)
    held[:] = [connection for connection in held if is_served(connection)]
    print(json.dumps(len(held)), flush=True)


for _ in range(count):
    come()
look()
for line in sys.stdin:
    for _ in range(int(line)):
        come()
    look()
