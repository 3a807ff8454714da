"""An upstream that costs next to nothing per byte: `GET /{n}` sends n bytes, any body is read and dropped.

Blocking sockets, one thread per connection: the kernel does the copying, so what a transfer measures is the front.
"""

import argparse
import socket
import threading

BUFFER = 2**20


def _drop_sized(stream: "_Rest", size: int, buffer: memoryview) -> int:
    left = size
    while left:
        count = stream.readinto(buffer[: min(left, BUFFER)])
        if not count:
            raise ConnectionError("the body ended early")
        left -= count
    return size


def _drop_chunked(stream: "_Rest", buffer: memoryview) -> int:
    total = 0
    while size := int(stream.readline().split(b";")[0], 16):
        total += _drop_sized(stream, size, buffer)
        stream.readline()
    while stream.readline().strip():
        pass
    return total


def _send(peer: socket.socket, size: int, buffer: memoryview) -> None:
    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n" % size)
    left = size
    while left:
        piece = buffer[: min(left, BUFFER)]
        peer.sendall(piece)
        left -= len(piece)


def _converse(peer: socket.socket) -> None:
    buffer = memoryview(bytearray(BUFFER))
    with peer, peer.makefile("rb", buffering=0) as raw:
        try:
            while request := _head(peer):
                line, fields, rest = request
                if line.startswith(b"GET "):
                    _send(peer, int(line.split()[1].strip(b"/")), buffer)
                    continue
                stream = _Rest(rest, raw)
                if b"chunked" in fields.get(b"transfer-encoding", b"").lower():
                    total = _drop_chunked(stream, buffer)
                else:
                    total = _drop_sized(stream, int(fields.get(b"content-length", b"0")), buffer)
                body = b"%d" % total
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        except (ConnectionError, ValueError):
            return


def _head(peer: socket.socket) -> tuple[bytes, dict[bytes, bytes], bytes] | None:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = peer.recv(65_536)
        if not piece:
            return None
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    line, *lines = head.split(b"\r\n")
    pairs = (field.partition(b":") for field in lines)
    return line, {name.strip().lower(): value.strip() for name, _, value in pairs}, rest


class _Rest:
    """The socket, preceded by what was read along with the header section."""

    def __init__(self, rest: bytes, raw: socket.SocketIO) -> None:
        self._rest = bytearray(rest)
        self._raw = raw

    def readinto(self, buffer: memoryview) -> int:
        if self._rest:
            count = min(len(buffer), len(self._rest))
            buffer[:count] = self._rest[:count]
            del self._rest[:count]
            return count
        return self._raw.readinto(buffer) or 0

    def readline(self) -> bytes:
        while (end := self._rest.find(b"\n")) < 0:
            piece = self._raw.read(65_536)
            if not piece:
                raise ConnectionError("the body ended early")
            self._rest += piece
        line = bytes(self._rest[: end + 1])
        del self._rest[: end + 1]
        return line


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", options.port)) as listener:
        while True:
            peer, _ = listener.accept()
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_converse, args=(peer,), daemon=True).start()


if __name__ == "__main__":
    main()
