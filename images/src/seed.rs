//! The volume from which a guest learns who it is: cloud-init's NoCloud source, on a FAT file
//! system.
//!
//! Owns the documents and the volume's bytes, which are the same for the same contents, on every
//! run. Every document but one is JSON, a subset of YAML, so nothing that a user chose can break
//! out of its place; the one is a script that quotes key lines and nothing else. Knows no secrets.
//! Called by [`crate::disks`]; read by cloud-init and by the guest of `recipes/small`.
//!
//! Sources: <https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html>, and
//! for the network
//! <https://cloudinit.readthedocs.io/en/latest/reference/network-config-format-v2.html>.

use std::fmt;
use std::io::{self, Cursor, Write};
use std::net::Ipv4Addr;
use std::str::FromStr;

use dagger_payload::limits::{NAMESERVERS_MAX, USER_DATA_BYTES_MAX, VM_CARDS_MAX, VM_SSH_KEYS_MAX};
use dagger_payload::name::{Name, SshKeyLine};
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use serde_json::{Value, json};

use crate::error::ImageError;
use crate::limits::SEED_BYTES;

/// By this label a guest finds the volume.
const LABEL: [u8; 11] = *b"CIDATA     ";
/// FAT volumes carry a number; a fixed one, so that equal contents are equal bytes.
const VOLUME_ID: u32 = 0xda66_e201;
const SECTOR_BYTES: u16 = 512;
/// The user, besides the image's own, who may log in on every guest.
const USER: &str = "dagger";
/// Makes that user: cloud-init runs it early, from vendor-data, which leaves user-data to its
/// owner. No key line can end the text in which they stand: each begins with its type.
const USER_SCRIPT: &str = include_str!("guest_user.sh");

/// A network card's address: six lower-case hex pairs with colons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// A text that is no network card's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a MAC address is six pairs of hex digits with colons")]
pub struct ParseMacError;

impl FromStr for MacAddress {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let mut bytes = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let pair = pairs.next().filter(|pair| {
                pair.len() == 2 && pair.bytes().all(|digit| digit.is_ascii_hexdigit())
            });
            let value = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok());
            *byte = value.ok_or(ParseMacError)?;
        }
        if pairs.next().is_none() { Ok(Self(bytes)) } else { Err(ParseMacError) }
    }
}

/// How the guest's network cards are set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// Each as it was decided; the first one leads out.
    Cards {
        /// The cards, which become `eth0`, `eth1` and so on.
        cards: Vec<SeedCard>,
        /// Who resolves names, unless a DHCP server says.
        nameservers: Vec<Ipv4Addr>,
    },
    /// The guest asks for an address (DHCP), by whatever cards it has.
    Dhcp,
}

/// How one card is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeedCard {
    /// Which card.
    pub mac: MacAddress,
    /// Its address.
    pub addressing: Addressing,
}

/// Where a card has its address from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addressing {
    /// It was decided.
    Static {
        /// The address.
        address: Ipv4Addr,
        /// How many bits of it are the network's.
        prefix_length: u8,
        /// The way out.
        gateway: Option<Ipv4Addr>,
    },
    /// The guest asks for it there (DHCP).
    Dhcp,
}

impl SeedCard {
    fn is_valid(&self) -> bool {
        match self.addressing {
            Addressing::Static { prefix_length, .. } => (1..=32).contains(&prefix_length),
            Addressing::Dhcp => true,
        }
    }

    /// Only the first card says who resolves names, and leads out.
    fn configuration(&self, at: usize, nameservers: &[Ipv4Addr]) -> Value {
        let mut card = json!({
            "match": { "macaddress": self.mac.to_string() },
            "set-name": format!("eth{at}"),
            "dhcp4": self.addressing == Addressing::Dhcp,
        });
        match self.addressing {
            Addressing::Static { address, prefix_length, gateway } => {
                card["addresses"] = json!([format!("{address}/{prefix_length}")]);
                if let Some(gateway) = gateway {
                    card["routes"] = json!([{ "to": "0.0.0.0/0", "via": gateway.to_string() }]);
                }
                if at == 0 {
                    let servers: Vec<_> = nameservers.iter().map(ToString::to_string).collect();
                    card["nameservers"] = json!({ "addresses": servers });
                }
            }
            Addressing::Dhcp if at > 0 => {
                card["dhcp4-overrides"] = json!({ "use-routes": false, "use-dns": false });
            }
            Addressing::Dhcp => {}
        }
        card
    }
}

