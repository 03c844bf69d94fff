//! Proofs against the root of the judged state: that something stands under a key, or nothing does.
//!
//! Owns their bytes and their check, which needs the proof and the root and nothing else. Never
//! says whether the root is true: [`crate::attested`] does. Made by the judge; checked by whoever
//! is shown one.
//!
//! CBOR: `[path, finding]`. The path is one byte string, the hashes beside the way from the root
//! down, 32 bytes each: about log2 of the number of leaves. The finding is the value itself, or
//! why there is none: nothing stands where the way ends, or another leaf does, whose own place
//! shows that it bars the way.

use bytes::Bytes;
use minicbor::decode::{Decoder, Error as DecodeError};
use minicbor::encode::{Encoder, Error as EncodeError, Write};

use crate::event::CommitEnd;
use crate::id::StateRoot;
use crate::state_tree::{EMPTY, Hash, Subject, key_hash, leaf, leaf_of, node, side};

/// Length of a hash in the tree.
const HASH_BYTES: usize = 32;
/// The deepest leaf: places differ in their last bit.
const DEPTH_MAX: usize = HASH_BYTES * 8;

/// The hashes beside the way from the root to a place, the root's children first.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Path(pub Vec<Hash>);

/// What stands where the way ends.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub enum Finding {
    /// The subject, with this value.
    #[n(0)]
    Value(
        #[n(0)]
        #[cbor(with = "crate::codec::shared_bytes")]
        Bytes,
    ),
    /// Nothing.
    #[n(1)]
    Nothing,
    /// The only leaf of that part of the tree, which is another one.
    #[n(2)]
    Another {
        /// Its place: the hash of its key.
        #[n(0)]
        #[cbor(with = "minicbor::bytes")]
        place: Hash,
        /// Hash of its value.
        #[n(1)]
        #[cbor(with = "minicbor::bytes")]
        value_hash: Hash,
    },
}

/// What stands under one key of the judged state, and why.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct StateProof {
    /// The way.
    #[n(0)]
    pub path: Path,
    /// Its end.
    #[n(1)]
    pub finding: Finding,
}

/// A proof of the judge, and after which commit it counts.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct JudgedProof {
    /// The last commit end that changed anything: the one whose root members attest.
    #[n(0)]
    pub end: CommitEnd,
    /// Against its root.
    #[n(1)]
    pub state: StateProof,
}

/// Why a proof shows nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// Deeper than any tree.
    #[error("the path is longer than any can be")]
    TooLong,
    /// The leaf that is said to bar the way stands elsewhere, or is the subject's own.
    #[error("the leaf that is shown instead does not stand in the subject's way")]
    NotInTheWay,
    /// The path leads to another root.
    #[error("the path leads to state root {found}")]
    AnotherRoot {
        /// To which one.
        found: StateRoot,
    },
}

impl StateProof {
    /// What this shows of `subject` in the state with this root: its value, or none when there is
    /// no such thing.
    ///
    /// # Errors
    /// [`ProofError`]: it shows nothing of this subject in that state.
    pub fn verify(
        &self,
        root: &StateRoot,
        subject: &Subject,
    ) -> Result<Option<&Bytes>, ProofError> {
        self.verify_key(root, &subject.key())
    }

    /// The same for any key of the state.
    ///
    /// # Errors
    /// [`ProofError`].
    pub fn verify_key(&self, root: &StateRoot, key: &[u8]) -> Result<Option<&Bytes>, ProofError> {
        let place = key_hash(key);
        let depth = self.path.0.len();
        if depth > DEPTH_MAX {
            return Err(ProofError::TooLong);
        }
        let (end, shown) = match &self.finding {
            Finding::Value(value) => (leaf(&place, value), Some(value)),
            Finding::Nothing => (EMPTY, None),
            Finding::Another { place: other, value_hash } => {
                let same_way = (0..depth).all(|at| side(other, at) == side(&place, at));
                if !same_way || *other == place {
                    return Err(ProofError::NotInTheWay);
                }
                (leaf_of(other, value_hash), None)
            }
        };
        let beside = (0..depth).zip(&self.path.0).rev();
        let found = beside.fold(end, |hash, (at, beside)| match side(&place, at) {
            0 => node(&hash, beside),
            _ => node(beside, &hash),
        });
        if found == root.0 {
            Ok(shown)
        } else {
            Err(ProofError::AnotherRoot { found: StateRoot(found) })
        }
    }
}

impl Path {
    /// The hashes that stand one after another in `bytes`; none when they are not whole, or more
    /// than any tree is deep.
    pub fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let (hashes, rest) = bytes.as_chunks::<HASH_BYTES>();
        let is_path = rest.is_empty() && hashes.len() <= DEPTH_MAX;
        is_path.then(|| Self(hashes.to_vec()))
    }
}

/// As one byte string.
impl<C> minicbor::Encode<C> for Path {
    fn encode<W: Write>(
        &self,
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        encoder.bytes(&self.0.concat())?.ok()
    }
}

