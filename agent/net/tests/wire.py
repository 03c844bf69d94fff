"""Joins a tap of one network namespace with a tap of another: `wire.py TAP`, the other end on standard input.

A guest's hypervisor does no more than this with its tap.
"""
import fcntl
import os
import select
import struct
import sys

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", sys.argv[1].encode(), IFF_TAP | IFF_NO_PI))
print("ready", flush=True)
while True:
    ready, _, _ = select.select([tap, 0], [], [])
    for source in ready:
        frame = os.read(source, 65536)
        if not frame:
            sys.exit()
        try:
            os.write(0 if source == tap else tap, frame)
        except OSError:
            pass  # the other side is down or full: frames get lost on wires
