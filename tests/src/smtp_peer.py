"""An SMTP server of a test's own, by aiosmtpd, that wants the PROXY protocol.

    smtp_peer.py serve    prints its port, then a line for each mail that it got: CLIENT|LOCAL|FROM|TO|SUBJECT
"""

import asyncio
import email
import sys

from aiosmtpd.smtp import SMTP


class Handler:
    async def handle_PROXY(self, server, session, envelope, proxy_data):
        return True

    async def handle_DATA(self, server, session, envelope):
        proxy = session.proxy_data
        client = f"{proxy.src_addr}:{proxy.src_port}"
        local = f"{proxy.dst_addr}:{proxy.dst_port}"
        subject = email.message_from_bytes(envelope.content)["Subject"]
        print("|".join([client, local, envelope.mail_from, ",".join(envelope.rcpt_tos), subject]), flush=True)
        return "250 OK"


async def serve():
    def session():
        return SMTP(Handler(), proxy_protocol_timeout=5.0, hostname="mx.example.test")

    server = await asyncio.get_running_loop().create_server(session, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    assert sys.argv[1:] == ["serve"], __doc__
    asyncio.run(serve())
