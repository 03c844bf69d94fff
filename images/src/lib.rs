//! Images, disks and seeds: everything that a virtual machine's files are made of.
//!
//! * [`store`]: image files by the digest of their bytes, verified before use.
//! * [`header`]: what an image file says of itself, read before any tool opens it; kernels and
//!   initial RAM disks too.
//! * [`disks`]: a VM's disk as a qcow2 overlay over a stored image, its seed, volumes and their
//!   snapshots, quarantine.
//! * [`import`]: which files of the host may be taken in on somebody else's word.
//! * [`incoming`]: image files that are being fetched.
//! * [`consoles`]: what guests have said, written by hypervisors.
//! * [`fetch`]: what is said to the helper that has a network.
//! * [`quarantine`]: what was put aside, and its removal, one file at a time.
//! * [`seed`]: the NoCloud volume from which a guest learns its name, keys and network.
//!
//! Everything here blocks: async callers use `spawn_blocking`. It never talks to a hypervisor,
//! never fetches, and deletes nothing that was in use but out of quarantine. The agent calls it;
//! tests and the demo take their guest from `recipes/small`.

mod boot_files;
pub mod consoles;
pub mod disks;
pub mod error;
pub mod fetch;
pub mod files;
pub mod header;
pub mod import;
pub mod incoming;
pub mod limits;
pub mod quarantine;
pub mod room;
pub mod seed;
pub mod store;
pub mod tool;

pub use consoles::ConsoleStore;
pub use disks::{Disk, DiskStore, FlatDisk, Outcome};
pub use error::{ImageError, Kind, is_for_want_of_space};
pub use header::{Geometry, HeaderRefusal};
pub use import::{ImportDirectories, SourceRefusal};
pub use incoming::{Claim, Incoming};
pub use quarantine::{Quarantine, Remains, RemainsOf};
pub use room::Space;
pub use seed::{Addressing, MacAddress, Network, Seed, SeedCard};
pub use store::{ImageStore, StoredImage};
