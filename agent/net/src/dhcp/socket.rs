//! The one socket by which all guests ask, and are answered.
//!
//! Owns which interface a question came by, and that the answer leaves by the same one. Bound to no
//! interface, so it needs no capability but for its port, and stands beside servers that are bound
//! to interfaces of their own. Called by [`super::serve`].

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc::{in_addr, in_pktinfo};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrIn,
    bind, recvmsg, sendmsg, setsockopt, socket, sockopt,
};

use super::limits::QUESTION_BYTES_MAX;

/// Where servers are asked.
pub const PORT: u16 = 67;
/// Where clients are answered.
const CLIENT_PORT: u16 = 68;

/// A socket at the servers' port.
pub struct GuestSocket(OwnedFd);

/// A datagram and the interface by which it came.
pub(super) struct Heard {
    pub(super) interface: u32,
    pub(super) bytes: Vec<u8>,
}

impl GuestSocket {
    /// Takes a socket that is bound already.
    ///
    /// # Errors
    /// The kernel does not do with it what is needed.
    pub fn handed(socket: UdpSocket) -> io::Result<Self> {
        let own = Self(socket.into());
        own.prepare()?;
        Ok(own)
    }

    /// Binds one, beside others that allow it.
    ///
    /// # Errors
    /// Another program has the port, or this one may not have it.
    pub fn bind() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let own = Self(socket(AddressFamily::Inet, SockType::Datagram, flags, None)?);
        setsockopt(&own.0, sockopt::ReuseAddr, &true)?;
        own.prepare()?;
        bind(own.0.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT)))?;
        Ok(own)
    }

    fn prepare(&self) -> io::Result<()> {
        setsockopt(&self.0, sockopt::Ipv4PacketInfo, &true)?;
        setsockopt(&self.0, sockopt::Broadcast, &true)?;
        Ok(())
    }

    /// The next datagram, if one is there; without bytes if it is longer than a question may be.
    pub(super) fn hear(&self) -> io::Result<Option<Heard>> {
        let mut bytes = vec![0; QUESTION_BYTES_MAX];
        let mut space = cmsg_space!(in_pktinfo);
        let (length, interface) = {
            let mut pieces = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_DONTWAIT;
            let told =
                recvmsg::<SockaddrIn>(self.0.as_raw_fd(), &mut pieces, Some(&mut space), flags);
            let told = match told {
                Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
                told => told?,
            };
            let interface = told.cmsgs()?.find_map(|message| match message {
                ControlMessageOwned::Ipv4PacketInfo(info) => u32::try_from(info.ipi_ifindex).ok(),
                _ => None,
            });
            let is_cut = told.flags.contains(MsgFlags::MSG_TRUNC);
            (if is_cut { 0 } else { told.bytes }, interface.unwrap_or_default())
        };
        bytes.truncate(length);
        Ok(Some(Heard { interface, bytes }))
    }

    /// Answers by that interface, as the host is called there.
    pub(super) fn say(
        &self,
        bytes: &[u8],
        (interface, own): (u32, Ipv4Addr),
        to: Ipv4Addr,
    ) -> io::Result<()> {
        let info = in_pktinfo {
            ipi_ifindex: interface.try_into().unwrap_or_default(),
            ipi_spec_dst: in_addr { s_addr: u32::from(own).to_be() },
            ipi_addr: in_addr { s_addr: 0 },
        };
        let to = SockaddrIn::from(SocketAddrV4::new(to, CLIENT_PORT));
        let by = [ControlMessage::Ipv4PacketInfo(&info)];
        let pieces = [IoSlice::new(bytes)];
        sendmsg(self.0.as_raw_fd(), &pieces, &by, MsgFlags::MSG_DONTWAIT, Some(&to))?;
        Ok(())
    }
}

impl AsFd for GuestSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
