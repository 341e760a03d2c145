"""An FTP server of a test's own, by pyftpdlib.

    ftp_peer.py serve ADDRESS FOLDER NAME    prints its port and serves until it is ended

User `user`, password `secret`, with all rights in FOLDER; NAME is in its greeting. Its replies to PASV name an
address that leads nowhere, as those of a server that knows nothing of who stands before it.
"""

import logging
import sys

from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler
from pyftpdlib.servers import FTPServer


def serve(address, folder, name):
    logging.basicConfig(level=logging.WARNING)
    FTPHandler.authorizer = DummyAuthorizer()
    FTPHandler.authorizer.add_user("user", "secret", folder, perm="elradfmwMT")
    FTPHandler.banner = name
    if ":" not in address:
        FTPHandler.masquerade_address = "203.0.113.99"
    server = FTPServer((address, 0), FTPHandler)
    print(server.address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    assert sys.argv[1] == "serve", __doc__
    serve(*sys.argv[2:])
