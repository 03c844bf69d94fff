//! The Merkle tree over an event's payload records.
//!
//! Owns leaf and node hashing (domains apart, so that no node passes for a leaf) and inclusion
//! proofs. The number of leaves is part of the event's header, so the tree's shape is fixed. Called
//! by events and by proofs. Source: the tree of RFC 9162, section 2.1, over BLAKE3.

use crate::hashing::Purpose;
use crate::id::{MerkleRoot, PayloadDigest};
use crate::key::Signature;
use crate::payload::SignatureKind;

static LEAF: Purpose = Purpose::new("dagger v1 merkle leaf");
static NODE: Purpose = Purpose::new("dagger v1 merkle node");

/// Hash of one payload record.
pub type Leaf = [u8; 32];

/// Hash of the record of a payload with this digest, signed so: all that the record holds, and the
/// long part of it is not hashed a second time.
pub fn leaf(digest: &PayloadDigest, kind: SignatureKind, signature: &Signature) -> Leaf {
    let kind = match kind {
        SignatureKind::SshEd25519 => 0_u8,
    };
    let mut hasher = LEAF.hasher();
    hasher.update(digest.as_bytes()).update(&[kind]).update(&signature.0);
    *hasher.finalize().as_bytes()
}

fn node(left: &Leaf, right: &Leaf) -> Leaf {
    *NODE.hasher().update(left).update(right).finalize().as_bytes()
}

/// Root of the tree over `leaves`; of none it is [`MerkleRoot::ZERO`].
pub fn root(leaves: &[Leaf]) -> MerkleRoot {
    let mut level = leaves.to_vec();
    while level.len() > 1 {
        // An odd last node moves up as it is: with a fixed count no second tree has the same root.
        level = level
            .chunks(2)
            .map(|pair| pair.get(1).map_or(pair[0], |right| node(&pair[0], right)))
            .collect();
    }
    level.first().map_or(MerkleRoot::ZERO, |root| MerkleRoot(*root))
}

/// The hashes beside the path from leaf `index` to the root, lowest first; `None` when there is no
/// such leaf.
pub fn prove(leaves: &[Leaf], index: usize) -> Option<Vec<Leaf>> {
    let mut path = Vec::new();
    let (mut level, mut at) = (leaves.to_vec(), index);
    leaves.get(index)?;
    while level.len() > 1 {
        path.extend(level.get(at ^ 1));
        level = level
            .chunks(2)
            .map(|pair| pair.get(1).map_or(pair[0], |right| node(&pair[0], right)))
            .collect();
        at /= 2;
    }
    Some(path)
}

/// Whether `path` shows that leaf `index` of `count` hashes to `root`.
pub fn verify(root: &MerkleRoot, count: usize, index: usize, leaf: &Leaf, path: &[Leaf]) -> bool {
    if index >= count {
        return false;
    }
    let (mut hash, mut at, mut width, mut path) = (*leaf, index, count, path.iter());
    while width > 1 {
        let alone = at == width - 1 && width % 2 == 1;
        if !alone {
            let Some(beside) = path.next() else {
                return false;
            };
            hash = if at % 2 == 0 { node(&hash, beside) } else { node(beside, &hash) };
        }
        at /= 2;
        width = width.div_ceil(2);
    }
    path.next().is_none() && hash == root.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_leaf_has_a_proof_and_no_other_leaf_index_or_path_passes() {
        for count in 1..=17_u8 {
            let leaves: Vec<_> = (0..count).map(|i| LEAF.hash(&[i])).collect();
            let root = root(&leaves);
            for index in 0..leaves.len() {
                let path = prove(&leaves, index).expect("exists");
                assert!(verify(&root, leaves.len(), index, &leaves[index], &path));
                assert!(!verify(&root, leaves.len(), index, &LEAF.hash(b"other"), &path));
                assert!(!verify(&root, leaves.len(), leaves.len(), &leaves[index], &path));
                let longer: Vec<_> = path.iter().copied().chain([[0; 32]]).collect();
                assert!(!verify(&root, leaves.len(), index, &leaves[index], &longer));
            }
        }
        assert_eq!(root(&[]), MerkleRoot::ZERO);
    }
}
