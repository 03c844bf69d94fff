//! The tree against its definition.

use dagger_payload::codec;
use dagger_payload::state_tree::{leaf, node};

use super::*;

fn tree_of(numbers: impl IntoIterator<Item = u16>) -> StateTree {
    let mut tree = StateTree::default();
    for number in numbers {
        tree.set_key(&number.to_be_bytes(), b"value");
    }
    tree
}

fn gone(key: &[u8]) -> Change {
    Change { place: key_hash(key), value_hash: None }
}

/// The root as its definition says.
fn defined(leaves: &[(Hash, Hash)], depth: usize) -> Hash {
    match leaves {
        [] => EMPTY,
        [(_, hash)] => *hash,
        _ => {
            let of = |wanted: usize| {
                let side = leaves.iter().filter(|(place, _)| side(place, depth) == wanted);
                defined(&side.copied().collect::<Vec<_>>(), depth + 1)
            };
            node(&of(0), &of(1))
        }
    }
}

#[test]
fn any_changes_taken_in_together_or_alone_lead_to_the_defined_root() {
    let mut tree = StateTree::default();
    let mut model = std::collections::BTreeMap::new();
    let mut random: u32 = 1;
    for step in 0..6000_u32 {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let key = (random >> 16) % 300;
        let place = key_hash(&key.to_be_bytes());
        // Times of growing and times of shrinking.
        if (random >> 8) % 5 < 1 + 3 * (step / 1000 % 2) {
            tree.change(gone(&key.to_be_bytes()));
            model.remove(&place);
        } else {
            tree.set_key(&key.to_be_bytes(), &step.to_be_bytes());
            model.insert(place, leaf(&place, &step.to_be_bytes()));
        }
        if (random >> 4).is_multiple_of(7) {
            let leaves: Vec<_> = model.iter().map(|(place, leaf)| (*place, *leaf)).collect();
            assert_eq!(tree.root().0, defined(&leaves, 0), "step {step}");
        }
    }
}

#[test]
fn after_any_changes_every_key_is_proven_to_have_its_value_or_none() {
    let mut tree = StateTree::default();
    let mut model: std::collections::BTreeMap<u32, Vec<u8>> = Default::default();
    let mut random: u32 = 7;
    for step in 0..4000_u32 {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let key = (random >> 16) % 300;
        if (random >> 8) % 5 < 1 + 3 * (step / 1000 % 2) {
            tree.change(gone(&key.to_be_bytes()));
            model.remove(&key);
        } else {
            tree.set_key(&key.to_be_bytes(), &step.to_be_bytes());
            model.insert(key, step.to_be_bytes().to_vec());
        }
        if !step.is_multiple_of(97) {
            continue;
        }
        let root = tree.root();
        for sought in 0..330_u32 {
            let (key, there) = (sought.to_be_bytes(), model.get(&sought));
            let proof = tree.prove(&key, || there.cloned().expect("the tree has it"));
            let proof: StateProof = codec::decode(&codec::encode(&proof)).expect("reads");
            let shown = proof.verify_key(&root, &key).expect("proven");
            assert_eq!(shown.map(|value| value.to_vec()).as_ref(), there, "step {step}");
            // It shows nothing of another state.
            assert!(proof.verify_key(&StateRoot([9; 32]), &key).is_err());
        }
    }
}

#[test]
fn a_proof_grows_by_one_hash_when_the_tree_doubles() {
    for (leaves, depth_max) in [(1_000_u32, 24), (32_000, 34)] {
        let mut tree = StateTree::default();
        (0..leaves).for_each(|number| tree.set_key(&number.to_be_bytes(), b"value"));
        let lengths = (0..leaves)
            .step_by(7)
            .map(|number| tree.prove(&number.to_be_bytes(), || b"value".to_vec()).path.0.len());
        let lengths: Vec<usize> = lengths.collect();
        let mean = lengths.iter().sum::<usize>() / lengths.len();
        let wanted = usize::try_from(leaves.ilog2()).expect("small");
        assert!((wanted..=wanted + 2).contains(&mean), "{mean} for {leaves}");
        assert!(lengths.iter().all(|length| *length <= depth_max), "{lengths:?}");
    }
}

#[test]
fn numbers_of_what_went_are_given_again() {
    let mut tree = tree_of(0..500);
    tree.root();
    let size = (tree.leaves.things.len(), tree.branches.links.len());
    for _ in 0..3 {
        (0..500_u16).for_each(|number| tree.change(gone(&number.to_be_bytes())));
        tree.root();
        (0..500_u16).for_each(|number| tree.set_key(&number.to_be_bytes(), b"value"));
        tree.root();
    }
    assert_eq!((tree.leaves.things.len(), tree.branches.links.len()), size);
}

#[test]
fn places_that_share_their_first_word_are_told_apart_and_the_newest_value_counts() {
    let place = |last| {
        let mut place = [5; 32];
        place[31] = last;
        place
    };
    let mut tree = StateTree::default();
    for (last, value) in [(3, b"old"), (1, b"old"), (2, b"one"), (3, b"new"), (1, b"one")] {
        tree.set_at(place(last), value);
    }
    let leaves = [(1, b"one"), (2, b"one"), (3, b"new")];
    let leaves = leaves.map(|(last, value)| (place(last), leaf(&place(last), value)));
    assert_eq!(tree.root().0, defined(&leaves, 0));
}

#[test]
fn the_root_depends_on_the_contents_alone() {
    let up = tree_of(0..500).root();
    assert_eq!(tree_of((0..500).rev()).root(), up);
    let mut more = tree_of(0..700);
    (500..700_u16).for_each(|number| more.change(gone(&number.to_be_bytes())));
    assert_eq!(more.root(), up);
    more.set_key(&7_u16.to_be_bytes(), b"other");
    assert_ne!(more.root(), up);
    (0..500_u16).for_each(|number| more.change(gone(&number.to_be_bytes())));
    assert_eq!(more.root(), StateTree::default().root());
}
