# Asks for an address as the guest behind a tap does, `question.pl TAP MAC`, and prints what it is told: address, mask,
# router, name servers, its name. Perl is in every Debian tree.
use strict;
use warnings;

my ($tap, $mac) = @ARGV;
my $own = pack 'H12', $mac =~ tr/://dr;
open my $end, '+<', '/dev/net/tun' or die "tun: $!";
ioctl $end, 0x400454CA, pack('a16 s x22', $tap, 0x1002) or die "$tap: $!";

my $words = pack('C4 N x20 a16 x192 N', 1, 1, 6, 0, 7, $own, 0x63825363) . pack('C4', 53, 1, 1, 255);
my $datagram = pack('n4', 68, 67, 8 + length $words, 0) . $words;
my $header = pack 'C2 n3 C2 n a4 a4', 0x45, 0, 20 + length $datagram, 0, 0, 64, 17, 0, "\0" x 4, "\xff" x 4;
my $sum = unpack '%32n*', $header;
$sum = ($sum & 0xffff) + ($sum >> 16) for 1 .. 2;
substr $header, 10, 2, pack 'n', ~$sum & 0xffff;

for (1 .. 20) {
  # What is answered before the host has seen the carrier is lost: it asks again, as clients do.
  syswrite $end, "\xff" x 6 . $own . "\x08\x00" . $header . $datagram or die "sending: $!";
  vec(my $ready = '', fileno $end, 1) = 1;
  while (select my $now = $ready, undef, undef, 1) {
    sysread $end, my $frame, 2048;
    next unless length $frame > 282;
    my ($type, $protocol, $from, $to) = unpack 'x12 n x9 C x10 n n', $frame;
    next unless $type == 0x0800 && $protocol == 17 && $from == 67 && $to == 68;
    my $answer = substr $frame, 42;
    my %told;
    my $rest = substr $answer, 240;
    while ((my $kind = unpack 'C', $rest) != 255) {
      ($told{$kind}, $rest) = unpack 'x C/a a*', $rest;
    }
    my @each = (substr($answer, 16, 4), map { unpack '(a4)*', $told{$_} // '' } 1, 3, 6);
    print join(' ', (map { join '.', unpack 'C4', $_ } @each), $told{12}), "\n";
    exit;
  }
}
die "nobody answers\n";