/// What a guest is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// Changes when the guest shall take itself for a new machine; at most 64 of a-z, 0-9 and `-`.
    pub instance_id: String,
    /// Its host name.
    pub hostname: Name,
    /// Keys that may log in.
    pub ssh_keys: Vec<SshKeyLine>,
    /// Its network.
    pub network: Network,
    /// Its owner's public user-data, carried as it is; `dagger` is let in with the same keys
    /// besides.
    pub user_data: Option<String>,
}

impl Seed {
    /// The documents by their names.
    ///
    /// # Errors
    /// [`ImageError::Seed`].
    pub fn documents(&self) -> Result<Vec<(&'static str, String)>, ImageError> {
        self.check().map_err(|reason| ImageError::Seed(reason.to_owned()))?;
        let meta_data = json!({
            "instance-id": self.instance_id,
            "local-hostname": self.hostname.as_str(),
            "public-keys": self.key_texts(),
        });
        let user_data = self.user_data.clone().unwrap_or_else(|| {
            format!("#cloud-config\n{}", pretty(&json!({ "ssh_pwauth": false })))
        });
        let mut documents = vec![
            ("meta-data", pretty(&meta_data)),
            ("user-data", user_data),
            ("vendor-data", self.user_script()),
        ];
        if let Some(network) = self.network_configuration() {
            documents.push(("network-config", pretty(&network)));
        }
        Ok(documents)
    }

    fn check(&self) -> Result<(), &'static str> {
        let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        if self.instance_id.is_empty() || self.instance_id.len() > 64 {
            return Err("an instance id has 1 to 64 characters");
        }
        if !self.instance_id.bytes().all(allowed) {
            return Err("an instance id is made of a-z, 0-9 and '-'");
        }
        if self.ssh_keys.len() > VM_SSH_KEYS_MAX {
            return Err("there are too many SSH keys");
        }
        if self.user_data.as_ref().is_some_and(|text| text.len() > USER_DATA_BYTES_MAX) {
            return Err("the user-data is over 32 KiB");
        }
        match &self.network {
            Network::Cards { nameservers, .. } if nameservers.len() > NAMESERVERS_MAX => {
                Err("there are too many name servers")
            }
            Network::Cards { cards, .. } if cards.len() > usize::from(VM_CARDS_MAX) => {
                Err("there are too many network cards")
            }
            Network::Cards { cards, .. } if !cards.iter().all(SeedCard::is_valid) => {
                Err("a prefix length is 1 to 32")
            }
            Network::Cards { .. } | Network::Dhcp => Ok(()),
        }
    }

    fn key_texts(&self) -> Vec<&str> {
        self.ssh_keys.iter().map(SshKeyLine::as_str).collect()
    }

    fn user_script(&self) -> String {
        let keys = self.key_texts().join("\n");
        USER_SCRIPT.replace("@USER@", USER).replace("@KEYS@", &keys)
    }

    fn network_configuration(&self) -> Option<Value> {
        let Network::Cards { cards, nameservers } = &self.network else { return None };
        let ethernets: serde_json::Map<_, _> = cards
            .iter()
            .enumerate()
            .map(|(at, card)| (format!("eth{at}"), card.configuration(at, nameservers)))
            .collect();
        Some(json!({ "version": 2, "ethernets": ethernets }))
    }

    /// The volume's bytes: [`SEED_BYTES`] of them.
    ///
    /// # Errors
    /// [`ImageError::Seed`].
    pub fn volume(&self) -> Result<Vec<u8>, ImageError> {
        let documents = self.documents()?;
        let mut volume = vec![0; SEED_BYTES];
        // `fatfs` without its clock dates every file 1980-01-01.
        write_volume(&mut volume, &documents)
            .map_err(|error| ImageError::Seed(error.to_string()))?;
        Ok(volume)
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn write_volume(volume: &mut [u8], documents: &[(&str, String)]) -> io::Result<()> {
    let sectors = u32::try_from(volume.len() / usize::from(SECTOR_BYTES)).unwrap_or(u32::MAX);
    let format = FormatVolumeOptions::new()
        .bytes_per_sector(SECTOR_BYTES)
        .total_sectors(sectors)
        .fat_type(FatType::Fat12)
        .volume_id(VOLUME_ID)
        .volume_label(LABEL);
    fatfs::format_volume(Cursor::new(&mut *volume), format)?;
    let system = FileSystem::new(Cursor::new(&mut *volume), FsOptions::new())?;
    for (name, text) in documents {
        let mut file = system.root_dir().create_file(name)?;
        file.write_all(text.as_bytes())?;
        file.flush()?;
    }
    system.unmount()
}
