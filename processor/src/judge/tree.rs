//! The state tree: a Merkle trie over the hashes of keys, whose root is the same for the same
//! contents, whatever the order in which they came.
//!
//! Owns the canonical shape: a subtree with one leaf *is* that leaf, a subtree without any is
//! empty. A change costs as many steps as the leaf is deep, about log2 of the number of leaves, and
//! hashes nothing but the leaf; the branches above all changes are hashed once, when the root is
//! asked for. Hashes are in `dagger_payload::state_tree`. Called by the state.

use dagger_payload::id::StateRoot;
use dagger_payload::state_tree::{EMPTY, Hash, key_hash, leaf, node, side};

#[derive(Debug, Default)]
enum Node {
    #[default]
    Empty,
    Leaf {
        place: Hash,
        hash: Hash,
    },
    Branch(Box<Branch>),
}

#[derive(Debug)]
struct Branch {
    children: [Node; 2],
    /// Of the present children; none after a change.
    hash: Option<Hash>,
}

/// The tree.
#[derive(Debug, Default)]
pub(crate) struct StateTree {
    root: Node,
}

impl StateTree {
    /// The root, after hashing what changed since it was last asked for.
    pub(crate) fn root(&mut self) -> StateRoot {
        StateRoot(self.root.hash())
    }

    /// Sets the value of `key`.
    pub(crate) fn set(&mut self, key: &[u8], value: &[u8]) {
        let place = key_hash(key);
        let hash = leaf(&place, value);
        self.root.insert(place, hash, 0);
    }

    /// Removes `key`, if it is there.
    pub(crate) fn remove(&mut self, key: &[u8]) {
        self.root.remove(&key_hash(key), 0);
    }
}

impl Node {
    fn hash(&mut self) -> Hash {
        match self {
            Self::Empty => EMPTY,
            Self::Leaf { hash, .. } => *hash,
            Self::Branch(branch) => match branch.hash {
                Some(hash) => hash,
                None => branch.rehash(),
            },
        }
    }

    fn insert(&mut self, place: Hash, hash: Hash, depth: usize) {
        match self {
            Self::Branch(branch) => {
                branch.hash = None;
                branch.children[side(&place, depth)].insert(place, hash, depth + 1);
            }
            Self::Leaf { place: other, .. } if *other != place => {
                let mut children = [Self::Empty, Self::Empty];
                let at = side(other, depth);
                children[at] = std::mem::take(self);
                children[side(&place, depth)].insert(place, hash, depth + 1);
                *self = Self::Branch(Box::new(Branch { children, hash: None }));
            }
            Self::Empty | Self::Leaf { .. } => *self = Self::Leaf { place, hash },
        }
    }

    fn remove(&mut self, place: &Hash, depth: usize) {
        match self {
            Self::Leaf { place: own, .. } if own == place => *self = Self::Empty,
            Self::Empty | Self::Leaf { .. } => {}
            Self::Branch(branch) => {
                branch.hash = None;
                branch.children[side(place, depth)].remove(place, depth + 1);
                let only = match &mut branch.children {
                    [Self::Empty, only @ (Self::Leaf { .. } | Self::Empty)]
                    | [only @ Self::Leaf { .. }, Self::Empty] => std::mem::take(only),
                    _ => return,
                };
                *self = only;
            }
        }
    }
}

impl Branch {
    fn rehash(&mut self) -> Hash {
        let [left, right] = &mut self.children;
        let hash = node(&left.hash(), &right.hash());
        self.hash = Some(hash);
        hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree_of(numbers: impl IntoIterator<Item = u16>) -> StateTree {
        let mut tree = StateTree::default();
        for number in numbers {
            tree.set(&number.to_be_bytes(), b"value");
        }
        tree
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
