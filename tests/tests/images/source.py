"""An https server for images that does as its paths say, and writes down who asked for what.

source.py DIRECTORY: serves DIRECTORY/image at a free port of loopback with DIRECTORY/certificate.pem and key.pem, and writes
the port to DIRECTORY/port. A path's first part says what is done; the rest only tells requests apart in DIRECTORY/asked.
"""
import os
import ssl
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

directory = sys.argv[1]


def at(name):
    return os.path.join(directory, name)


with open(at("image"), "rb") as file:
    image = file.read()
half = len(image) // 2


class Source(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def note(self, line):
        with open(at("asked"), "a") as file:
            file.write(line + "\n")

    def head(self, status, headers, begin=0, length=None):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        length = len(image) - begin if length is None else length
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def do_GET(self):
        range_asked = self.headers.get("Range")
        self.note(f"{self.path} {range_asked}")
        manner = self.path.split("/")[1]
        begin = int(range_asked[len("bytes="):-1]) if range_asked else 0
        try:
            if manner == "inner":
                self.head(302, [("Location", "https://10.0.0.1/secret")], length=0)
            elif manner == "wrong":
                self.head(200, [])
                self.wfile.write(bytes(len(image)))
            elif begin:
                self.head(206, [("Content-Range", f"bytes {begin}-{len(image) - 1}/{len(image)}")], begin)
                self.wfile.write(image[begin:])
            else:
                self.head(200, [])
                self.wfile.write(image[:half])
                self.wfile.flush()
                # Holds the line until it is told to go on, or nobody listens any more.
                while not os.path.exists(at("go")):
                    self.connection.settimeout(0.1)
                    try:
                        if not self.connection.recv(1):
                            raise ConnectionResetError
                    except TimeoutError:
                        pass
                self.connection.settimeout(None)
                self.wfile.write(image[half:])
        except OSError:
            self.note(f"{self.path} left")
            self.close_connection = True


server = ThreadingHTTPServer(("127.0.0.1", 0), Source)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(at("certificate.pem"), at("key.pem"))
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
with open(at("port.new"), "w") as file:
    file.write(str(server.server_address[1]))
os.rename(at("port.new"), at("port"))
server.serve_forever()
