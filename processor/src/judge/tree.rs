//! The state tree: a Merkle trie over the hashes of keys, whose root is the same for the same
//! contents, whatever the order in which they came.
//!
//! Owns the canonical shape: a subtree with one leaf *is* that leaf, a subtree without any is
//! empty. Changes are gathered and taken in together, sorted by place, when the root is asked for:
//! so each branch above them is visited and hashed once, which costs about log2 of the number of
//! leaves for each change. Nodes stand in two lists and name each other by number: a branch keeps
//! the hashes of both its children, so that no sibling is looked at. Hashes are in
//! `dagger_payload::state_tree`, and what a proof says in `dagger_payload::proof`. Called by the
//! state.

use dagger_payload::id::StateRoot;
use dagger_payload::proof::{Finding, Path, StateProof};
use dagger_payload::state_tree::{Hash, key_hash, leaf_of, node, side, value_hash};

/// Changes that wait for the root to be asked for; more are taken in at once.
const CHANGES_WAITING_MAX: usize = 1 << 16;

/// A subtree: nothing, or the number of a leaf or a branch.
#[derive(Debug, Default, Clone, Copy)]
enum Link {
    #[default]
    Empty,
    Leaf(u32),
    Branch(u32),
}

/// A subtree and its hash.
#[derive(Debug, Default, Clone, Copy)]
struct Subtree {
    link: Link,
    hash: Hash,
}

#[derive(Debug, Clone, Copy)]
struct Branch {
    links: [Link; 2],
    hashes: [Hash; 2],
}

/// What is kept of a leaf: enough to show that it stands where another one is looked for.
#[derive(Debug, Clone, Copy)]
struct Leaf {
    place: Hash,
    value_hash: Hash,
}

/// What is to become of the leaf at a place.
#[derive(Debug, Clone, Copy)]
struct Change {
    place: Hash,
    /// The hashes of the leaf's new value and of itself; none when it goes.
    leaf: Option<(Hash, Hash)>,
}

/// Things by number; numbers of those that went are given again.
#[derive(Debug)]
struct Numbered<T> {
    things: Vec<T>,
    free: Vec<u32>,
}

/// The tree.
#[derive(Debug, Default)]
pub(crate) struct StateTree {
    root: Subtree,
    branches: Numbered<Branch>,
    leaves: Numbered<Leaf>,
    changes: Vec<Change>,
}

impl StateTree {
    /// The root, with every change up to now.
    pub(crate) fn root(&mut self) -> StateRoot {
        self.settle();
        StateRoot(self.root.hash)
    }

    /// Sets the value of `key`.
    pub(crate) fn set(&mut self, key: &[u8], value: &[u8]) {
        let (place, value_hash) = (key_hash(key), value_hash(value));
        let leaf = Some((value_hash, leaf_of(&place, &value_hash)));
        self.change(Change { place, leaf });
    }

    /// Removes `key`, if it is there.
    pub(crate) fn remove(&mut self, key: &[u8]) {
        self.change(Change { place: key_hash(key), leaf: None });
    }

    /// What stands under `key`, for whoever knows the root; `value` gives the bytes that were last
    /// set there.
    pub(crate) fn prove(&mut self, key: &[u8], value: impl FnOnce() -> Vec<u8>) -> StateProof {
        self.settle();
        let place = key_hash(key);
        let (mut path, mut link) = (Vec::new(), self.root.link);
        while let Link::Branch(number) = link {
            let branch = &self.branches.things[index(number)];
            let turn = side(&place, path.len());
            path.push(branch.hashes[1 - turn]);
            link = branch.links[turn];
        }
        let finding = match link {
            Link::Leaf(number) => {
                let leaf = self.leaves.things[index(number)];
                if leaf.place == place {
                    Finding::Value(value().into())
                } else {
                    Finding::Another { place: leaf.place, value_hash: leaf.value_hash }
                }
            }
            Link::Empty | Link::Branch(_) => Finding::Nothing,
        };
        StateProof { path: Path(path), finding }
    }

    fn change(&mut self, change: Change) {
        self.changes.push(change);
        if self.changes.len() >= CHANGES_WAITING_MAX {
            self.settle();
        }
    }

    /// Takes in the changes that wait.
    fn settle(&mut self) {
        let mut changes = std::mem::take(&mut self.changes);
        // The newest of each place first: the sort keeps the order of equals.
        changes.reverse();
        changes.sort_by_key(|change| change.place);
        changes.dedup_by_key(|change| change.place);
        self.root = self.changed(self.root, &changes, 0);
        changes.clear();
        self.changes = changes;
    }

