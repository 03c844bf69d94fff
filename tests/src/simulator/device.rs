//! A block device with a volatile cache: what a power cut leaves of writes that were not synced.
//!
//! Owns sectors. Never knows what they mean. Called by `disk` at the moment of a crash. Each cached
//! sector is lost, kept or torn by itself, so that later writes may survive earlier ones.

use std::collections::BTreeMap;

use super::random::Random;

/// Bytes of a sector.
pub(crate) const SECTOR_BYTES: usize = 512;

type Sector = [u8; SECTOR_BYTES];

/// What became of the cache in a power cut.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct PowerCut {
    /// Sectors that kept their old content.
    pub(crate) lost: u64,
    /// Sectors of which only a part is new.
    pub(crate) torn: u64,
    /// Sectors that survived though an earlier one did not.
    pub(crate) reordered: u64,
}

/// See the module.
#[derive(Debug, Default, Clone)]
pub(crate) struct Device {
    durable: BTreeMap<usize, Sector>,
    cached: Vec<(usize, Sector)>,
}

impl Device {
    /// Writes `bytes` from sector `first` on, into the cache; the rest of the last sector is zero.
    pub(crate) fn write(&mut self, first: usize, bytes: &[u8]) {
        for (number, chunk) in bytes.chunks(SECTOR_BYTES).enumerate() {
            let mut sector = [0; SECTOR_BYTES];
            sector[..chunk.len()].copy_from_slice(chunk);
            self.cached.push((first + number, sector));
        }
    }

    /// Makes everything in the cache durable.
    pub(crate) fn sync(&mut self) {
        self.durable.extend(self.cached.drain(..));
    }

    /// The power goes: the cache is gone, except for what had reached the medium by chance.
    pub(crate) fn cut_power(&mut self, random: &mut Random) -> PowerCut {
        let mut cut = PowerCut::default();
        for (number, new) in std::mem::take(&mut self.cached) {
            let old = self.durable.entry(number).or_insert([0; SECTOR_BYTES]);
            match random.below(3) {
                0 => cut.lost += 1,
                1 => {
                    let from = random.index(SECTOR_BYTES);
                    let to = from + random.index(SECTOR_BYTES - from + 1);
                    old[from..to].copy_from_slice(&new[from..to]);
                    cut.torn += 1;
                }
                _ => {
                    *old = new;
                    cut.reordered += u64::from(cut.lost + cut.torn > 0);
                }
            }
        }
        cut
    }

    /// Reads `length` bytes from sector `first` on; what was never written is zero.
    pub(crate) fn read(&self, first: usize, length: usize) -> Vec<u8> {
        let sectors = length.div_ceil(SECTOR_BYTES);
        let sector = |number| self.durable.get(&number).copied().unwrap_or([0; SECTOR_BYTES]);
        let mut bytes: Vec<u8> = (first..first + sectors).flat_map(sector).collect();
        bytes.truncate(length);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_synced_survives_and_the_rest_is_lost_torn_and_reordered() {
        let mut random = Random::new(1, "device");
        let (mut lost, mut torn, mut reordered) = (0, 0, 0);
        for _ in 0..50 {
            let mut device = Device::default();
            device.write(0, &[1; 2000]);
            device.sync();
            device.write(4, &[2; 4000]);
            let cut = device.cut_power(&mut random);
            assert_eq!(device.read(0, 2000), [1; 2000]);
            assert!(device.read(4, 4000).iter().all(|byte| [0, 2].contains(byte)));
            lost += cut.lost;
            torn += cut.torn;
            reordered += cut.reordered;
        }
        assert!(lost > 0 && torn > 0 && reordered > 0);
    }
}
