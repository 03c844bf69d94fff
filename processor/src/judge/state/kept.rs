//! VMs as the state keeps them: as the canonical bytes that their leaves have.
//!
//! Owns how they are read again, as a whole or the few fields that somebody looks at; what is
//! looked at many times over, `glance` reads. What stands here was encoded by this build or read
//! strictly from a snapshot, so that it always decodes. Called by the state.

use dagger_payload::id::{AccountId, HostId, VmId};
use dagger_payload::kind::Capacity;
use dagger_payload::object::{Placement, Vm};
use minicbor::{Decode, Encode, Encoder, encode};

/// A VM's bytes: half of what it takes as an object, texts included.
#[derive(Debug)]
pub(crate) struct KeptVm(Box<[u8]>);

#[cfg(test)]
thread_local! {
    /// How many VMs were read.
    pub(super) static READ: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// What a VM holds.
#[derive(Debug, Decode)]
#[cbor(map)]
pub(super) struct Holding {
    #[n(0)]
    pub(super) id: VmId,
    #[n(1)]
    pub(super) account: AccountId,
    #[n(8)]
    pub(super) size: Capacity,
    #[n(15)]
    pub(super) placement: Placement,
    #[n(16)]
    pub(super) tried: Vec<HostId>,
}

/// What a VM is called.
#[derive(Debug, Decode)]
#[cbor(map)]
pub(super) struct Called<'b> {
    #[n(2)]
    pub(super) name: &'b str,
}

/// Where a VM is.
#[derive(Debug, Decode)]
#[cbor(map)]
pub(super) struct Placed {
    #[n(0)]
    pub(super) id: VmId,
    #[n(15)]
    pub(super) placement: Placement,
}

impl KeptVm {
    /// From its canonical bytes.
    pub(super) fn new(object: &[u8]) -> Self {
        Self(object.into())
    }

    /// Its canonical bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// All of it.
    pub(super) fn read(&self) -> Vm {
        self.some()
    }

    /// Some of its fields.
    pub(super) fn some<'b, T: Decode<'b, ()>>(&'b self) -> T {
        #[cfg(test)]
        READ.set(READ.get() + 1);
        minicbor::decode(&self.0).expect("the state keeps what decodes")
    }
}

/// Written as it stands.
impl<C> Encode<C> for KeptVm {
    fn encode<W: encode::Write>(
        &self,
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        encoder.writer_mut().write_all(&self.0).map_err(encode::Error::write)
    }
}
