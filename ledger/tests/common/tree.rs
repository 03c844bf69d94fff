//! A state tree for tests, as its definition says and no faster, with proofs.

use std::collections::BTreeMap;

use dagger_payload::id::StateRoot;
use dagger_payload::proof::{Finding, Path, StateProof};
use dagger_payload::state_tree::{EMPTY, Hash, key_hash, leaf, node, side, value_hash};

/// What stands in the state, by key.
pub type Leaves = BTreeMap<Vec<u8>, Vec<u8>>;

/// A leaf's place, and the hash of its key and value.
type Placed = (Hash, Hash);

fn placed(leaves: &Leaves) -> Vec<Placed> {
    let place = |key: &Vec<u8>| key_hash(key);
    leaves.iter().map(|(key, value)| (place(key), leaf(&place(key), value))).collect()
}

fn turn(leaves: &[Placed], depth: usize, wanted: usize) -> Vec<Placed> {
    leaves.iter().filter(|(place, _)| side(place, depth) == wanted).copied().collect()
}

fn subtree(leaves: &[Placed], depth: usize) -> Hash {
    match leaves {
        [] => EMPTY,
        [(_, hash)] => *hash,
        _ => {
            let [left, right] =
                [0, 1].map(|wanted| subtree(&turn(leaves, depth, wanted), depth + 1));
            node(&left, &right)
        }
    }
}

/// The root.
pub fn root(leaves: &Leaves) -> StateRoot {
    StateRoot(subtree(&placed(leaves), 0))
}

/// What stands under `key`, and why.
pub fn prove(leaves: &Leaves, key: &[u8]) -> StateProof {
    let (place, mut here, mut path) = (key_hash(key), placed(leaves), Vec::new());
    while here.len() > 1 {
        let depth = path.len();
        let own = side(&place, depth);
        path.push(subtree(&turn(&here, depth, 1 - own), depth + 1));
        here = turn(&here, depth, own);
    }
    let finding = match (leaves.get(key), here.first()) {
        (Some(value), _) => Finding::Value(value.clone().into()),
        (None, None) => Finding::Nothing,
        (None, Some((other, _))) => {
            let barring = leaves.iter().find(|(key, _)| key_hash(key) == *other);
            let value_hash = value_hash(barring.expect("it stands there").1);
            Finding::Another { place: *other, value_hash }
        }
    };
    StateProof { path: Path(path), finding }
}