impl<'b, C> minicbor::Decode<'b, C> for Path {
    fn decode(decoder: &mut Decoder<'b>, _: &mut C) -> Result<Self, DecodeError> {
        let path = Self::of_bytes(decoder.bytes()?);
        path.ok_or_else(|| DecodeError::message("not a path of whole hashes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use crate::id::VmId;

    /// Root of the leaves, as the tree's definition says, and what is beside the way to `sought`.
    fn walk(leaves: &[(Hash, Hash)], sought: &Hash, depth: usize, path: &mut Vec<Hash>) -> Hash {
        match leaves {
            [] => EMPTY,
            [(_, hash)] => *hash,
            _ => {
                let of = |wanted: usize| -> Vec<_> {
                    let side = leaves.iter().filter(|(place, _)| side(place, depth) == wanted);
                    side.copied().collect()
                };
                let mut unused = Vec::new();
                let turn = side(sought, depth);
                let beside = walk(&of(1 - turn), sought, depth + 1, &mut unused);
                path.push(beside);
                let own = walk(&of(turn), sought, depth + 1, path);
                if turn == 0 { node(&own, &beside) } else { node(&beside, &own) }
            }
        }
    }

    fn vm(number: u8) -> Subject {
        Subject::Vm(VmId([number; 16]))
    }

    fn proof(numbers: &[u8], sought: &Subject) -> (StateRoot, StateProof) {
        let place = |number: &u8| key_hash(&vm(*number).key());
        let leaves: Vec<_> =
            numbers.iter().map(|n| (place(n), leaf(&place(n), &[*n; 40]))).collect();
        let mut path = Vec::new();
        let sought_place = key_hash(&sought.key());
        let root = walk(&leaves, &sought_place, 0, &mut path);
        let fits = |other: &Hash| {
            (0..path.len()).all(|depth| side(other, depth) == side(&sought_place, depth))
        };
        let there = numbers.iter().find(|number| fits(&place(number)));
        let finding = match there {
            Some(number) if vm(*number) == *sought => Finding::Value(vec![*number; 40].into()),
            Some(number) => Finding::Another {
                place: place(number),
                value_hash: crate::state_tree::value_hash(&[*number; 40]),
            },
            None => Finding::Nothing,
        };
        (StateRoot(root), StateProof { path: Path(path), finding })
    }

    #[test]
    fn a_proof_shows_what_is_there_and_what_is_not_and_nothing_of_another_subject() {
        for count in [0_u8, 1, 2, 3, 20, 100] {
            let numbers: Vec<u8> = (0..count).collect();
            for sought in 0..count + 40 {
                let (root, proof) = proof(&numbers, &vm(sought));
                let shown = proof.verify(&root, &vm(sought)).map(Option::<&Bytes>::cloned);
                let there = sought < count;
                assert_eq!(shown, Ok(there.then(|| Bytes::from(vec![sought; 40]))));
                for other in (0..count + 40).filter(|other| *other != sought) {
                    // Of another subject it shows at most that it is not there either.
                    let shown = proof.verify(&root, &vm(other));
                    assert!(shown.is_err() || (other >= count && shown == Ok(None)), "{other}");
                }
            }
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_in_a_proof_shows_nothing() {
        let numbers: Vec<u8> = (0..60).collect();
        for sought in [0, 59, 61, 90, 200] {
            let (root, good) = proof(&numbers, &vm(sought));
            let bytes = codec::encode(&good);
            assert_eq!(codec::decode(&bytes).as_ref(), Ok(&good));
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let Ok(read) = codec::decode::<StateProof>(&flipped) else { continue };
                assert!(read.verify(&root, &vm(sought)).is_err(), "bit {bit} of {sought}");
            }
            for cut in 0..bytes.len() {
                assert!(codec::decode::<StateProof>(&bytes[..cut]).is_err());
            }
        }
    }

    #[test]
    fn a_leaf_beside_the_way_does_not_pass_for_one_that_bars_it() {
        let numbers: Vec<u8> = (0..60).collect();
        let (root, there) = proof(&numbers, &vm(7));
        let Finding::Value(value) = &there.finding else { panic!("it is there") };
        let place = key_hash(&vm(7).key());
        let value_hash = crate::state_tree::value_hash(value);
        // Its own leaf, shown as somebody else's.
        let own = Finding::Another { place, value_hash };
        let hidden = StateProof { finding: own, ..there.clone() };
        assert_eq!(hidden.verify(&root, &vm(7)), Err(ProofError::NotInTheWay));
        for other in (0..=255).filter(|other| *other != 7) {
            let shown = hidden.verify(&root, &vm(other));
            assert!(shown.is_err() || (other >= 60 && shown == Ok(None)), "{other}");
        }
        let empty = StateProof { finding: Finding::Nothing, ..there };
        assert!(empty.verify(&root, &vm(7)).is_err());
        let too_long = StateProof { path: Path(vec![EMPTY; 257]), finding: Finding::Nothing };
        assert_eq!(too_long.verify(&root, &vm(7)), Err(ProofError::TooLong));
        assert!(codec::decode::<StateProof>(&codec::encode(&too_long)).is_err());
    }
}