    /// `subtree` after `changes`, which are sorted, one for each place.
    fn changed(&mut self, subtree: Subtree, changes: &[Change], depth: usize) -> Subtree {
        if changes.is_empty() {
            return subtree;
        }
        match subtree.link {
            Link::Empty => self.grown(changes, depth),
            Link::Leaf(number) => {
                let Leaf { place, value_hash } = self.leaves.things[index(number)];
                match (changes.binary_search_by(|change| change.place.cmp(&place)), changes) {
                    (Ok(_), [Change { leaf: Some((value_hash, hash)), .. }]) => {
                        self.leaves.things[index(number)].value_hash = *value_hash;
                        Subtree { link: subtree.link, hash: *hash }
                    }
                    (Ok(_), _) => {
                        self.leaves.free.push(number);
                        self.grown(changes, depth)
                    }
                    (Err(at), _) => {
                        self.leaves.free.push(number);
                        let mut changes = changes.to_vec();
                        changes
                            .insert(at, Change { place, leaf: Some((value_hash, subtree.hash)) });
                        self.grown(&changes, depth)
                    }
                }
            }
            Link::Branch(number) => {
                let mut branch = self.branches.things[index(number)];
                let (left, right) = split(changes, depth);
                for (at, changes) in [left, right].into_iter().enumerate() {
                    let child = Subtree { link: branch.links[at], hash: branch.hashes[at] };
                    let child = self.changed(child, changes, depth + 1);
                    (branch.links[at], branch.hashes[at]) = (child.link, child.hash);
                }
                self.joined(Some(number), branch)
            }
        }
    }

    /// The subtree that `changes` make where nothing was.
    fn grown(&mut self, changes: &[Change], depth: usize) -> Subtree {
        match changes {
            [] => Subtree::default(),
            [Change { leaf: None, .. }] => Subtree::default(),
            [Change { place, leaf: Some((value_hash, hash)) }] => {
                let leaf = Leaf { place: *place, value_hash: *value_hash };
                Subtree { link: Link::Leaf(self.leaves.add(leaf)), hash: *hash }
            }
            _ => {
                let (left, right) = split(changes, depth);
                let (left, right) = (self.grown(left, depth + 1), self.grown(right, depth + 1));
                let (links, hashes) = ([left.link, right.link], [left.hash, right.hash]);
                self.joined(None, Branch { links, hashes })
            }
        }
    }

    /// The subtree of a branch, which is none if less than two leaves are left in it.
    fn joined(&mut self, number: Option<u32>, branch: Branch) -> Subtree {
        let only = match branch.links {
            [Link::Empty, Link::Empty | Link::Leaf(_)] => Some(1),
            [Link::Leaf(_), Link::Empty] => Some(0),
            _ => None,
        };
        if let Some(only) = only {
            self.branches.free.extend(number);
            return Subtree { link: branch.links[only], hash: branch.hashes[only] };
        }
        let hash = node(&branch.hashes[0], &branch.hashes[1]);
        let number = match number {
            Some(number) => {
                self.branches.things[index(number)] = branch;
                number
            }
            None => self.branches.add(branch),
        };
        Subtree { link: Link::Branch(number), hash }
    }
}

impl<T> Numbered<T> {
    fn add(&mut self, thing: T) -> u32 {
        if let Some(number) = self.free.pop() {
            self.things[index(number)] = thing;
            return number;
        }
        self.things.push(thing);
        u32::try_from(self.things.len() - 1).expect("memory ends before 2^32 nodes")
    }
}

impl<T> Default for Numbered<T> {
    fn default() -> Self {
        Self { things: Vec::new(), free: Vec::new() }
    }
}

fn index(number: u32) -> usize {
    usize::try_from(number).expect("memory holds what has a number")
}

/// The changes on either side of the branch at `depth`.
fn split(changes: &[Change], depth: usize) -> (&[Change], &[Change]) {
    changes.split_at(changes.partition_point(|change| side(&change.place, depth) == 0))
}

#[cfg(test)]
mod tests {
    use dagger_payload::codec;
    use dagger_payload::state_tree::{EMPTY, leaf};

    use super::*;

    fn tree_of(numbers: impl IntoIterator<Item = u16>) -> StateTree {
        let mut tree = StateTree::default();
        for number in numbers {
            tree.set(&number.to_be_bytes(), b"value");
        }
        tree
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
                tree.remove(&key.to_be_bytes());
                model.remove(&place);
            } else {
                tree.set(&key.to_be_bytes(), &step.to_be_bytes());
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
                tree.remove(&key.to_be_bytes());
                model.remove(&key);
            } else {
                tree.set(&key.to_be_bytes(), &step.to_be_bytes());
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
            (0..leaves).for_each(|number| tree.set(&number.to_be_bytes(), b"value"));
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
        let size = (tree.leaves.things.len(), tree.branches.things.len());
        for _ in 0..3 {
            (0..500_u16).for_each(|number| tree.remove(&number.to_be_bytes()));
            tree.root();
            (0..500_u16).for_each(|number| tree.set(&number.to_be_bytes(), b"value"));
            tree.root();
        }
        assert_eq!((tree.leaves.things.len(), tree.branches.things.len()), size);
    }

    #[test]
    fn the_root_depends_on_the_contents_alone() {
        let up = tree_of(0..500).root();
        assert_eq!(tree_of((0..500).rev()).root(), up);
        let mut more = tree_of(0..700);
        (500..700_u16).for_each(|number| more.remove(&number.to_be_bytes()));
        assert_eq!(more.root(), up);
        more.set(&7_u16.to_be_bytes(), b"other");
        assert_ne!(more.root(), up);
        (0..500_u16).for_each(|number| more.remove(&number.to_be_bytes()));
        assert_eq!(more.root(), StateTree::default().root());
    }
}
