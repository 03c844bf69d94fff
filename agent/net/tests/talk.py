"""Says and hears a word over the network.

`talk.py serve tcp|udp PORT` prints, and over TCP answers, the address of everybody who comes.
`talk.py ask tcp|udp ADDRESS PORT [FROM]` says `hello`, and over TCP prints the answer or why there is none.
"""
import socket
import sys

what, protocol = sys.argv[1], sys.argv[2]
kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
end = socket.socket(socket.AF_INET, kind)
end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
if what == "serve":
    end.bind(("0.0.0.0", int(sys.argv[3])))
    if protocol == "tcp":
        end.listen()
    print("ready", flush=True)
    while True:
        if protocol == "tcp":
            visitor, (address, _) = end.accept()
            visitor.sendall(address.encode())
            visitor.close()
        else:
            word, (address, _) = end.recvfrom(100)
        print(address, flush=True)
address, port = sys.argv[3], int(sys.argv[4])
end.settimeout(3)
if len(sys.argv) > 5:
    end.bind((sys.argv[5], 0))
if protocol == "udp":
    end.sendto(b"hello", (address, port))
    sys.exit()
try:
    end.connect((address, port))
    print(end.recv(100).decode())
except OSError as error:
    print(type(error).__name__)
